"""`torch.compile` of the backbones: most of a detector's layers, and only sizes differ from batch to batch."""

import torch
from torch import Tensor

from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.errors import LSHFMError

__all__ = ["compile_backbones"]


def compile_backbones(*detectors: Detector, device: torch.device) -> None:
    """Have the backbones compiled when they first run; the names and weights of the detectors stay.

    For any size of images at once (`dynamic`), so that multi-scale training compiles no more than the first batch
    and the first evaluation do.

    Args:
        *detectors: may still be on another device.
        device: where they will run.

    Raises:
        LSHFMError: nothing can be compiled here, such as for want of a C++ compiler.
    """
    try:
        _probe(device)
    except Exception as error:  # whatever is wrong with compilers and their settings
        reason = str(error).strip().splitlines()
        raise LSHFMError(
            f"compile: torch.compile does not work here ({type(error).__name__}: {reason[0] if reason else ''}); "
            "it needs a C++ compiler, for GPUs Triton; or leave out compile=true"
        ) from error
    for detector in detectors:
        for name in architecture_of(detector).body_modules[:1]:
            detector.get_submodule(name).compile(dynamic=True)


def _probe(device: torch.device) -> None:
    def add_one(x: Tensor) -> Tensor:
        return x + 1

    torch.compile(add_one)(torch.zeros(8, device=device))
