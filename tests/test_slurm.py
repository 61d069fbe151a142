"""The documented script on a real SLURM with two virtual nodes, through signals and requeues to its end."""

import json
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path

import pytest
from process_settings import ROOT, TINY
from slurm_cluster import slurm_cluster, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

EPOCHS = 12

EXPORTS = f"export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1 PYTHONPATH={ROOT}\n"
"""What virtual nodes need: their names have no address."""

REVOKED_SECONDS = 3
"""A node refuses a job that it has just ended: what allows it to start is compared by the second."""

TRAIN = (
    *TINY, "model=fasterrcnn_resnet10fpn_tiny", "data.batch_size=1", f"schedule.epochs={EPOCHS}",
    "trainer.num_nodes=2", "trainer.devices=1", "resume=auto",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    # Not pytest's folder: munge needs a path that others cannot write to, and sockets need a short one.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with slurm_cluster(Path(folder)) as running:
            yield running


def documented_script():
    """The script of docs/distributed.md."""
    blocks = re.findall(r"```\n(#!/bin/bash\n.*?)```", (ROOT / "docs/distributed.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def adapted(script, tmp_path):
    """With this test's training and one process a node."""
    settings = [*TRAIN, f"data.root={tmp_path}/data", f"hydra.run.dir={tmp_path}/run"]
    train = f"srun {shlex.join([sys.executable, '-m', 'lshfm_pl.train', *settings])}"
    script, replaced = re.subn(r"^srun python -m .*$", lambda _: train, script, flags=re.MULTILINE)
    assert replaced == 1
    script = script.replace("--ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8", "--ntasks-per-node=1")
    return script.replace("srun ", EXPORTS + "srun ", 1)


def wait_for(condition, seconds, printed):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (
            printed.read_text()[-3000:] if printed.exists() else "nothing printed"
        )
        time.sleep(0.3)


def submit(cluster, script, printed):
    path = printed.with_suffix(".sh")
    path.write_text(script)
    submitted = cluster.run(
        "sbatch", "--open-mode=append", f"--output={printed}", f"--chdir={ROOT}", str(path)
    )
    return submitted.split()[-1]


def epochs(printed):
    """The epochs of which lines were printed, in their order."""
    return (
        [int(epoch) for epoch in re.findall(r"epoch (\d+)/", printed.read_text())] if printed.exists() else []
    )


def start_again(cluster, job):
    """Start a requeued job now; SLURM itself waits two minutes."""
    time.sleep(REVOKED_SECONDS)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_documented_script_goes_on_after_its_signal_to_the_last_epoch(cluster, tmp_path):
    printed = tmp_path / "job.txt"
    job = submit(cluster, adapted(documented_script(), tmp_path), printed)
    wait_for(lambda: len(epochs(printed)) >= 2, 60, printed)
    cluster.run("scancel", "--signal=USR1", job)  # to the steps, like --signal before the time limit
    wait_for(lambda: cluster.state(job) == "PENDING", 30, printed)
    assert "SIGUSR1: saving after this batch" in printed.read_text()
    assert "Traceback" not in printed.read_text()
    before = len(epochs(printed))
    assert before < EPOCHS
    start_again(cluster, job)
    wait_for(lambda: cluster.state(job) in ("COMPLETED", "FAILED"), 80, printed)
    assert cluster.state(job) == "COMPLETED", printed.read_text()[-3000:] + cluster.log()
    assert epochs(printed) == list(range(1, EPOCHS + 1))  # each line once, and no epoch twice
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2


def test_tasks_of_one_node_train_together_and_its_other_commands_are_one_process(cluster, tmp_path):
    folder = f"hydra.run.dir={tmp_path}"
    data = (*TINY, f"data.root={tmp_path}/data", "model=fasterrcnn_resnet10fpn_tiny", "data.batch_size=1")
    strict = (sys.executable, "-W", "error", "-m")  # a warning of a library would end it
    train = (*strict, "lshfm_pl.train", *data, "trainer.limit_train_batches=2")
    evaluate = (sys.executable, "-m", "lshfm_pl.evaluate", f"checkpoint={tmp_path}/run/checkpoints/last.ckpt")
    lines = [
        "#!/bin/bash",
        "#SBATCH --nodes=1 --ntasks-per-node=2",
        EXPORTS,
        f"srun {shlex.join([*train, 'trainer.devices=2', f'{folder}/run'])}; echo trained $?",
        f"{shlex.join([*evaluate, 'trainer.accelerator=cpu', f'{folder}/evaluation'])}; echo evaluated $?",
        f"srun {shlex.join([sys.executable, '-m', 'lshfm_pl.report', f'runs={tmp_path}/run', f'{folder}/report'])}",
        "echo reported $?",
    ]
    printed = tmp_path / "job.txt"
    job = submit(cluster, "\n".join(lines), printed)
    wait_for(lambda: cluster.state(job) in ("COMPLETED", "FAILED"), 100, printed)
    text = printed.read_text()
    assert "trained 0" in text
    assert "evaluated 0" in text
    assert "reported 1" in text
    assert "srun has started 2 processes of report, which needs only one" in text
    assert "Traceback" not in text
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2
    assert (tmp_path / "evaluation/results.json").is_file()
