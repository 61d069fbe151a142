"""Optimising a detector that is not trained again: fewer operations and smaller weights, the same outputs."""

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
    """Put a detector into evaluation mode permanently, in place, without gradients.

    Norms with fixed statistics are folded into the convolution before them: kernel and bias are multiplied once
    instead of in every step. Names of tensors change, so a frozen detector must not be saved.

    Args:
        detector: built by `build_detector` or `load_detector`.
        dtype: dtype of autocast if the detector will run under it, otherwise None. Convolutions and linear layers
            store their weights in this dtype, which autocast would otherwise convert at every use. The detector can
            then only run under autocast.

    Returns:
        The same detector.
    """
    network = cast(nn.Module, detector)
    for convolution, parent, name in list(_norm_pairs(detector)):
        norm = parent.get_submodule(name)
        if isinstance(norm, FrozenBatchNorm2d | _BatchNorm):  # otherwise another type, or folded already
            _fold(convolution, norm)
            setattr(parent, name, _rest_of(norm))
    if dtype is not None:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)
    network.eval().requires_grad_(False)
    return detector


def _norm_pairs(detector: Detector) -> Iterator[NormPair]:
    """The norms that the backbone's record names, and those that follow from the order of a `Sequential`."""
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
