"""Checkpoint files, written atomically: a complete file exists at any moment."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import atomic_file
from lshfm_pl.runs.result_files import LAST, PREVIOUS

__all__ = ["FINGERPRINT_KEY", "DurableCheckpointIO", "is_intact", "write_checkpoint"]


FINGERPRINT_KEY = "data_fingerprint"
"""Key of a checkpoint: the fingerprint of the run's data, see `lshfm_pl.data.fingerprint`."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, but written by `write_checkpoint`, and read without running code from them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint`. An earlier `last.ckpt` is kept under another name."""
        path = Path(path)
        write_checkpoint(checkpoint, path, keep_as=path.with_name(PREVIOUS) if path.name == LAST else None)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read tensors and plain values; anything else is an error."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def write_checkpoint(checkpoint: Any, path: Path, *, keep_as: Path | None = None) -> None:
    """Write with `torch.save`, atomically: even in a power failure `path` is the old file or the new one.

    Args:
        checkpoint: the content.
        path: the file.
        keep_as: path under which the old file is kept; None does not keep it.

    Raises:
        LSHFMError: the file cannot be written; the old file is unchanged.
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
        advice = (
            f"the previous one is kept. Free some space and continue with resume=auto, or with resume={path} in "
            "another hydra.run.dir"
            if path.exists()
            else "there is no earlier one. Free some space or give another hydra.run.dir"
        )
        raise LSHFMError(
            f"{path}: the checkpoint could not be written ({_reason(error)}); {advice}"
        ) from error


def _reason(error: BaseException) -> str:
    """The reason of an error: the operating system's message if there is one, else that of torch's writer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _keep(path: Path, keep_as: Path) -> None:
    """Keep the file under a second name, without removing the first one."""
    second = keep_as.with_name(keep_as.name + ".tmp")
    second.unlink(missing_ok=True)
    try:
        second.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, second)
    second.replace(keep_as)


def _flush_folder(folder: Path) -> None:
    """Flush the folder to the disk, so that the renaming of a file is durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_intact(path: Path) -> bool:
    """Whether a file of `torch.save` is complete and unchanged, by the checksums of its parts."""
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch does not compress. Unpacking a compressed file of unknown origin could take any time.
            is_plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            fits = sum(entry.file_size for entry in entries) <= path.stat().st_size
            return is_plain and fits and archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError):
        return False
