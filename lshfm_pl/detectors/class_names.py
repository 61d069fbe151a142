"""Finding the classes of one detector or data set among those of another, by name."""

from collections.abc import Sequence

from lshfm_pl.data.spelling import fold_spelling

__all__ = ["labels_by_name"]

_OTHER_NAMES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""VOC's names of classes that COCO calls otherwise."""


def labels_by_name(wanted: Sequence[str], given: Sequence[str]) -> list[int | None]:
    """For each name of `wanted` the label, from 1, that a class of the same name has in `given`; None for none.

    Names that differ in case, spaces, hyphens and underscores alone are the same, and so are the few that VOC and
    COCO spell in two ways (`sofa`, `couch`). The exact name goes first.
    """
    # From the last one on, so that the first of several stays.
    exact = {name: label for label, name in reversed(list(enumerate(given, start=1)))}
    alike = {_key(name): label for name, label in exact.items()}
    return [exact.get(name, alike.get(_key(name))) for name in wanted]


def _key(name: str) -> str:
    plain = "".join(character for character in fold_spelling(name) if character not in " _-")
    return _OTHER_NAMES.get(plain, plain)
