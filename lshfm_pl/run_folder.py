"""The folder of a run: that it can be written, has room, and belongs to one process at a time."""

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from torch import Tensor

from lshfm_pl.errors import LSHFMError

__all__ = [
    "RefuseUnwritableFolder",
    "lock_run",
    "refuse_full_disk",
    "refuse_unwritable",
    "training_state_bytes",
]

LOCK_SECONDS = 20
"""How long to wait for a run that has just been killed: its loader's workers live a few seconds longer."""

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
    """For Hydra, which makes the run's folder before our commands begin and would show a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check `hydra.run.dir`."""
        self._check(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check `hydra.sweep.dir`."""
        self._check(config.hydra.sweep.dir)

    def _check(self, folder: str) -> None:
        try:
            refuse_unwritable(Path(folder))
        except LSHFMError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)  # Hydra passes over any other exception of a callback


def training_state_bytes(module: pl.LightningModule, optimizer: str) -> int:
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


@contextlib.contextmanager
def lock_run(output_dir: Path) -> Iterator[None]:
    """Claim the run's folder inside this context, so that no second process writes there.

    Where the file system knows no locks nothing is claimed.

    Raises:
        LSHFMError: a process that is alive has claimed it.
    """
    descriptor = os.open(output_dir, os.O_RDONLY)
    end = time.monotonic() + LOCK_SECONDS
    try:
        while not _locked(descriptor):
            if time.monotonic() > end:
                raise LSHFMError(
                    f"{output_dir}: another process is at this run; wait for it or give another hydra.run.dir"
                )
            time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
