"""Reading the entries of the three lists of a file in COCO's JSON format."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lshfm_pl.data.coco.images import file_name_of
from lshfm_pl.data.coco.parse import OTHER_FILE_NAMES, READ_KEYS, REPEATED
from lshfm_pl.data.coco.values import (
    EntryError,
    Notes,
    read_box,
    read_crowd,
    read_id,
    read_name,
    read_number,
    read_whole_number,
    short_repr,
)
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.spelling import to_nfc

__all__ = ["Annotation", "COCOImage", "Category", "EntryReader"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class COCOImage:
    """An entry of `images`.

    Attributes:
        id: a number, or text that is not the text of a number.
        file_name: as the entry states it.
        width: in pixels, 0 if the entry does not state it.
        height: likewise.
    """

    id: int | str
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Category:
    """An entry of `categories`."""

    id: int
    name: str
    supercategory: str | None


@dataclass(frozen=True, slots=True)
class Annotation:
    """An entry of `annotations`; `box` is (x, y, width, height) in pixels, `area` in square pixels."""

    id: int | str | float | None
    image_id: int | str
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool


class EntryReader:
    """Reads the three lists of a file.

    Args:
        path: the file, for messages.
        content: the parsed file.
        log: receives errors and warnings.
    """

    def __init__(self, path: Path, content: dict[str, Any], log: FaultLog) -> None:
        self.path = path
        self.content = content
        self.log = log
        self.notes = Notes()

    def categories(self) -> dict[int, Category]:
        """Categories by id. Errors are never skipped: without a category the labels would change."""
        strict = FaultLog()
        categories: dict[int, Category] = {}
        id_of: dict[str, int] = {}
        for _, entry in self._entries("categories", strict, self._category):
            known = categories.get(entry.id)
            if known is not None and known.name != entry.name:
                text = f"the id {entry.id} more than once: of '{known.name}' and of '{entry.name}'"
                strict.add(self._fault("id-repeated", f"'categories' has {text}."))
            elif known is not None:
                self._note_repeated("categories", entry.id)
            elif entry.name in id_of and (unused := self._unused(categories[id_of[entry.name]], entry)):
                ids = f"{id_of[entry.name]} and {entry.id}"
                self.notes.add("value-read", f"'{entry.name}' has the ids {ids}: {unused.id} has no objects")
                if unused is entry:
                    continue
                categories.pop(unused.id)
                id_of.pop(entry.name)
            elif entry.name in id_of:
                ids = f"its ids are {id_of[entry.name]} and {entry.id}"
                text = f"'categories' has the name '{entry.name}' more than once: {ids}. Keep one of them."
                strict.add(self._fault("id-repeated", text))
            categories.setdefault(entry.id, entry)
            id_of.setdefault(entry.name, entry.id)
        if not categories:
            raise FaultError(self._fault("split-empty", "'categories' is empty: there are no classes."))
        return dict(sorted(categories.items()))

    def _unused(self, first: Category, second: Category) -> Category | None:
        """The one of two categories of the same name that has no objects, as Roboflow's root; None if unclear."""
        unused = [category for category in (first, second) if str(category.id) not in self._used_categories]
        if len(unused) == 1:
            return unused[0]
        roots = [
            root
            for root, other in ((first, second), (second, first))
            if root.name != root.supercategory and other.supercategory == root.name
        ]
        return roots[0] if len(unused) == 2 and len(roots) == 1 else None

    @cached_property
    def _used_categories(self) -> frozenset[str]:
        entries = self._list("annotations")
        return frozenset(str(entry.get("category_id")) for entry in entries if isinstance(entry, dict))

    def images(self) -> tuple[dict[int | str, COCOImage], set[int | str]]:
        """Images sorted by id, and the ids of entries that can't be used."""
        images: dict[int | str, COCOImage] = {}
        unusable: set[int | str] = set()
        for _, image in self._entries("images", self.log, self._image, unusable):
            known = images.setdefault(image.id, image)
            if known != image:
                text = (
                    f"the id {short_repr(image.id)} more than once: of {short_repr(known.file_name)} and of "
                )
                text += f"{short_repr(image.file_name)}, {image.width} x {image.height}"
                self.log.add(self._fault("id-repeated", f"'images' has {text}.", image_id=str(image.id)))
            elif known is not image:
                self._note_repeated("images", image.id)
        if not images:
            raise FaultError(self._fault("split-empty", "'images' is empty."))
        ordered = sorted(images, key=lambda image_id: (isinstance(image_id, str), image_id))
        return {image_id: images[image_id] for image_id in ordered}, unusable

    def annotations(
        self,
        categories: dict[int, Category],
        images: dict[int | str, COCOImage],
        unusable: set[int | str],
    ) -> tuple[list[int], list[Annotation]]:
        """Positions, from 1, and annotations, without those of images that can't be used."""
        by_number = _by_number(images)
        id_of = {category.name: category.id for category in categories.values()}

        def read(entry: dict[str, Any]) -> Annotation | None:
            image_id = self._image_id(entry, images, by_number)
            if image_id in unusable and image_id not in images:
                return None  # the image is left out already
            if image_id not in images:
                text = f"image_id {short_repr(image_id)} is not the id of any entry of 'images'"
                raise EntryError(text, "image-unknown")
            annotation = _read_annotation(entry, image_id, id_of, self.notes)
            if annotation.category_id not in categories:
                text = f"category_id {annotation.category_id} is not the id of any entry of 'categories'"
                raise EntryError(text, "category-unknown")
            return annotation

        positions, annotations = [], []
        seen: dict[object, Annotation] = {}
        for position, annotation in self._entries("annotations", self.log, read):
            if annotation is None:
                continue
            if (
                annotation.id is not None
                and (known := seen.setdefault(annotation.id, annotation)) != annotation
            ):
                self.notes.place = f"entry {position} of 'annotations'"
                self.notes.add("annotation-id-repeated", f"the id {short_repr(annotation.id)}")
            elif annotation.id is not None and known is not annotation:
                self._note_repeated("annotations", annotation.id)
                continue
            positions.append(position)
            annotations.append(annotation)
        return positions, annotations

    def _list(self, key: str) -> list[Any]:
        entries = self.content.get(key)
        if not isinstance(entries, list):
            found = ", ".join(key for key in self.content if key in READ_KEYS) or "none of these"
            text = (
                f"has no list '{key}': it is {_kind(entries)}."
                if key in self.content
                else f"has no list '{key}': expected images, annotations and categories, found {found}. "
                "Files with only captions, panoptic segments or images have no boxes."
            )
            raise FaultError(self._fault("annotation-broken", text))
        return entries

    def _entries(
        self,
        key: str,
        log: FaultLog,
        read: Callable[[dict[str, Any]], T],
        unusable: set[int | str] | None = None,
    ) -> list[tuple[int, T]]:
        """Position, from 1, and content of each entry that can be read. Errors are reported to `log`."""
        entries = self._list(key)
        values: list[tuple[int, T]] = []
        faults: list[Fault] = []
        lost: list[Fault] = []
        for position, entry in enumerate(entries, start=1):
            self.notes.place = f"entry {position} of '{key}'"
            try:
                is_object = key == "annotations"
                if not isinstance(entry, dict):
                    raise EntryError(f"is {short_repr(entry)}, expected an object", loses_image=is_object)
                if REPEATED in entry:
                    text = f"has '{entry[REPEATED]}' more than once, with different values"
                    raise EntryError(text, loses_image=is_object and entry[REPEATED] == "image_id")
                values.append((position, read(entry)))
            except EntryError as error:
                fields = entry if isinstance(entry, dict) else {}
                known_id = f" (id {short_repr(fields['id'])})" if "id" in fields else ""
                image_id = _known_image_id(fields, {"images": "id", "annotations": "image_id"}.get(key))
                text = f"entry {position}{known_id} of '{key}': {error}."
                is_of_image = image_id is not None and error.kind != "image-unknown"
                fault = self._fault(error.kind, text, image_id=str(image_id) if is_of_image else "")
                if unusable is not None and image_id is not None:
                    unusable.add(image_id)
                (lost if error.loses_image else faults).append(fault)
        self.notes.place = ""
        if lost:
            raise FaultError(
                self._summed(lost, "The image of these objects is unknown, so skipping would not help.")
            )
        if len(faults) == len(entries) > 1:
            raise FaultError(self._summed(faults, "No entry of the list can be read."))
        for fault in faults:
            log.add(fault)
        return values

    def _summed(self, faults: list[Fault], advice: str) -> Fault:
        others = f" And {len(faults) - 1:,} more." if len(faults) > 1 else ""
        return self._fault(faults[0].kind, f"{faults[0].text}{others} {advice}")

    def _fault(self, kind: str, text: str, image_id: str = "") -> Fault:
        return Fault(kind, self.path, text, image_id=image_id)

    def _note_repeated(self, key: str, identifier: object) -> None:
        self.notes.place = ""
        self.notes.add("entry-repeated", f"the id {short_repr(identifier)} of '{key}'")

    def _category(self, entry: dict[str, Any]) -> Category:
        above = entry.get("supercategory")
        name = to_nfc(read_name(entry, "name", self.notes))
        return Category(
            _read_category_id(entry, "id", self.notes), name, above if isinstance(above, str) else None
        )

    def _image(self, entry: dict[str, Any]) -> COCOImage:
        image_id = read_id(entry, "id", self.notes)
        width, height = (read_whole_number(entry, key, self.notes) or 0 for key in ("width", "height"))
        # An impossible size counts as missing; it is read from the image then.
        file_name = file_name_of(entry, self.notes, OTHER_FILE_NAMES)
        if entry.get("annotations"):
            raise EntryError(
                "has 'annotations' of its own, which would be lost: expected them in the list 'annotations'"
            )
        return COCOImage(image_id, file_name, max(width, 0), max(height, 0))

    def _image_id(
        self,
        entry: dict[str, Any],
        images: dict[int | str, COCOImage],
        by_number: dict[int, int | str | None],
    ) -> int | str:
        """The id of an annotation's image, which may be written differently there (`7` and `"007"`)."""
        try:
            image_id = read_id(entry, "image_id", self.notes)
        except EntryError as error:
            raise EntryError(str(error), error.kind, loses_image=True) from None
        if image_id in images:
            return image_id
        number = _as_number(image_id)
        meant = None if number is None else by_number.get(number)
        if meant is None:
            return image_id
        self.notes.add("value-read", f"image_id is {short_repr(image_id)}, read as {short_repr(meant)}")
        return meant


