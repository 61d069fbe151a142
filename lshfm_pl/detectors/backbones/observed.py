"""Finding which norm follows which convolution, by observing a forward pass."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lshfm_pl.detectors.backbones.norms import NormPair

__all__ = ["observed_pairs"]

SIDE = 64
"""Side in pixels of the image that is used."""


class _Uses(TorchFunctionMode):
    """Counts the operations that read each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(
            isinstance(value, Tensor) for value in tree_leaves(result)
        ):  # reading only a shape does not count
            self.of.update(id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        return result


def observed_pairs(body: nn.Module) -> Iterator[NormPair]:
    """Norms that are the only readers of a convolution's output, in a forward pass with an image of zeros.

    Args:
        body: accepts images [N, 3, H, W]; left in evaluation mode.
    """
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    calls: Counter[nn.Module] = Counter()
    read: dict[nn.Module, tuple[nn.Conv2d, Tensor]] = {}
    uses = _Uses()

    def after(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls[layer] += 1
        assert isinstance(layer, nn.Conv2d)
        made[id(output)] = layer, output  # kept alive, so that no other tensor gets its id
        uses.of[id(output)] = 0  # forget an earlier tensor with this id

    def before(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[layer] += 1
        if id(inputs[0]) in made:
            read[layer] = made[id(inputs[0])]

    norms = {
        child: (parent, name)
        for parent in body.modules()
        for name, child in parent.named_children()
        if hasattr(child, "running_mean")
    }
    handles = [norm.register_forward_pre_hook(before) for norm in norms]
    handles += [
        layer.register_forward_hook(after) for layer in body.modules() if isinstance(layer, nn.Conv2d)
    ]
    weight = next(body.parameters())
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad(), uses:
            body.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    for norm, (parent, name) in norms.items():
        if norm not in read:
            continue
        convolution, output = read[norm]
        if calls[convolution] == calls[norm] == 1 and uses.of[id(output)] == 1:
            yield NormPair(convolution, parent, name)
