"""Mapping the categories of a file in COCO's JSON format to labels."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from lshfm_pl.data.class_counts import list_for_shell
from lshfm_pl.data.coco.annotations import COCOFile
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.spelling import to_nfc
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["CATEGORY_IDS", "CategoryIds", "make_labels", "remove_categories", "unused_name"]

CategoryIds = Literal["keep", "contiguous"]
CATEGORY_IDS = get_args(CategoryIds)

_LARGEST_LABEL = 10_000
"""A detector has a score for every label up to the largest one, used or not."""


def unused_name(label: int) -> str:
    """The class name of a label without category, such as 12 in COCO 2017 (`N/A` in torchvision's lists)."""
    return f"unused_{label}"


def remove_categories(file: COCOFile, names: Sequence[str]) -> COCOFile:
    """Remove categories by name. They must not have objects.

    Raises:
        FaultError: one of them has objects.
    """
    dropped = {category_id for category_id, name in file.categories.items() if name in names}
    used = dropped.intersection(file.category_ids.tolist())
    if used:
        count = sum(category_id in used for category_id in file.category_ids.tolist())
        text = (
            f"data.drop_categories has '{file.categories[min(used)]}', which has {count:,} annotations: expected "
            "names of categories without objects. Remove it from the list, or remove the annotations."
        )
        raise FaultError(Fault("setting", file.path, text))
    kept = {category_id: name for category_id, name in file.categories.items() if category_id not in dropped}
    if not kept:
        raise FaultError(Fault("split-empty", file.path, "data.drop_categories leaves no category."))
    return replace(file, categories=kept)


def make_labels(
    file: COCOFile,
    category_ids: str,
    classes: Sequence[str] | None,
    classes_of: object,
    ids: Mapping[int, str] | None,
    log: FaultLog,
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Map category ids to labels, and return the names of the labels 1..C too.

    Args:
        file: content of the file.
        category_ids: see `COCODetection`; not used if `classes` are given.
        classes: names of the labels 1..C, to which categories are matched by name; None to derive labels from ids.
        classes_of: where `classes` are from (a file or the checkpoint), for messages.
        ids: id → name in that source; None if unknown.
        log: receives a warning if categories are matched by name and their ids differ.

    Raises:
        LSHFMError: ids that can't be labels, or a name that is not in `classes`.
    """
    if category_ids not in CATEGORY_IDS:
        raise LSHFMError(f"data.category_ids: expected {' or '.join(CATEGORY_IDS)}, found {category_ids!r}.")
    if classes is None:
        label_of = _labels(file, category_ids)
        return label_of, _class_names(file, label_of)
    label_by_name = {to_nfc(name): label for label, name in enumerate(classes, start=1)}
    unknown = [name for name in file.categories.values() if name not in label_by_name]
    if unknown:
        raise FaultError(
            Fault("category-unknown", file.path, _unknown_text(file, unknown, classes, classes_of))
        )
    label_of = {category_id: label_by_name[name] for category_id, name in file.categories.items()}
    if ids is None:
        named = {label: name for label, name in enumerate(classes, start=1) if name != unused_name(label)}
        is_same = named == (
            file.categories if category_ids == "keep" else dict(enumerate(file.categories.values(), start=1))
        )
    else:
        is_same = ids == file.categories
    if not is_same:
        text = (
            f"its categories are matched by name to those of {classes_of}, which have other ids or are more; "
            f"in this file they are {first_few(_numbered(file.categories))}."
        )
        log.add(Fault("category-matched", file.path, text))
    return label_of, tuple(classes)


def _unknown_text(file: COCOFile, unknown: Sequence[str], classes: Sequence[str], classes_of: object) -> str:
    used = set(file.category_ids.tolist())
    names = [name for category_id, name in file.categories.items() if category_id in used]
    text = f"the categories are not those of {classes_of}: it has no '{unknown[0]}'"
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    known = f"The classes are {first_few(classes, 20)}."
    if close := difflib.get_close_matches(unknown[0].casefold(), [name.casefold() for name in classes], n=1):
        meant = next(name for name in classes if name.casefold() == close[0])
        known = f"Did you mean '{meant}'? {known}"
    if not set(unknown).intersection(names):
        known += f" They have no objects: {list_for_shell('data.drop_categories', unknown)} drops them."
    return f"{text}{more}.\n{known}"


def _numbered(categories: dict[int, str]) -> list[str]:
    return [f"{category_id} '{name}'" for category_id, name in categories.items()]


def _labels(file: COCOFile, category_ids: str) -> dict[int, int]:
    """Map category ids to labels without names."""
    if category_ids == "contiguous":
        return {category_id: label for label, category_id in enumerate(file.categories, start=1)}
    for category_id, name in file.categories.items():
        if not 1 <= category_id <= _LARGEST_LABEL:
            text = (
                f"the category id {category_id} ('{name}') can't be a label: expected 1 to {_LARGEST_LABEL}, as "
                "0 is the background. Set data.category_ids=contiguous."
            )
            raise FaultError(Fault("annotation-incomplete", file.path, text))
    return {category_id: category_id for category_id in file.categories}


def _class_names(file: COCOFile, label_of: dict[int, int]) -> tuple[str, ...]:
    name_of = {label_of[category_id]: name for category_id, name in file.categories.items()}
    labels = range(1, max(name_of) + 1)
    gaps = {unused_name(label) for label in labels if len(name_of) < len(labels)}
    # Refused even at its own label: readers of a checkpoint would not take it for a class.
    if gaps.intersection(name_of.values()):
        text = (
            f"a category has the name of an unused label ({unused_name(1)}, …). "
            "Rename it, or set data.category_ids=contiguous."
        )
        raise FaultError(Fault("id-repeated", file.path, text))
    return tuple(name_of.get(label, unused_name(label)) for label in labels)
