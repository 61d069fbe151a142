"""The data module of pictures without any labels."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.train_labels import TEACHER, TrainLabels, no_set
from lshfm_pl.data.unlabelled import found_pictures
from lshfm_pl.errors import LSHFMError

__all__ = ["PicturesDataModule"]


class PicturesDataModule(DetectionDataModule):
    """A folder of pictures, or a list of them. There are no validation and no test pictures.

    The class names are those of a detector, see `use_class_names`.

    Args:
        root: a folder, which is searched with its sub-folders, or a text file with a path in each line, as for
            `data.unlabelled`.
        train_labels: `teacher`; there are no annotations.
        **loading: arguments of `DetectionDataModule`: `batch_size`, `num_workers`, `seed`, …

    Raises:
        LSHFMError: a value is out of range.
    """

    def __init__(self, *, root: str | Path, train_labels: TrainLabels = TEACHER, **loading: Any) -> None:
        super().__init__(root=root, train_labels=train_labels, **loading)
        if train_labels != TEACHER:
            raise LSHFMError(
                f"data.train_labels: expected {TEACHER}, since data=pictures has no annotations, found "
                f"{train_labels}."
            )

    def training_pictures(self, faults: FaultLog) -> Iterable[Path]:
        """See the base class. They are sorted by path."""
        return sorted(found_pictures(self.root, self.root.parent, faults))

    def read_set(self, split: str, faults: FaultLog) -> DetectionDataset:
        """Raise, since there is no set with labels.

        Raises:
            LSHFMError: always.
        """
        raise LSHFMError(no_set(split))

    def source(self, split: str) -> tuple[str, object]:
        """See the base class."""
        return "root", (self.root,) if split == "train" else None
