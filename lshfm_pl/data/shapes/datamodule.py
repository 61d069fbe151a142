"""The data module of synthetic shapes."""

from pathlib import Path
from typing import Any

from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES, ShapesSpec, generate_shapes, shapes_folder
from lshfm_pl.data.stored_config import root_of_scenes
from lshfm_pl.data.voc.datamodule import VOCDataModule

__all__ = ["ShapesDataModule"]


class ShapesDataModule(VOCDataModule):
    """Synthetic shapes (see `lshfm_pl.data.shapes.scenes`), generated below `root` by `prepare_data`.

    Args:
        root: folder below which the scenes are written.
        image_size: see `ShapesSpec`, also for the next three.
        num_train: number of training scenes.
        num_val: number of validation scenes.
        num_test: number of test scenes.
        scene_seed: seed of the scenes; `seed` is that of the order and the transforms.
        **loading: arguments of `VOCDataModule`: `batch_size`, `num_workers`, `seed`, …

    Raises:
        LSHFMError: a value is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        image_size: int = 128,
        num_train: int = 600,
        num_val: int = 100,
        num_test: int = 200,
        scene_seed: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(
            root=root,
            train_split="train",
            val_split="val",
            test_split="test",
            class_names=SHAPE_CLASSES,
            **loading,
        )
        self.spec = ShapesSpec(
            image_size=image_size, num_train=num_train, num_val=num_val, num_test=num_test, seed=scene_seed
        )

    def write_only_below(self, folder: Path | None) -> None:
        """Draw missing scenes below `folder`; see the base class."""
        self.root = root_of_scenes(self.root, self.spec, folder)

    def prepare_data(self) -> None:
        """Generate the scenes unless they exist."""
        generate_shapes(self.root, self.spec)

    def _data_folder(self) -> Path:
        return shapes_folder(self.root, self.spec)
