"""Maps that show where the features of student and teacher agree."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from lshfm_pl.drawing.layout import labelled_grid
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.agreement import AgreementMap

__all__ = ["CHANCE", "COLOR_MAP", "LEGEND_STEPS", "MAP_SIDE", "agreement_picture"]


CHANCE = {"cosine": 0.0, "bits": 0.5}
"""The agreement of unrelated features. The colour scale begins here and ends at 1."""

MAP_SIDE = 160
"""Length of a map's longer side in pixels: four columns then fit on a page."""

COLOR_MAP = "viridis"

LEGEND_STEPS = 5


def agreement_picture(image: Tensor, maps: Mapping[str, Sequence[AgreementMap]]) -> Tensor:
    """Draw the image, and below it a row for each feature map and a column for each detector and measure.

    Args:
        image: uint8 [3, H, W].
        maps: detector → its agreement maps, of the same feature maps for each. Rows and columns that would be
            empty are left out.

    Returns:
        uint8 [3, H, W].

    Raises:
        LSHFMError: there is nothing to draw.
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
            caption = [entry.title] * (place == 0)
            if values is not None:
                caption.append(f"mean {values.mean():.2f}")
            row.append((_map_picture(measure, values, height, width), ": ".join(caption)))
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
    # The image is drawn once, above the maps and as wide as two of them.
    size = [min(len(shown), 2) * length for length in (height, width)]
    top = labelled_grid([[(resize(image, size, antialias=True), "")]], ["image"], [])
    both = torch.full(
        (3, top.shape[1] + grid.shape[1], max(top.shape[2], grid.shape[2])), 255, dtype=torch.uint8
    )
    both[:, : top.shape[1], : top.shape[2]] = top
    both[:, top.shape[1] :, : grid.shape[2]] = grid
    return both


def _map_picture(measure: str, values: Tensor | None, height: int, width: int) -> Tensor:
    """A map in colours, uint8 [3, height, width]; a white picture if there is no map."""
    if values is None:
        return torch.full((3, height, width), 255, dtype=torch.uint8)
    colours = _colours((values - CHANCE[measure]) / (1 - CHANCE[measure]))
    # Nearest-neighbour scaling keeps the map's locations visible.
    return colours[:, _stretched(values.shape[0], height)][:, :, _stretched(values.shape[1], width)]


def _colours(values_hw: Tensor) -> Tensor:
    """The colours of values, which are clamped to 0..1; uint8 [3, h, w]."""
    coloured = matplotlib.colormaps[COLOR_MAP](values_hw.clamp(0, 1).numpy(), bytes=True)
    return torch.from_numpy(coloured[..., :3].copy()).permute(2, 0, 1)


def _stretched(length: int, target: int) -> Tensor:
    """The source index of each of `target` pixels; int64 [target]."""
    return torch.arange(target) * length // target
