"""A detector that is never trained again: fewer operations and smaller weights, the same outputs."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.backbones.backbone import backbone
from lshfm_pl.detectors.backbones.norms import NormPair, pairs_in_sequences
from lshfm_pl.detectors.build import Detector

__all__ = ["freeze"]


def freeze(detector: Detector, dtype: torch.dtype | None = None) -> Detector:
    """Put a detector into evaluation mode for good, in place, without gradients.

    Norms of fixed statistics become part of the convolution before them: its kernel and bias are multiplied once
    instead of every step. The names of the tensors are others afterwards, so a frozen detector is not for saving.

    Args:
        detector: of `build_detector` or `load_detector`.
        dtype: that of autocast where the detector will run in it, else None. Convolutions and linear layers keep
            their weights in it, as autocast would make them of float32 at every use; outside of autocast the
            detector no longer runs then.

    Returns:
        The same detector.
    """
    network = cast(nn.Module, detector)
    for convolution, parent, name in list(_norm_pairs(detector)):
        norm = parent.get_submodule(name)
        if isinstance(norm, FrozenBatchNorm2d | _BatchNorm):  # else another one, or found twice and gone
            _fold(convolution, norm)
            setattr(parent, name, _rest_of(norm))
    if dtype is not None:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)
    network.eval().requires_grad_(False)
    return detector


def _norm_pairs(detector: Detector) -> Iterator[NormPair]:
    """Those that the body's record knows, and those that the order of a sequence tells anywhere."""
    network = cast(nn.Module, detector)
    config = getattr(detector, "config", {})
    if "backbone" in config:
        for name in architecture_of(network).body_modules:
            yield from backbone(config["backbone"]).norm_pairs(network.get_submodule(name))
    yield from pairs_in_sequences(network)


def _rest_of(norm: nn.Module) -> nn.Module:
    """What it does besides, as timm's norms do: an activation."""
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _fold(convolution: nn.Conv2d, norm: nn.Module) -> None:
    statistics = [getattr(norm, name) for name in ("running_mean", "running_var", "eps", "weight", "bias")]
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, *statistics
    )
