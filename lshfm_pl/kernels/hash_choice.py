"""Which implementation of the fused hash loss is used: torch's operations, or the Triton kernel.

With `kernels.hash=auto` the Triton kernel is used only on CUDA devices on which `python -m lshfm_pl.selfcheck`
has found it right and faster (`remember`). The findings are in a file of the user's cache folder, by
device, versions and the kernel's text.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes, write_json
from lshfm_pl.kernels.switches import switches

__all__ = [
    "Features",
    "driver_version",
    "is_interpreted",
    "key_of_device",
    "memory_file",
    "remember",
    "uses_triton",
    "why_not_triton",
]

Features = Literal["rows", "maps"]
"""What the hash loss compares. Each has a finding of its own."""

_LARGEST_FILE = 2**20
_MOST_DEVICES = 100
"""Findings that are kept, the newest ones."""


def uses_triton(features: Features, device: torch.device) -> bool:
    """Whether the switches choose the Triton kernel for features on this device.

    In torch's deterministic mode `auto` never does, so that a resumed run gives equal bits even if the device was
    checked in between.

    Raises:
        LSHFMError: `kernels.hash=triton`, but it cannot run here.
    """
    if switches().hash == "plain":
        return False
    if switches().hash == "triton":
        if (reason := why_not_triton(device)) is not None:
            raise LSHFMError(
                f"kernels.hash=triton: expected a CUDA device and Triton, found {reason}; give kernels.hash=auto"
            )
        return True
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return False
    return features in _proven(device.index if device.index is not None else torch.cuda.current_device())


def why_not_triton(device: torch.device) -> str | None:
    """Why the Triton kernel cannot run on this device; None if it can."""
    if not _is_installed():
        return "no Triton (pip install triton)"
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return f"the device {device.type}"
    return None


def is_interpreted() -> bool:
    """Whether Triton computes on the CPU, by its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def memory_file() -> Path:
    """The file of the findings, in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "lshfm_pl" / "hash_kernels.json"


def remember(device: torch.device, good: Mapping[Features, bool]) -> Path:
    """Write whether the Triton kernel is right and faster than torch's operations on a device.

    Returns:
        The path of the file.

    Raises:
        OSError: the file cannot be written.
    """
    found = _findings()
    key = key_of_device(device)
    found.pop(key, None)
    found[key] = [name for name, is_good in good.items() if is_good]
    path = memory_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(dict(list(found.items())[-_MOST_DEVICES:]), path)
    _proven.cache_clear()
    return path


def key_of_device(device: torch.device) -> str:
    """Name of a CUDA device, driver, versions of CUDA, torch and Triton, and a hash of the kernel's text."""
    import triton

    text = Path(__file__).with_name("triton_hash_loss.py").read_bytes()
    parts = (
        torch.cuda.get_device_name(device),
        f"driver {driver_version()}",
        f"CUDA {torch.version.cuda}",
        f"torch {torch.__version__}",
        f"triton {triton.__version__}",
        hashlib.sha256(text).hexdigest()[:12],
    )
    return ", ".join(parts)


def driver_version() -> str:
    """The version of NVIDIA's driver; `unknown` if the system does not tell it."""
    with suppress(OSError, UnicodeDecodeError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        if (found := re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)) is not None:
            return found[0]
    return "unknown"


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _proven(index: int) -> frozenset[str]:
    """The features for which the kernel was found right and faster on a CUDA device."""
    device = torch.device("cuda", index)
    if why_not_triton(device) is not None:
        return frozenset()
    return frozenset(_findings().get(key_of_device(device), ()))


def _findings() -> dict[str, list[str]]:
    """The content of the file. A missing or damaged file has none: it is only a memory."""
    content: Any = None
    with suppress(LSHFMError, ValueError, RecursionError):
        content = json.loads(read_bytes(memory_file(), limit=_LARGEST_FILE))
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, list)}
