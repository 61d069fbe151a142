"""Maps of how well the features of student and teacher agree."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from lshfm_pl.drawing.boxes import labelled_grid
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.agreement import AgreementMap

__all__ = ["CHANCE", "COLOR_MAP", "LEGEND_STEPS", "MAP_SIDE", "agreement_picture"]


CHANCE = {"cosine": 0.0, "bits": 0.5}
"""What unrelated features have; the lower end of the colours, whose upper end is 1."""

MAP_SIDE = 160
"""Pixels of a map's longer side: four columns are no wider than a page."""

COLOR_MAP = "viridis"

LEGEND_STEPS = 5


def agreement_picture(image: Tensor, maps: Mapping[str, Sequence[AgreementMap]]) -> Tensor:
    """The image, and below it the maps over it: a row a grid, a column a detector and measure; uint8 [3, H, W].

    Args:
        image: uint8 [3, H, W].
        maps: detector → its maps, the same grids for each. Grids and columns without any map are left out.

    Raises:
        LSHFMError: there is no map at all.
    """
    factor = MAP_SIDE / max(image.shape[-2:])
    height, width = (max(1, round(factor * length)) for length in image.shape[-2:])
    measures: dict[str, Callable[[AgreementMap], Tensor | None]] = {
        "cosine": lambda entry: entry.cosine_hw,
        "bits": lambda entry: entry.bits_hw,
    }
    columns = {
        f"{who}: {measure}": (measure, [of_entry(entry) for entry in entries])
        for who, entries in maps.items()
        for measure, of_entry in measures.items()
    }
    shown = {
        title: column for title, column in columns.items() if any(item is not None for item in column[1])
    }
    if not shown:
        raise LSHFMError("agreement: student and teacher have no features that can be compared")
    rows = []
    for number, entry in enumerate(next(iter(maps.values()))):
        of_grid = [(measure, values[number]) for measure, values in shown.values()]
        if all(values is None for _, values in of_grid):
            continue
        row = []
        for place, (measure, values) in enumerate(of_grid):
            told = [entry.title] * (place == 0)
            if values is not None:
                told.append(f"mean {values.mean():.2f}")
            row.append((_map_picture(measure, values, height, width), ": ".join(told)))
        rows.append(row)
    steps = torch.linspace(0, 1, LEGEND_STEPS)
    legend = [
        (
            tuple(_colours(step.reshape(1, 1)).flatten().tolist()),
            ", ".join(f"{measure} {low + (1 - low) * float(step):.3g}" for measure, low in CHANCE.items()),
        )
        for step in steps
    ]
    grid = labelled_grid(rows, list(shown), legend)
    # The image itself once, above the maps and in the size of two of them.
    size = [min(len(shown), 2) * length for length in (height, width)]
    top = labelled_grid([[(resize(image, size, antialias=True), "")]], ["image"], [])
    both = torch.full(
        (3, top.shape[1] + grid.shape[1], max(top.shape[2], grid.shape[2])), 255, dtype=torch.uint8
    )
    both[:, : top.shape[1], : top.shape[2]] = top
    both[:, top.shape[1] :, : grid.shape[2]] = grid
    return both


def _map_picture(measure: str, values: Tensor | None, height: int, width: int) -> Tensor:
    """A map in colours, uint8 [3, height, width]; white where there is none."""
    if values is None:
        return torch.full((3, height, width), 255, dtype=torch.uint8)
    colours = _colours((values - CHANCE[measure]) / (1 - CHANCE[measure]))
    # Nearest neighbours: the map's own places are to be seen.
    return colours[:, _stretched(values.shape[0], height)][:, :, _stretched(values.shape[1], width)]


def _colours(values_hw: Tensor) -> Tensor:
    """Values 0..1, those outside cut, as uint8 [3, h, w]."""
    coloured = matplotlib.colormaps[COLOR_MAP](values_hw.clamp(0, 1).numpy(), bytes=True)
    return torch.from_numpy(coloured[..., :3].copy()).permute(2, 0, 1)


def _stretched(length: int, target: int) -> Tensor:
    return torch.arange(target) * length // target
