"""Reading of annotation files in COCO's JSON format: categories, images and boxes."""

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from lshfm_pl.data.faults import Fault, FaultError, FaultLog, unsafe_path

__all__ = ["COCOFile", "COCOImage", "find_images", "read_coco_json"]

_READ_KEYS = frozenset(
    {"images", "annotations", "categories", "id", "name", "file_name", "width", "height"}
    | {"image_id", "category_id", "bbox", "area", "iscrowd"}
)
_LARGEST_NUMBER = 1e30
"""No coordinate is larger; NaN, infinities and integers without a float are outside of ± this too."""

_COCO2017_NAMES = ("instances_train2017.json", "instances_val2017.json", "train2017", "val2017")
_COCO2017_ADVICE = (
    "data.root needs annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/*.jpg "
    "and val2017/*.jpg: unpack http://images.cocodataset.org/zips/train2017.zip, …/zips/val2017.zip and "
    "…/annotations/annotations_trainval2017.zip there."
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class COCOImage:
    """An entry of `images`; `width` and `height` in pixels are 0 where it doesn't state them."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class COCOFile:
    """The content of one annotation file, the annotations as columns in the order of the file.

    Attributes:
        path: the file.
        categories: id → name, by id.
        images: by id, as COCO's own tools order them.
        image_index: int64 [A] of each annotation, into `images`.
        category_ids: int64 [A].
        boxes: float64 [A, 4], (x, y, width, height) in pixels, 0-based and continuous.
        area: float64 [A] of the segmentation in square pixels; of the box where the file has none.
        crowd: bool [A], COCO's `iscrowd`.
    """

    path: Path
    categories: dict[int, str]
    images: list[COCOImage]
    image_index: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True, slots=True)
class _Annotation:
    image_id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool


def read_coco_json(path: str | Path, log: FaultLog | None = None) -> COCOFile:
    """Read the annotations of object detection; segmentations are dropped while parsing.

    Raises:
        LSHFMError: the file is missing, no JSON, or has an entry that is not as the format says and that `log`
            does not say to skip; the message names the file and the entry.

    Source: https://cocodataset.org/#format-data.
    """
    path = Path(path)
    log = log or FaultLog()
    content = _parse(path)
    # Without one of the categories the labels would be others: nothing of that is one image's fault, to be skipped.
    strict = FaultLog()
    categories = _read_entries(content, "categories", path, strict, _read_category)
    if not categories:
        raise FaultError(Fault("split-empty", path, "'categories' is empty: there are no classes."))
    names: dict[str, int] = {}
    category_names: dict[int, str] = {}
    for category_id, name in categories:
        _refuse_repeated("id", category_id, category_names, "categories", path, strict)
        _refuse_repeated("name", name, names, "categories", path, strict)
        category_names[category_id] = name
        names[name] = category_id
    image_of: dict[int, COCOImage] = {}
    for image in _read_entries(content, "images", path, log, _read_image):
        _refuse_repeated("id", image.id, image_of, "images", path, log)
        image_of.setdefault(image.id, image)
    if not image_of:
        raise FaultError(Fault("split-empty", path, "'images' is empty."))
    images = [image_of[image_id] for image_id in sorted(image_of)]
    index_of = {image.id: index for index, image in enumerate(images)}

    def read(entry: dict[str, Any]) -> _Annotation:
        annotation = _read_annotation(entry)
        if annotation.image_id not in index_of:
            text = f"image_id {annotation.image_id} is not the id of any entry of 'images'"
            raise _EntryError(text, "image-unknown")
        if annotation.category_id not in category_names:
            text = f"category_id {annotation.category_id} is not the id of any entry of 'categories'"
            raise _EntryError(text, "category-unknown")
        return annotation

    annotations = _read_entries(content, "annotations", path, log, read)
    return COCOFile(
        path=path,
        categories=dict(sorted(category_names.items())),
        images=images,
        image_index=np.array([index_of[entry.image_id] for entry in annotations], dtype=np.int64),
        category_ids=np.array([entry.category_id for entry in annotations], dtype=np.int64),
        boxes=np.array([entry.box for entry in annotations], dtype=np.float64).reshape(-1, 4),
        area=np.array([entry.area for entry in annotations], dtype=np.float64),
        crowd=np.array([entry.crowd for entry in annotations], dtype=np.bool_),
    )


def find_images(
    folder: Path, images: Sequence[COCOImage], annotation_file: Path, log: FaultLog | None = None
) -> list[Path | None]:
    """The path of every image, all of them looked for; each folder is listed once.

    Raises:
        LSHFMError: the folder is missing, or an image is and `log` does not say to skip it; its path is None then.
    """
    log = log or FaultLog()
    if not folder.is_dir():
        raise FaultError(Fault("file-missing", folder, f"no such folder of images.\n{_advice(folder)}"))
    names_in: dict[Path, set[str]] = {}
    paths: list[Path | None] = []
    for image in images:
        path = folder / image.file_name
        if path.parent not in names_in:
            parent = path.parent
            names_in[parent] = {entry.name for entry in parent.iterdir()} if parent.is_dir() else set()
        if path.name in names_in[path.parent]:
            paths.append(path)
        else:
            text = f"no such image, but {annotation_file} lists it. Add the file or remove the entry."
            log.add(Fault("image-missing", path, text, image_id=str(image.id)))
            paths.append(None)
    return paths


def _parse(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FaultError(Fault("file-missing", path, f"no such annotation file.\n{_advice(path)}"))
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_unread)
    except (ValueError, RecursionError, OSError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        text = f"can't be read: {error}. Expected a JSON file in COCO's format."
        raise FaultError(Fault("annotation-broken", path, text, line)) from error
    if not isinstance(content, dict):
        text = f"holds a {type(content).__name__}: expected an object in COCO's format."
        raise FaultError(Fault("annotation-broken", path, text))
    return content


def _without_unread(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The polygons are most of a file: let go of them object by object, and not after all is parsed."""
    return {key: value for key, value in pairs if key in _READ_KEYS}


def _advice(path: Path) -> str:
    if path.name in _COCO2017_NAMES:
        return _COCO2017_ADVICE
    return (
        "Set data.root, and data.{train,val,test}_annotations and data.{train,val,test}_images below it "
        "(or as absolute paths)."
    )


class _EntryError(ValueError):
    """What is wrong with an entry."""

    def __init__(self, text: str, kind: str = "annotation-incomplete") -> None:
        super().__init__(text)
        self.kind = kind


def _read_entries(
    content: dict[str, Any], key: str, path: Path, log: FaultLog, read: Callable[[dict[str, Any]], T]
) -> list[T]:
    entries = content.get(key)
    if not isinstance(entries, list):
        found = ", ".join(content) or "none of these"
        text = f"has no list '{key}': expected images, annotations and categories, found {found}."
        raise FaultError(Fault("annotation-broken", path, text))
    values = []
    for position, entry in enumerate(entries, start=1):
        try:
            if not isinstance(entry, dict):
                raise _EntryError(f"is {reprlib.repr(entry)}, expected an object")
            values.append(read(entry))
        except _EntryError as error:
            fields = entry if isinstance(entry, dict) else {}
            known_id = f" (id {reprlib.repr(fields['id'])})" if "id" in fields else ""
            image_id = fields.get({"images": "id", "annotations": "image_id"}.get(key, ""))
            text = f"entry {position}{known_id} of '{key}': {error}."
            log.add(Fault(error.kind, path, text, image_id=str(image_id) if type(image_id) is int else ""))
    return values


def _refuse_repeated(what: str, value: T, seen: Mapping[T, Any], key: str, path: Path, log: FaultLog) -> None:
    if value in seen:
        log.add(Fault("id-repeated", path, f"'{key}' has the {what} {value!r} more than once."))


def _read_category(entry: dict[str, Any]) -> tuple[int, str]:
    return _whole_number(entry, "id"), _text(entry, "name")


def _read_image(entry: dict[str, Any]) -> COCOImage:
    width, height = (
        0 if entry.get(key) is None else _whole_number(entry, key) for key in ("width", "height")
    )
    file_name = _text(entry, "file_name")
    if (reason := unsafe_path(file_name)) is not None:
        raise _EntryError(f"file_name {reprlib.repr(file_name)} {reason}, which is refused", "path-unsafe")
    # A size that can't be is no size: it is read from the image then.
    return COCOImage(_whole_number(entry, "id"), file_name, max(width, 0), max(height, 0))


def _read_annotation(entry: dict[str, Any]) -> _Annotation:
    if "bbox" not in entry:
        _missing("bbox")
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        text = f"bbox is {reprlib.repr(box)}, expected four finite numbers: x, y, width, height"
        raise _EntryError(text, "box-not-a-number")
    x, y, width, height = box
    area = entry.get("area")
    if area is None:
        area = max(width, 0) * max(height, 0)
    elif not _is_number(area) or area < 0:
        raise _EntryError(f"area is {reprlib.repr(area)}, expected a number of square pixels")
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _EntryError(f"iscrowd is {reprlib.repr(crowd)}, expected 0 or 1")
    return _Annotation(
        image_id=_whole_number(entry, "image_id"),
        category_id=_whole_number(entry, "category_id"),
        box=(x, y, width, height),
        area=area,
        crowd=bool(crowd),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and -_LARGEST_NUMBER < value < _LARGEST_NUMBER


def _whole_number(entry: dict[str, Any], key: str) -> int:
    if key not in entry:
        _missing(key)
    value = entry[key]
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise _EntryError(f"{key} is {reprlib.repr(value)}, expected a whole number")
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    if key not in entry:
        _missing(key)
    value = entry[key]
    if not isinstance(value, str) or not value:
        raise _EntryError(f"{key} is {reprlib.repr(value)}, expected text")
    return value


def _missing(key: str) -> NoReturn:
    raise _EntryError(f"has no '{key}'")
