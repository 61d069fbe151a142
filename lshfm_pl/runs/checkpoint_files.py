"""Checkpoint files, written so that a whole one is there at any moment."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import atomic_file

__all__ = ["FINGERPRINT_KEY", "LAST", "PREVIOUS", "DurableCheckpointIO", "is_whole", "write_checkpoint"]


LAST, PREVIOUS = "last.ckpt", "last-previous.ckpt"
"""Names of the newest checkpoint with everything to go on from, and of the one before it."""

FINGERPRINT_KEY = "data_fingerprint"
"""In checkpoints: what the run's data are, see `lshfm_pl.data.fingerprint`."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's way to a file, by `write_checkpoint` and without running code from it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint`; of `last.ckpt` keep the one before too."""
        path = Path(path)
        write_checkpoint(checkpoint, path, keep_as=path.with_name(PREVIOUS) if path.name == LAST else None)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read tensors and plain values, and refuse anything else."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def write_checkpoint(checkpoint: Any, path: Path, *, keep_as: Path | None = None) -> None:
    """Write by `torch.save` so that at any moment, even of a power cut, `path` is the old file or the new one.

    Args:
        checkpoint: what to write.
        path: the file.
        keep_as: where the old file stays, under another name.

    Raises:
        LSHFMError: it cannot be written; what was at `path` is as it was.
    """
    try:
        with atomic_file(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if keep_as is not None and path.exists():
                _keep(path, keep_as)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer could not finish its archive
        way_on = (
            f"the one before is kept. Make room and go on with resume=auto, or with resume={path} in another "
            "hydra.run.dir"
            if path.exists()
            else "there is none yet. Make room or give another hydra.run.dir"
        )
        raise LSHFMError(
            f"{path}: the checkpoint could not be written ({_reason(error)}); {way_on}"
        ) from error


def _reason(error: BaseException) -> str:
    """The operating system's word where there is one: torch's writer fails after it, with one of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _keep(path: Path, keep_as: Path) -> None:
    """Give the file a second name, so that the first one is never without a file."""
    second = keep_as.with_name(keep_as.name + ".tmp")
    second.unlink(missing_ok=True)
    try:
        second.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, second)
    second.replace(keep_as)


def _flush_folder(folder: Path) -> None:
    """Have the renaming itself on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(path: Path) -> bool:
    """Whether a file of `torch.save` is neither cut off nor altered: every part has the checksum stored with it."""
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch compresses nothing: to unpack what others have would take any time.
            is_plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            fits = sum(entry.file_size for entry in entries) <= path.stat().st_size
            return is_plain and fits and archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError):
        return False
