"""Reading files of weights without running code from them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lshfm_pl.errors import LSHFMError

__all__ = ["UnsafeFileError", "download_torch_file", "read_torch_file"]

_REFUSED_TYPE = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")


class UnsafeFileError(LSHFMError):
    """A file that needs more than tensors and plain Python values to be read."""


def read_torch_file(path: str | Path, *, allowed_types: Sequence[type] = ()) -> Any:
    """Read a file written by ``torch.save`` onto the CPU, with ``weights_only=True``.

    Args:
        path: the file.
        allowed_types: types that may be rebuilt besides tensors and plain Python values.

    Raises:
        LSHFMError: there is no such file, or it is not a whole file of ``torch.save``.
        UnsafeFileError: the file asks for another type; nothing of it was run.
    """
    path = Path(path)
    if not path.is_file():
        raise LSHFMError(
            f"{path}: expected a file of weights, found {'a folder' if path.is_dir() else 'nothing'}."
        )
    try:
        with torch.serialization.safe_globals(list(allowed_types)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise LSHFMError(f"{path}: cannot be read ({error}).") from error
    except Exception as error:  # a broken stream can lead the unpickler to any exception
        refused = _REFUSED_TYPE.search(str(error))
        if refused:
            raise UnsafeFileError(
                f"{path}: holds {refused[1]}, expected tensors and plain values only. "
                "Rebuilding other types can run code, so the file was not loaded."
            ) from error
        raise LSHFMError(
            f"{path}: not a whole file of torch.save ({path.stat().st_size} bytes). "
            "Copy or download it again, or give another path."
        ) from error


def download_torch_file(url: str, *, check_hash: bool, key: str, advice: str) -> Any:
    """Read a file of ``torch.save`` from the web, or from torch's cache, with ``weights_only=True``.

    Args:
        url: where it is.
        check_hash: compare it with the hash in its name.
        key: the setting that asked for it, for the message.
        advice: what to do where it cannot be had.

    Raises:
        LSHFMError: it cannot be had, or is not what it should be.
    """
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=check_hash, weights_only=True
        )
    except Exception as error:  # no network, no such page, no room, wrong hash, not a file of torch.save
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise LSHFMError(f"{key}: {url} could not be had ({reason}). {advice}") from error
