"""Matching the classes of one detector or data set to those of another, by name."""

from collections.abc import Sequence

from lshfm_pl.data.spelling import fold_spelling

__all__ = ["common_labels", "labels_by_name"]

_OTHER_NAMES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""VOC's class names that COCO spells differently."""


def labels_by_name(wanted: Sequence[str], given: Sequence[str]) -> list[int | None]:
    """For each name in `wanted`, the label (from 1) of the class with the same name in `given`; None without one.

    Names that differ only in case, spaces, hyphens and underscores are the same, and so are those that VOC and COCO
    spell differently (`sofa`, `couch`). An exact match takes precedence.
    """
    # In reverse order, so that the first one of several is kept.
    exact = {name: label for label, name in reversed(list(enumerate(given, start=1)))}
    alike = {_key(name): label for name, label in exact.items()}
    return [exact.get(name, alike.get(_key(name))) for name in wanted]


def common_labels(wanted: Sequence[str], given: Sequence[str]) -> dict[int, int]:
    """Label in `wanted` → label in `given`, for the background (0) and for the classes that both have by name."""
    found = enumerate(labels_by_name(wanted, given), start=1)
    return {0: 0, **{label: other for label, other in found if other is not None}}


def _key(name: str) -> str:
    plain = "".join(character for character in fold_spelling(name) if character not in " _-")
    return _OTHER_NAMES.get(plain, plain)
