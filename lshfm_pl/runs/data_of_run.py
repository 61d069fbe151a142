"""What data a run is on, and whether a run that is to go on was on the same."""

import json
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lshfm_pl.data.fingerprint import MOST_CHANGES_LISTED, Fingerprint, differences, fingerprint
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import write_atomically
from lshfm_pl.runs.reading import read_json

if TYPE_CHECKING:
    from lshfm_pl.data import DetectionDataModule

__all__ = ["DATA_FILE", "RunData", "fingerprint_in", "refuse_other_data"]

DATA_FILE = "data.json"
"""In a run's folder: the fingerprint of its data."""

log = logging.getLogger(__name__)


class RunData:
    """The data of a run, read when they are first asked for and once.

    Args:
        config: of the run.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config

    @cached_property
    def datamodule(self) -> "DetectionDataModule":
        """The data module, its annotations read.

        Raises:
            LSHFMError: something is wrong with the data.
        """
        datamodule: DetectionDataModule = instantiate(self._config.data)
        datamodule.prepare_data()
        datamodule.setup("fit")
        datamodule.setup("test")  # now: what is wrong with it is told before the training, not after
        return datamodule

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What the data are.

        Raises:
            LSHFMError: as `datamodule`.
        """
        module = self.datamodule
        sets = {"train": module.train_set, "val": module.val_set, "test": module.test_set}
        return fingerprint(sets, module.class_names)

    def batches(self) -> int:
        """Batches that one process makes of the training set in an epoch."""
        return len(self.datamodule.train_dataloader())

    @property
    def root(self) -> str:
        """The folder that the settings name."""
        return str(self._config.data.get("root"))

    def write(self, folder: Path) -> None:
        """Keep the fingerprint in the run's folder."""
        text = json.dumps(self.fingerprint, indent=2)
        write_atomically(folder / DATA_FILE, (text + "\n").encode("utf-8"))


def fingerprint_in(folder: Path) -> Mapping[str, Any] | None:
    """The fingerprint that a run's folder holds, None where it has none that can be read."""
    if not (folder / DATA_FILE).is_file():
        return None
    try:
        found = read_json(folder / DATA_FILE, folder)
    except LSHFMError as error:
        log.warning("%s: %s: the run's data cannot be compared", folder, error)
        return None
    return found if isinstance(found, Mapping) else None


def refuse_other_data(
    place: str, before: Mapping[str, Any] | None, data: RunData, *, root: Any, allow: bool, way_out: str
) -> None:
    """Stop if a run was on other data than those of `data`.

    Args:
        place: the checkpoint or folder of the run, and who asks, for the message.
        before: the run's fingerprint, or `classes` and `batches` an epoch of a run that has none; None compares
            nothing.
        data: those of today.
        root: the folder that the run's settings name, for the message.
        allow: only warn.
        way_out: what to do, for the message.

    Raises:
        LSHFMError: it was.
    """
    if before is None:
        return
    told = differences(before, data.fingerprint)
    if isinstance(before.get("batches"), int) and before["batches"] != data.batches():
        told.append(f"train {before['batches']} batches an epoch → {data.batches()}")
    if not told:
        return
    roots = f"{root} there, {data.root} here" if str(root) != data.root else f"data.root={root}"
    text = f"{place} is of a run on other data ({roots}): {first_few(told, MOST_CHANGES_LISTED)}"
    if not allow:
        raise LSHFMError(f"{text}. {way_out}")
    log.warning("%s; it goes on with these, as resume_allow_changes=true says", text)
