"""Maps inside of the classification and the regression tower of a dense head, and the head from there on."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lshfm_pl.detectors.full_precision import at_least_float32
from lshfm_pl.mimic.heads import HeadOutput, HeldMaps, Place

__all__ = ["RestOfTowers", "depth_of", "hook_place", "maps_at"]


def _towers(head: Any) -> dict[str, nn.Module]:
    return {"classification": head.classification_head.conv, "regression": head.regression_head.conv}


def _blocks(tower: nn.Module) -> list[list[nn.Module]]:
    """The layers of a tower in order, in groups that end with a ReLU."""
    blocks: list[list[nn.Module]] = [[]]
    for layer in tower.modules():
        if next(layer.children(), None) is None:
            blocks[-1].append(layer)
            if isinstance(layer, nn.ReLU):
                blocks.append([])
    return [block for block in blocks if block]


def depth_of(head: Any) -> int:
    """The number of convolutions that both towers have."""
    return min(len(_blocks(tower)) for tower in _towers(head).values())


def hook_place(stack: ExitStack, head: Any, place: Place, held: HeldMaps) -> None:
    """Add hooks that fill `held` with the maps at a place in a forward pass; `stack` removes them.

    The place has at least one convolution before it.
    """

    def hook(relu: nn.Module, name: str) -> None:
        def keep_before(module: nn.Module, inputs: tuple[Tensor]) -> None:
            # A copy, since the ReLU overwrites its input.
            held.setdefault(name, []).append(inputs[0].clone())

        def keep_after(module: nn.Module, inputs: Any, output: Tensor) -> None:
            held.setdefault(name, []).append(output)

        handle = (
            relu.register_forward_pre_hook(keep_before)
            if place.is_before_relu
            else relu.register_forward_hook(keep_after)
        )
        stack.callback(handle.remove)

    for name, tower in _towers(head).items():
        hook(_blocks(tower)[place.convolutions - 1][-1], name)


def maps_at(head: Any, pyramid: list[Tensor], place: Place) -> HeldMaps:
    """The maps that a head computes from a pyramid's maps up to a place."""
    held = {}
    for name, tower in _towers(head).items():
        layers = list(chain(*_blocks(tower)[: place.convolutions]))
        if place.is_before_relu and layers:
            layers = layers[:-1]
        held[name] = [nn.Sequential(*layers)(level) for level in pyramid]
    return held


class RestOfTowers:
    """A frozen head from a place on, see `RestOfHead`. The maps that it takes are those after the ReLU.

    It computes in the dtype of its weights, under autocast if that is not a full one, and returns at least float32.

    Args:
        head: the teacher's head.
        place: where the maps are held.
        read: function of the maps [B, A·K, h, w] and [B, A·4, h, w] of each level that the last layers compute.
    """

    def __init__(
        self, head: Any, place: Place, read: Callable[[list[Tensor], list[Tensor]], HeadOutput]
    ) -> None:
        last = {
            "classification": head.classification_head.cls_logits,
            "regression": head.regression_head.bbox_reg,
        }
        self._layers = {
            name: [*chain(*_blocks(tower)[place.convolutions :]), last[name]]
            for name, tower in _towers(head).items()
        }
        self._read = read

    def __call__(self, held: HeldMaps) -> HeadOutput:
        """What the head predicts from these maps."""
        outputs = {
            name: [self._run(layers, level) for level in held[name]] for name, layers in self._layers.items()
        }
        return self._read(outputs["classification"], outputs["regression"])

    @staticmethod
    def _run(layers: list[nn.Module], level: Tensor) -> Tensor:
        dtype = next(layers[-1].parameters()).dtype
        is_low = dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(level.device.type, dtype=dtype) if is_low else nullcontext():
            return at_least_float32(nn.Sequential(*layers)(level.to(dtype)))