def _read_annotation(
    entry: dict[str, Any], image_id: int | str, category_of: dict[str, int], notes: Notes
) -> Annotation:
    named = category_of.get(entry["category_id"]) if isinstance(entry.get("category_id"), str) else None
    if named is not None:
        notes.add("value-read", f"category_id is {short_repr(entry['category_id'])}, read as {named}")
        entry = {**entry, "category_id": named}
    x, y, width, height = read_box(entry, notes)
    area = read_number(entry, "area", notes)
    identifier = entry.get("id")
    return Annotation(
        id=identifier if isinstance(identifier, int | float | str) else None,
        image_id=image_id,
        category_id=_read_category_id(entry, "category_id", notes),
        box=(x, y, width, height),
        area=width * height if area is None else area,
        crowd=read_crowd(entry, notes),
    )


def _read_category_id(entry: dict[str, Any], key: str, notes: Notes) -> int:
    found = read_id(entry, key, notes)
    if not isinstance(found, int) or abs(found) >= 2**63:
        raise EntryError(f"{key} is {short_repr(entry[key])}, expected a whole number")
    return found


def _known_image_id(fields: dict[str, Any], key: str | None) -> int | str | None:
    """The image that an invalid entry belongs to, if that is known."""
    if key is None:
        return None
    try:
        return read_id(fields, key, Notes())
    except EntryError:
        return None


def _kind(value: object) -> str:
    return {"dict": "an object", "NoneType": "null"}.get(type(value).__name__, short_repr(value)[:40])


def _as_number(image_id: int | str) -> int | None:
    if isinstance(image_id, int):
        return image_id
    return int(image_id) if image_id.isascii() and image_id.isdigit() and len(image_id) < 40 else None


def _by_number(image_ids: Iterable[int | str]) -> dict[int, int | str | None]:
    """Id by its number (7 for `"007"`); None if two ids have the same number."""
    found: dict[int, int | str | None] = {}
    for image_id in image_ids:
        if (number := _as_number(image_id)) is not None:
            found[number] = None if number in found else image_id
    return found
