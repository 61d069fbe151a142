"""Running a detector's backbone on the meta device, which computes shapes and graphs but no values."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lshfm_pl.detectors.architecture import architecture_of

__all__ = ["SIDE", "maps_on_meta", "unused_parameters"]

SIDE = 1024
"""Side of the image in pixels: a multiple of all strides."""


def maps_on_meta(
    backbone: nn.Module, *, with_gradient: bool = False
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The maps [1, C, h, w] of a backbone for an image of 1024 × 1024 pixels, on the meta device.

    The backbone and its buffers stay as they are.

    Args:
        backbone: with its pyramid, if it has one.
        with_gradient: whether to record a graph for the parameters that require a gradient.

    Returns:
        The maps, and the parameters on the meta device by name.
    """
    parameters = {
        name: _on_meta(parameter).requires_grad_(with_gradient and parameter.requires_grad)
        for name, parameter in backbone.named_parameters()
    }
    buffers = {name: _on_meta(buffer) for name, buffer in backbone.named_buffers()}
    image = torch.empty(1, 3, SIDE, SIDE, dtype=next(backbone.parameters()).dtype, device="meta")
    with torch.set_grad_enabled(with_gradient), torch.compiler.set_stance("force_eager"):
        maps = functional_call(backbone, {**parameters, **buffers}, (image,))
    return [maps] if isinstance(maps, Tensor) else list(maps.values()), parameters


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def unused_parameters(detector: Any) -> list[str]:
    """Names of parameters that require a gradient and never get one, since no map depends on them.

    Some backbones have such parts: HRNet's last modules compute maps that a detector does not read.
    """
    name = architecture_of(detector).body_modules[0]
    maps, parameters = maps_on_meta(detector.get_submodule(name), with_gradient=True)
    trained = {key: value for key, value in parameters.items() if value.requires_grad}
    outputs = [level for level in maps if level.requires_grad]
    if not outputs:
        return []
    gradients = torch.autograd.grad(
        outputs, list(trained.values()), [torch.ones_like(level) for level in outputs], allow_unused=True
    )
    return [f"{name}.{key}" for key, gradient in zip(trained, gradients, strict=True) if gradient is None]
