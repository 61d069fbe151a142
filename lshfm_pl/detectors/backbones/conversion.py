"""Norms of bodies that a library has built: which they have, and others in their place."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.detectors.backbones.norms import FrozenStatsBatchNorm2d, group_norm

__all__ = ["convert_norms", "eps_of", "possible_norms"]

BATCH_NORMS = ("frozen_bn", "bn", "bn_frozen_stats", "gn")
"""What a BatchNorm2d can be or become."""


def possible_norms(body: nn.Module) -> tuple[str, ...]:
    """The values of `norm` that a body can have: other norms than BatchNorm2d stay what they are."""
    kinds = {type(norm) for norm in _norms(body)}
    if any(issubclass(kind, nn.BatchNorm2d) for kind in kinds):
        # Norms of vectors cannot be frozen in the same way.
        return BATCH_NORMS if not any(issubclass(kind, nn.BatchNorm1d) for kind in kinds) else ("bn",)
    if any(issubclass(kind, nn.BatchNorm1d) for kind in kinds):
        return ("bn",)
    if any(issubclass(kind, nn.GroupNorm) for kind in kinds):
        return ("gn",)
    return ("ln",) if kinds else ("none",)


def eps_of(body: nn.Module) -> float | None:
    """Of the first of its norms; None for a body without."""
    return next((float(norm.eps) for norm in _norms(body)), None)


def convert_norms(body: nn.Module, norm: str, eps: float) -> None:
    """Give a body norms of another kind, in place; weights, statistics and their names stay.

    Args:
        body: as its library builds it.
        norm: one of its `possible_norms`.
        eps: of all its norms; where it is that of the first one, each keeps its own.
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
    """What timm's norms do besides: an activation, and dropping of parts of the map in training."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """The norm of the class beside, then the rest."""
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
