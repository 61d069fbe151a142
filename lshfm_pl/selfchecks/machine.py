"""What the device of this machine can compute."""

from collections.abc import Iterator

import torch
from omegaconf import DictConfig

from lshfm_pl.kernels.hash_choice import why_not_triton
from lshfm_pl.selfchecks.findings import Line
from lshfm_pl.training.precision import is_emulated

__all__ = ["check_machine"]


def check_machine(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """What the device can compute."""
    if device.type == "cpu":
        yield Line("GPU", "not checked", "the check runs on the CPU")
        slow = "emulated, and slower than float32" if is_emulated("bf16-mixed", device) else "in hardware"
        yield Line("bfloat16", "measured", slow)
    else:
        name = torch.cuda.get_device_name(device)
        yield Line("GPU", "measured", f"{name}, {torch.cuda.mem_get_info(device)[0] / 2**30:.1f} GiB free")
        is_known = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Line("bfloat16", "measured", "in hardware" if is_known else "emulated")
    reason = why_not_triton(device)
    if reason is None:
        yield Line("Triton", "measured", "can be used")
    else:
        yield Line("Triton", "not checked", f"needs a CUDA device and Triton, found {reason}")
