"""Norms of backbones that a library has built: finding them, and replacing them by other norms."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.detectors.backbones.norms import FrozenStatsBatchNorm2d, group_norm

__all__ = ["convert_norms", "eps_of", "possible_norms"]

BATCH_NORMS = ("frozen_bn", "bn", "bn_frozen_stats", "gn")
"""Norms that a BatchNorm2d can be or can be replaced by."""


def possible_norms(body: nn.Module) -> tuple[str, ...]:
    """The values of `norm` that a backbone can have. Norms other than BatchNorm2d are not replaced."""
    kinds = {type(norm) for norm in _norms(body)}
    if any(issubclass(kind, nn.BatchNorm2d) for kind in kinds):
        # Norms of vectors cannot be frozen in this way.
        return BATCH_NORMS if not any(issubclass(kind, nn.BatchNorm1d) for kind in kinds) else ("bn",)
    if any(issubclass(kind, nn.BatchNorm1d) for kind in kinds):
        return ("bn",)
    if any(issubclass(kind, nn.GroupNorm) for kind in kinds):
        return ("gn",)
    return ("ln",) if kinds else ("none",)


def eps_of(body: nn.Module) -> float | None:
    """The eps of its first norm; None for a backbone without norms."""
    return next((float(norm.eps) for norm in _norms(body)), None)


def convert_norms(body: nn.Module, norm: str, eps: float) -> None:
    """Replace the norms of a backbone by another kind, in place. Weights, statistics and names stay the same.

    Args:
        body: backbone as its library builds it.
        norm: one of its `possible_norms`.
        eps: eps of all its norms. If it equals that of the first norm, each norm keeps its own.
    """
    if eps != eps_of(body):
        for layer in _norms(body):
            layer.eps = eps
    if norm not in BATCH_NORMS or norm == "bn":
        return
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _converted(child, norm))


def _norms(body: nn.Module) -> Iterator[Any]:
    return (module for module in body.modules() if "Norm" in type(module).__name__ and hasattr(module, "eps"))


class _AndRest(nn.Module):
    """What timm's norms do in addition: an activation, and dropping parts of the map in training."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Apply the norm, then the additional parts."""
        return self.act(self.drop(super().forward(x)))


class _FrozenAndRest(_AndRest, FrozenBatchNorm2d): ...


class _FrozenStatsAndRest(_AndRest, FrozenStatsBatchNorm2d): ...


class _GroupNormAndRest(_AndRest, nn.GroupNorm): ...


def _converted(old: nn.BatchNorm2d, norm: str) -> nn.Module:
    channels, has_rest = old.num_features, hasattr(old, "act")
    new: nn.Module
    match norm:
        case "frozen_bn":
            new = (_FrozenAndRest if has_rest else FrozenBatchNorm2d)(channels, eps=old.eps)
        case "bn_frozen_stats":
            new = (_FrozenStatsAndRest if has_rest else FrozenStatsBatchNorm2d)(channels, eps=old.eps)
        case _:
            new = group_norm(channels, eps=old.eps)
            if has_rest:
                new.__class__ = _GroupNormAndRest
    if has_rest:
        new.drop, new.act = old.get_submodule("drop"), old.get_submodule("act")
    own = new.state_dict()
    new.load_state_dict({key: value for key, value in old.state_dict().items() if key in own})
    return new
