"""Weights of losses that are sums over the positions of maps, for images of any size."""

from collections.abc import Sequence
from typing import Any

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.base import Context

__all__ = ["area_factor", "checked_reference_size"]

ReferenceSize = tuple[int, int]
"""Height and width in pixels."""


def checked_reference_size(size: Any) -> ReferenceSize | None:
    """The setting `reference_size`: [height, width] in pixels, or None.

    Raises:
        LSHFMError: it is neither.
    """
    if size is None:
        return None
    is_pair = isinstance(size, Sequence) and len(size) == 2
    if not (is_pair and all(isinstance(side, int) and side >= 1 for side in size)):
        raise LSHFMError(
            f"distill.reference_size: expected [height, width] in pixels or null, found {size!r}"
        )
    return int(size[0]), int(size[1])


def area_factor(reference: ReferenceSize | None, context: Context) -> float:
    """Factor of a sum over positions that makes it as large as for images of the reference size; 1 without one.

    Raises:
        LSHFMError: the context has no size of the batch.
    """
    if reference is None:
        return 1.0
    if context.padded_size is None:
        raise LSHFMError("distill.reference_size: the loss needs padded_size in its context; give null")
    height, width = context.padded_size
    return reference[0] * reference[1] / (height * width)
