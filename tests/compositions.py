"""Composed configs of `compare`, and a small data set of the user's own."""

from hydra import compose, initialize_config_dir
from voc_files import object_xml, write_voc

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.spelling import translate_arguments


def composed(*arguments, command="compare"):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(command, overrides=translate_arguments(command, arguments), return_hydra_config=True)


def small_training(folder, *overrides):
    """The config of a short training of a small RetinaNet on drawn scenes in `folder`."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(
            "train",
            [
                "data=shapes", f"data.root={folder}/data", "data.num_val=2", "data.num_test=2", "data.batch_size=4",
                "schedule=quickstart", "schedule.epochs=2", "model=retinanet_resnet10fpn_tiny",
                "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.last.every_n_steps=1",
                *overrides,
            ],
        )  # fmt: skip


def voc_set(folder):
    """Twelve training and four test pictures of 96 × 80 pixels with two classes."""
    for split, names in (("train", range(12)), ("val", range(12, 16))):
        images = {
            f"{name:03d}": (
                (96, 80),
                [object_xml("cat", (5, 5, 40, 38)), object_xml("dog", (45, 30, 90, 70))],
            )
            for name in names
        }
        write_voc(folder, split, images)
    return folder
