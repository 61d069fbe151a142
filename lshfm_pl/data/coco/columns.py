"""The annotations of a file in COCO's JSON format as arrays: at once if all are as usual, otherwise one by one."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from lshfm_pl.data.coco.entries import Annotation
from lshfm_pl.data.coco.parse import REPEATED
from lshfm_pl.data.coco.values import LARGEST_COORDINATE, LARGEST_NUMBER, PLAIN_NUMBERS

__all__ = ["Columns", "columns_of", "usual_columns"]


class Columns(NamedTuple):
    """Annotations in the order of the file; see `COCOFile`."""

    image_index: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    positions: np.ndarray


def columns_of(
    positions: Sequence[int], annotations: Sequence[Annotation], index_of: Mapping[int | str, int]
) -> Columns:
    """The columns of annotations that were read one by one.

    Args:
        positions: of each annotation in the file's list, from 1.
        annotations: what was read.
        index_of: image id → index of the image.
    """
    return Columns(
        image_index=np.array([index_of[entry.image_id] for entry in annotations], dtype=np.int64),
        category_ids=np.array([entry.category_id for entry in annotations], dtype=np.int64),
        boxes=np.array([entry.box for entry in annotations], dtype=np.float64).reshape(-1, 4),
        area=np.array([entry.area for entry in annotations], dtype=np.float64),
        crowd=np.array([entry.crowd for entry in annotations], dtype=np.bool_),
        positions=np.array(positions, dtype=np.int64),
    )


def usual_columns(
    entries: Any, category_ids: Collection[int], index_of: Mapping[int | str, int]
) -> Columns | None:
    """The columns of a list in which nothing needs a message; None if any entry might need one.

    This takes a fifth of the time of reading the entries one by one, with the same result.

    Args:
        entries: the file's list `annotations` as parsed, which may be anything.
        category_ids: the ids of the categories.
        index_of: image id → index of the image.
    """
    if type(entries) is not list or not entries or _types(entries) != {dict}:
        return None
    try:
        ids, image_ids, categories, boxes = (
            _values(entries, key) for key in ("id", "image_id", "category_id", "bbox")
        )
        areas = _values_of_all_or_none(entries, "area")
        crowds = _values_of_all_or_none(entries, "iscrowd")
    except KeyError:
        return None
    is_usual = (
        not any(REPEATED in entry for entry in entries)
        and _types(ids) == _types(image_ids) == _types(categories) == {int}
        and len(set(ids)) == len(ids)
        and index_of.keys() >= set(image_ids)
        and set(category_ids) >= set(categories)
        and _types(boxes) == {list}
        and set(map(len, boxes)) == {4}
        and (areas is None or _types(areas) <= PLAIN_NUMBERS)
        and (crowds is None or (_types(crowds) <= {*PLAIN_NUMBERS, bool} and set(crowds) <= {0, 1}))
    )
    return _arrays(image_ids, categories, boxes, areas, crowds, index_of) if is_usual else None


def _arrays(
    image_ids: list[int],
    categories: list[int],
    boxes: list[list[Any]],
    areas: list[float] | None,
    crowds: list[float] | None,
    index_of: Mapping[int | str, int],
) -> Columns | None:
    sides = list(chain.from_iterable(boxes))
    if not _types(sides) <= PLAIN_NUMBERS:
        return None
    try:
        box = np.array(sides, dtype=np.float64).reshape(-1, 4)
        area = box[:, 2] * box[:, 3] if areas is None else np.array(areas, dtype=np.float64)
    except OverflowError:
        return None
    # Comparisons with NaN are false.
    if not (
        (np.abs(box) <= LARGEST_COORDINATE).all()
        and (box[:, 2:] >= 0).all()
        and (np.abs(area) < LARGEST_NUMBER).all()
    ):
        return None
    return Columns(
        image_index=np.array(list(map(index_of.__getitem__, image_ids)), dtype=np.int64),
        category_ids=np.array(categories, dtype=np.int64),
        boxes=box,
        area=area,
        crowd=np.zeros(len(box), np.bool_) if crowds is None else np.array(crowds, dtype=np.bool_),
        positions=np.arange(1, len(box) + 1, dtype=np.int64),
    )


def _types(values: Sequence[Any]) -> set[type]:
    return set(map(type, values))


def _values(entries: list[dict[str, Any]], key: str) -> list[Any]:
    return list(map(itemgetter(key), entries))


def _values_of_all_or_none(entries: list[dict[str, Any]], key: str) -> list[Any] | None:
    """The values; None if no entry has the key.

    Raises:
        KeyError: only some entries have it.
    """
    return _values(entries, key) if any(key in entry for entry in entries) else None
