"""Settings for tests that start the processes of a run."""

from lshfm_pl.cli import CONFIG_DIR

ROOT = CONFIG_DIR.parent


TINY = (
    "data=shapes", "data.num_train=24", "data.num_val=3", "data.num_test=3", "data.batch_size=2",
    "data.eval_batch_size=2", "schedule=quickstart", "schedule.epochs=1", "model=retinanet_resnet10fpn_tiny",
    "model.min_size=[48,64]", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
)  # fmt: skip


TORCHRUN_SETS = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}  # fmt: skip


SRUN_SETS = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
}  # fmt: skip
