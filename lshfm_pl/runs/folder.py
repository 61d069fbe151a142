"""The folder of a run: that it can be written and has room, before anything is written there."""

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

if TYPE_CHECKING:  # Hydra imports this module before the command's own, which takes seconds
    import pytorch_lightning as pl
    from torch import Tensor

__all__ = [
    "RefuseUnwritableFolder",
    "refuse_full_disk",
    "refuse_unwritable",
    "training_state_bytes",
]

PROBE_BYTES = 65536
"""About what Hydra writes into a new folder before anything else does."""


def refuse_unwritable(folder: Path) -> None:
    """Make `folder`, and stop if that or writing into it fails.

    Raises:
        LSHFMError: it does.
    """
    probe = folder / ".write_test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        raise LSHFMError(
            f"{folder}: expected a folder that can be written, found: {error.strerror}. Give another hydra.run.dir"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class RefuseUnwritableFolder(Callback):
    """For Hydra, which writes into the run's folder before our commands begin, and would show a traceback.

    A folder in which another process is at work is refused here too, before a file in it is touched.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check `hydra.run.dir`, and claim it until the process ends."""
        trainer = config.get("trainer") or {}
        on_first_node = trainer.get("num_nodes") == 1 or int(os.environ.get("NODE_RANK") or 0) == 0
        self._check(config.hydra.run.dir, claim=is_first_process() and on_first_node)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check `hydra.sweep.dir`; each job claims its own folder."""
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
            sys.exit(1)  # Hydra passes over any other exception of a callback


def training_state_bytes(module: "pl.LightningModule", optimizer: str) -> int:
    """Bytes of a checkpoint with the optimizer's state: as float32 one more per trainable value, for AdamW two."""
    tensors: Iterable[Tensor] = module.state_dict().values()
    moments = 2 if optimizer == "adamw" else 1
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 4 * moments * trainable


def refuse_full_disk(folder: Path, checkpoint_bytes: int) -> None:
    """Stop before training if the run's `folder` has no room for its checkpoints or cannot be written.

    Counted are the newest checkpoint, the one before and the one being written, and the best weights.

    Raises:
        LSHFMError: it cannot be written or has too little room.
    """
    refuse_unwritable(folder)
    there = sum(path.stat().st_size for path in folder.glob("checkpoints/*.ckpt"))
    needed = 4 * checkpoint_bytes - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LSHFMError(
            f"{folder}: expected room for the checkpoints, {needed / 1e6:,.0f} MB, found {free / 1e6:,.0f} MB. "
            "Make room or give another hydra.run.dir"
        )
