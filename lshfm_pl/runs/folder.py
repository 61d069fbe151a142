"""Checks of a run's folder before anything is written there: it is writable, unused, and has enough free space."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.lock import hold_folder
from lshfm_pl.signals import is_first_process

if TYPE_CHECKING:  # Hydra imports this module early, and these imports take seconds
    import pytorch_lightning as pl
    from torch import Tensor

__all__ = [
    "RefuseUnwritableFolder",
    "refuse_full_disk",
    "refuse_unwritable",
    "training_state_bytes",
]

PROBE_BYTES = 65536
"""About as much as Hydra writes to a new folder."""


def refuse_unwritable(folder: Path) -> None:
    """Create `folder` if needed, and check that it can be written.

    Raises:
        LSHFMError: it cannot be created or written.
    """
    probe = folder / ".write_test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        raise LSHFMError(
            f"{folder}: expected a writable folder, found: {error.strerror}. Give another hydra.run.dir"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class RefuseUnwritableFolder(Callback):
    """A Hydra callback that checks the run's folder.

    Hydra itself writes to the folder before our commands start, and would show a traceback if that failed. A folder
    that another process uses is refused here too, before any file in it is changed.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check `hydra.run.dir`, and lock it until the process ends."""
        trainer = config.get("trainer") or {}
        on_first_node = trainer.get("num_nodes") == 1 or int(os.environ.get("NODE_RANK") or 0) == 0
        self._check(config.hydra.run.dir, claim=is_first_process() and on_first_node)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check `hydra.sweep.dir`; each job locks its own folder."""
        self._check(config.hydra.sweep.dir, claim=False)

    def _check(self, folder: str, *, claim: bool) -> None:
        try:
            if claim and Path(folder).is_dir():
                hold_folder(Path(folder))
            refuse_unwritable(Path(folder))
            if claim:
                hold_folder(Path(folder))
        except LSHFMError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)  # Hydra ignores any other exception of a callback


def training_state_bytes(
    module: "pl.LightningModule", optimizer: str | None, *, is_averaged: bool = False
) -> int:
    """Bytes of a checkpoint with optimizer state: a float32 value per trainable parameter, two for others than SGD.

    With an average of the weights they are stored twice.
    """
    tensors: Iterable[Tensor] = module.state_dict().values()
    moments = 1 if optimizer == "sgd" else 2
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    of_weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return of_weights * (1 + is_averaged) + 4 * moments * trainable


def refuse_full_disk(folder: Path, checkpoint_bytes: int) -> None:
    """Check that the run's `folder` is writable and has enough free space for its checkpoints.

    These are the newest checkpoint, the previous one, the one that is being written, and the best weights.

    Raises:
        LSHFMError: the folder cannot be written, or has too little space.
    """
    refuse_unwritable(folder)
    there = sum(path.stat().st_size for path in folder.glob("checkpoints/*.ckpt"))
    needed = 4 * checkpoint_bytes - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LSHFMError(
            f"{folder}: expected {needed / 1e6:,.0f} MB of free space for the checkpoints, found "
            f"{free / 1e6:,.0f} MB. Free some space or give another hydra.run.dir"
        )
