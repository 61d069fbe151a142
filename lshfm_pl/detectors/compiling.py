"""`torch.compile` for the backbones, which hold most of a detector's layers and differ per batch only in sizes."""

import torch
from torch import Tensor

from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.errors import LSHFMError

__all__ = ["compile_backbones"]


def compile_backbones(*detectors: Detector, device: torch.device) -> None:
    """Compile the backbones at their first use. Names and weights of the detectors stay the same.

    They are compiled for all sizes of images at once (`dynamic`), so that multi-scale training compiles only for
    the first batch and the first evaluation.

    Args:
        *detectors: detectors, possibly on another device.
        device: device on which they will run.

    Raises:
        LSHFMError: nothing can be compiled here, for example without a C++ compiler.
    """
    try:
        _probe(device)
    except Exception as error:  # compilers and their settings can fail in any way
        reason = str(error).strip().splitlines() or [""]
        raise LSHFMError(
            f"trainer.compile: torch.compile does not work here ({type(error).__name__}: {reason[0]}); "
            "it needs a C++ compiler, for GPUs Triton; or leave it out"
        ) from error
    for detector in detectors:
        for name in architecture_of(detector).body_modules[:1]:
            detector.get_submodule(name).compile(dynamic=True)


def _probe(device: torch.device) -> None:
    def add_one(x: Tensor) -> Tensor:
        return x + 1

    torch.compile(add_one)(torch.zeros(8, device=device))
