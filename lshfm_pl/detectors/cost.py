"""The size and the computation of a detector."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lshfm_pl.data.batches import as_float
from lshfm_pl.detectors import Detector
from lshfm_pl.kernels.switches import override_switches

__all__ = ["count_parameters", "detector_cost"]


def detector_cost(detector: Detector, image: Tensor) -> dict[str, float]:
    """Number of parameters, size of the weights, and operations for one image.

    Args:
        detector: on any device; put into evaluation mode.
        image: uint8 [3, H, W].

    Returns:
        `parameters` and `trainable_parameters`; `weights_bytes` of all tensors, which is the size of a file with
        only the weights to within some kB; `gflops` of the forward pass on `image`: 10⁹ operations of convolutions
        and matrix products, where a multiply-add counts two, without NMS, RoI pooling and the like.
    """
    trainable, frozen = count_parameters([detector])
    device = next(detector.parameters()).device
    eager = torch.compiler.set_stance("force_eager")  # operations are counted one by one
    # With torch's convolutions, so that the count is the same on every machine.
    with eager, torch.no_grad(), override_switches(winograd=False), FlopCounterMode(display=False) as counter:
        detector.eval()(as_float([image.to(device)]))
    return {
        "parameters": trainable + frozen,
        "trainable_parameters": trainable,
        "weights_bytes": sum(tensor.nbytes for tensor in detector.state_dict().values()),
        "gflops": counter.get_total_flops() / 1e9,
    }


def count_parameters(modules: Sequence[nn.Module]) -> tuple[int, int]:
    """Numbers of (trainable, frozen) parameters."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in parameters) - trainable
