"""The data of a run, and whether a run that is resumed had the same data."""

import json
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lshfm_pl.cli import as_dict, refuse_missing_teacher
from lshfm_pl.data.fingerprint import MOST_CHANGES_LISTED, Fingerprint, differences, fingerprint
from lshfm_pl.data.split import division
from lshfm_pl.data.train_labels import OF_TEACHER, TEACHER
from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import write_atomically
from lshfm_pl.runs.reading import read_json
from lshfm_pl.runs.teacher_classes import teacher_class_names

if TYPE_CHECKING:
    from lshfm_pl.data import DetectionDataModule, DetectionDataset

__all__ = ["DATA_FILE", "SPLIT_FILE", "RunData", "fingerprint_in", "refuse_other_data"]

DATA_FILE = "data.json"
"""File in a run's folder with the fingerprint of its data."""

SPLIT_FILE = "split.json"
"""File in a run's folder with the images of each set, if `data.split` is given."""

log = logging.getLogger(__name__)


class RunData:
    """The data of a run, which are read once, when they are first needed.

    Args:
        config: config with the nodes `data` and, for training, `augment` and `teacher`.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config

    @cached_property
    def datamodule(self) -> "DetectionDataModule":
        """The data module, with its annotations read.

        Raises:
            LSHFMError: the data have errors.
        """
        datamodule: DetectionDataModule = instantiate(self._config.data)
        datamodule.use_augmentation(as_dict(self._config.get("augment")))
        if datamodule.train_labels == TEACHER and datamodule.known_class_names is None:
            refuse_missing_teacher(self._config)
            datamodule.use_class_names(teacher_class_names(self._config.teacher), OF_TEACHER)
        datamodule.prepare_data()
        datamodule.setup("fit")
        datamodule.setup("test")  # now, so that errors in the test set are reported before the training
        return datamodule

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the data.

        Raises:
            LSHFMError: the data have errors.
        """
        sets, unlabelled = self._sets, self.datamodule.unlabelled_set
        if unlabelled is not None:
            sets[UNLABELLED] = unlabelled
        return fingerprint(sets, self.datamodule.class_names)

    @property
    def _sets(self) -> dict[str, "DetectionDataset"]:
        """The sets `train`, `val` and `test` that exist."""
        module = self.datamodule
        found: dict[str, DetectionDataset] = {"train": module.train_set}
        if module.has_set("val"):
            found["val"] = module.val_set
        if module.has_set("test"):
            found["test"] = module.test_set
        return found

    def batches(self) -> int:
        """Number of batches of an epoch in a single process."""
        return len(self.datamodule.train_dataloader())

    @property
    def root(self) -> str:
        """The folder of the data, `data.root` of the config."""
        return str(self._config.data.get("root"))

    def write(self, folder: Path) -> None:
        """Write the fingerprint to the run's folder, and the images of each set if they were divided."""
        text = json.dumps(self.fingerprint, indent=2)
        write_atomically(folder / DATA_FILE, (text + "\n").encode("utf-8"))
        module = self.datamodule
        if module.split is not None:
            text = json.dumps(division(module.split, self._sets, module.root), indent=1)
            write_atomically(folder / SPLIT_FILE, (text + "\n").encode("utf-8"))


def fingerprint_in(folder: Path) -> Mapping[str, Any] | None:
    """The fingerprint of the data in a run's folder; None if there is none, or it cannot be read."""
    if not (folder / DATA_FILE).is_file():
        return None
    try:
        found = read_json(folder / DATA_FILE, folder)
    except LSHFMError as error:
        log.warning("%s: %s. The run's data cannot be compared", folder, error)
        return None
    return found if isinstance(found, Mapping) else None


def refuse_other_data(
    place: str, before: Mapping[str, Any] | None, data: RunData, *, root: Any, allow: bool, advice: str
) -> None:
    """Refuse to resume a run that had other data.

    Args:
        place: beginning of the message: the key and the checkpoint or folder of the run.
        before: the run's fingerprint. Of a run without one, `classes` and the number of `batches` in an epoch, if
            known. None compares nothing.
        data: the data of now.
        root: the data folder in the run's settings, for the message.
        allow: only log a warning.
        advice: what to do, for the message.

    Raises:
        LSHFMError: the run had other data.
    """
    if before is None:
        return
    changes = differences(before, data.fingerprint)
    if isinstance(before.get("batches"), int) and before["batches"] != data.batches():
        changes.append(f"train {before['batches']} batches per epoch → {data.batches()}")
    if not changes:
        return
    roots = f"{root} there, {data.root} here" if str(root) != data.root else f"data.root={root}"
    text = f"{place} is of a run on other data ({roots}): {first_few(changes, MOST_CHANGES_LISTED)}"
    if not allow:
        raise LSHFMError(f"{text}. {advice}")
    log.warning("%s; the run continues with the new data, as resume_allow_changes=true is given", text)
