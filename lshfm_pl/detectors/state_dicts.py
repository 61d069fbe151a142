"""Finding a network's tensors in files from elsewhere: in an entry of a dict, and below a prefix of their names."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lshfm_pl.errors import LSHFMError, first_few

__all__ = [
    "FoundNetwork",
    "choose_network",
    "find_networks",
    "model_and_average",
    "refuse_not_finite",
    "shared_prefix",
]

_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts that torch.compile, FSDP and activation checkpointing insert anywhere in a name."""
_AVERAGE = re.compile(r"(?<![a-z])ema(?![a-z])", re.IGNORECASE)
"""Marks an average in the name of an entry or a prefix: `model_ema`, `ema_state_dict`, `ema.module`."""
_DEEPEST = 4
"""Number of nested entries that are searched."""
_LONGEST_LIST = 8
"""Largest number of items of a list that is searched; longer lists are values."""
_UNNAMED = "weights"
"""Label of a network without entry and prefix."""


@dataclass(frozen=True)
class FoundNetwork:
    """Tensors that belong together.

    Attributes:
        entry: path of the dict that contains them, `""` for the content itself.
        prefix: common prefix of their names, which is removed in `weights`.
        weights: name → tensor.
        num_left_out: number of other tensors in the same dict.
    """

    entry: str
    prefix: str
    weights: dict[str, Tensor]
    num_left_out: int = 0

    @property
    def label(self) -> str:
        """The name by which the network can be chosen if there are several."""
        return ".".join(part for part in (self.entry, self.prefix.rstrip(".")) if part) or _UNNAMED

    def __str__(self) -> str:
        parts = [f"in {self.entry!r}"] if self.entry else []
        parts += [f"prefix {self.prefix!r} taken off"] if self.prefix else []
        parts += [f"{self.num_left_out} tensors beside it left out"] if self.num_left_out else []
        return ", ".join(parts)


def find_networks(content: Any, is_name: Callable[[str], bool], *, least: int = 1) -> list[FoundNetwork]:
    """The networks in the content of a file; equal ones are returned once.

    Args:
        content: any object; dicts and short lists are searched.
        is_name: whether a name without prefix belongs to the wanted network.
        least: number of such names that make a network.
    """
    found: list[FoundNetwork] = []
    for entry, tensors in _dicts_of_tensors(content, "", _DEEPEST):
        for network in _by_prefix(entry, tensors, is_name, least):
            if not any(_is_same(network.weights, other.weights) for other in found):
                found.append(network)
    return found


def choose_network(networks: list[FoundNetwork], which: str) -> FoundNetwork | None:
    """The only network, or the one whose label is or contains `which`; None if there isn't exactly one."""
    if len(networks) == 1:
        return networks[0]
    exact = [network for network in networks if network.label == which]
    partly = [network for network in networks if which in network.label.split(".")]
    chosen = exact or partly
    return chosen[0] if len(chosen) == 1 else None


def model_and_average(networks: list[FoundNetwork]) -> tuple[FoundNetwork, FoundNetwork] | None:
    """A network and its moving average, recognised by EMA in a name; None for anything else."""
    averages = [network for network in networks if _AVERAGE.search(network.label)]
    others = [network for network in networks if network not in averages]
    if len(averages) != 1 or len(others) != 1:
        return None
    shapes = [{key: value.shape for key, value in each.weights.items()} for each in (others[0], averages[0])]
    return (others[0], averages[0]) if shapes[0] == shapes[1] else None


def shared_prefix(names: Mapping[str, Any]) -> str:
    """The parts with which all names begin, including the final dot; `""` for none."""
    split = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def refuse_not_finite(source: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite.

    Raises:
        LSHFMError: one of them contains NaN or infinite values.
    """
    bad = [key for key, value in weights.items() if value.is_floating_point() and not _is_finite(value)]
    if bad:
        raise LSHFMError(
            f"{source}: {len(bad)} of {len(weights)} tensors hold NaN or infinite values ({first_few(bad)}), which "
            "make all results useless. The training diverged, or the file is damaged: give an earlier one."
        )


def _is_finite(values: Tensor) -> bool:
    """Whether all elements are finite; torch has no such function for 8-bit floats."""
    return bool((values.float() if values.element_size() == 1 else values).isfinite().all())


def _dicts_of_tensors(content: Any, path: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(content, list | tuple) and len(content) <= _LONGEST_LIST:
        content = {str(index): item for index, item in enumerate(content)}
    if not isinstance(content, Mapping):
        return
    tensors = {
        _WRAPPERS.sub("", key): value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield path, tensors
    if depth:
        for key, value in content.items():
            if isinstance(key, str) and not isinstance(value, Tensor):
                yield from _dicts_of_tensors(value, f"{path}.{key}" if path else key, depth - 1)


def _by_prefix(
    entry: str, tensors: Mapping[str, Tensor], is_name: Callable[[str], bool], least: int
) -> Iterator[FoundNetwork]:
    counts = Counter(_prefix_of(name, is_name) for name in tensors)
    prefixes = {prefix for prefix, count in counts.items() if prefix is not None and count >= least}
    # A name belongs to its longest prefix: `ema.backbone.…` is not part of the network without prefix.
    longest_first = sorted(prefixes, key=len, reverse=True)
    groups: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in sorted(prefixes)}
    for name, value in tensors.items():
        prefix = next((prefix for prefix in longest_first if name.startswith(prefix)), None)
        if prefix is not None:
            groups[prefix][name.removeprefix(prefix)] = value
    for prefix, weights in groups.items():
        yield FoundNetwork(entry, prefix, weights, len(tensors) - sum(map(len, groups.values())))


def _prefix_of(name: str, is_name: Callable[[str], bool]) -> str | None:
    """The shortest start of a name that is followed by a wanted name."""
    start = 0
    while True:
        if is_name(name[start:]):
            return name[:start]
        dot = name.find(".", start)
        if dot < 0:
            return None
        start = dot + 1


def _is_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape
        and value.dtype == other[name].dtype
        and (value is other[name] or torch.equal(value, other[name]))
        for name, value in one.items()
    )
