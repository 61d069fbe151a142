"""Reading of folders in the layout of the PASCAL VOC devkit: splits and annotations.

A folder holds `Annotations/<id>.xml`, `JPEGImages/<id>.jpg` and `ImageSets/Main/<split>.txt`.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from lshfm_pl.data.faults import Fault, FaultError, FaultLog, unsafe_path, without_path
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes

__all__ = [
    "ARCHIVES",
    "AnnotatedImage",
    "Annotation",
    "VOCSource",
    "list_names",
    "object_line",
    "read_class_names",
    "read_sources",
    "read_split",
    "resolve_source",
    "sorted_names",
]

ARCHIVES = {
    "VOC2007/train": ("2007", "trainval"),
    "VOC2007/val": ("2007", "trainval"),
    "VOC2007/trainval": ("2007", "trainval"),
    "VOC2007/test": ("2007", "test"),
    "VOC2012/train": ("2012", "trainval"),
    "VOC2012/val": ("2012", "trainval"),
    "VOC2012/trainval": ("2012", "trainval"),
}
"""The torchvision archive (year, image_set) that holds a split."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_CLASS_COLUMN = ("-1", "0", "1")
_LARGEST_XML = 8 * 2**20
"""Bytes. An object takes about 300."""
_LARGEST_SPLIT = 256 * 2**20
"""Bytes. A line takes about 20."""
_FILES_WITH_LINES = 4
"""Annotations whose lines are kept, for all faults of one of them."""
_LARGEST_COORDINATE = 1e9
"""Pixels: no image has more, and NaN and the infinities are outside of ± this too."""
_XML_ENCODING = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)")


@dataclass(frozen=True)
class VOCSource:
    """One split of one folder in VOC layout."""

    folder: Path
    split: str

    @property
    def split_file(self) -> Path:
        """The text file that lists the image ids of the split."""
        return self.folder / "ImageSets" / "Main" / f"{self.split}.txt"


@dataclass(frozen=True, slots=True)
class Annotation:
    """The content of one XML file; class names are not yet labels.

    `positions` are the objects' places among the file's, from 1: in an annotation without faults 1, 2, …
    """

    path: Path
    filename: str
    width: int
    height: int
    names: list[str]
    boxes: list[tuple[float, float, float, float]]
    difficult: list[bool]
    positions: list[int]


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One line of a split. Path or annotation are None where they could not be had and that was to be skipped.

    `image_id` is unique over the folders that are read together: `<folder>/<id>`.
    """

    image_id: str
    image_path: Path | None
    annotation: Annotation | None


class _DoctypeError(ValueError):
    """A document type, without which there are no entities."""


class _TreeBuilderWithoutDoctype(ET.TreeBuilder):
    """Refuses the declaration that every XML entity attack needs, in any encoding, before it is read."""

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> NoReturn:
        raise _DoctypeError(f"<!DOCTYPE {name} …> is refused: annotations need no document type or entities")


def resolve_source(root: str | Path, split: str) -> VOCSource:
    """Find the folder of a split.

    Args:
        root: the data folder.
        split: `<split>` for a folder in VOC layout at `root` itself, `<folder>/<split>` for one below it
            (`VOC2007/trainval`: `root/VOCdevkit/VOC2007` or `root/VOC2007`).

    Raises:
        LSHFMError: there is no such folder.
    """
    root = Path(root).expanduser()
    folder, _, name = split.rpartition("/")
    candidates = [root / "VOCdevkit" / folder, root / folder] if folder else [root]
    for candidate in candidates:
        if candidate.is_dir():
            return VOCSource(candidate, name)
    if split in ARCHIVES:
        advice = (
            "Set data.root to the folder that contains VOCdevkit/, or data.download=true to fetch PASCAL VOC."
        )
    else:
        advice = "Set data.root to a folder with Annotations/, JPEGImages/ and ImageSets/Main/."
    also = f", nor {candidates[0]}" if folder else ""
    text = f"not found{also}: the split '{split}' needs this folder.\n{advice}"
    raise FaultError(Fault("file-missing", candidates[-1], text))


def read_class_names(sources: Sequence[VOCSource], log: FaultLog | None = None) -> tuple[str, ...]:
    """The class names in the annotations of `sources`, sorted.

    Raises:
        LSHFMError: an annotation or image is missing or wrong, unless `log` says to skip it.
    """
    images = read_sources(sources, log or FaultLog())
    return sorted_names(image.annotation for image in images if image.annotation is not None)


def read_sources(sources: Sequence[VOCSource], log: FaultLog) -> list[AnnotatedImage]:
    """Every image of the splits, in their order.

    Raises:
        LSHFMError: a split, an annotation or an image is missing or wrong, unless `log` says to skip it.
    """
    prefixes = _folder_prefixes(sources)
    images: dict[str, AnnotatedImage] = {}
    for source in sources:
        image_names = list_names(source.folder / "JPEGImages")
        annotation_names = list_names(source.folder / "Annotations")
        for name, line in read_split(source, log):
            image_id = f"{prefixes[source.folder]}/{name}"
            if image_id in images:
                text = f"'{name}' is listed twice in the splits that make up one data set. Remove one."
                log.add(Fault("id-repeated", source.split_file, text, line))
                continue
            annotation = None
            annotation_path = source.folder / "Annotations" / f"{name}.xml"
            if annotation_path.name in annotation_names:
                annotation = _read_annotation(annotation_path, image_id, log)
            else:
                text = f"'{name}' has no annotation {annotation_path}. Add the file or remove the line."
                log.add(Fault("file-missing", source.split_file, text, line, image_id))
            image_name = _find_image(image_names, name, annotation.filename if annotation else "")
            if image_name is None:
                text = (
                    f"'{name}' has no image (.jpg, .jpeg or .png) in {source.folder / 'JPEGImages'}. "
                    "Add the file or remove the line."
                )
                log.add(Fault("image-missing", source.split_file, text, line, image_id))
            image_path = None if image_name is None else source.folder / "JPEGImages" / image_name
            images[image_id] = AnnotatedImage(image_id, image_path, annotation)
    return list(images.values())


def _folder_prefixes(sources: Sequence[VOCSource]) -> dict[Path, str]:
    """What makes image ids unique across folders: the folder's name, or its path where two share a name."""
    folders = {source.folder for source in sources}
    names = [folder.resolve().name for folder in folders]
    return {
        folder: name if names.count(name) == 1 else folder.as_posix()
        for folder, name in zip(folders, names, strict=True)
    }


def read_split(source: VOCSource, log: FaultLog | None = None) -> list[tuple[str, int]]:
    """The image ids that a split lists, in its order, with their lines from 1.

    Raises:
        LSHFMError: the split file is missing, empty or no text, or an id leads out of the folder.
    """
    log = log or FaultLog()
    path = source.split_file
    if not path.is_file():
        existing = sorted(file.stem for file in path.parent.glob("*.txt"))
        found = f"its folder has: {', '.join(existing)}" if existing else "its folder has no split at all"
        text = f"no such split file; {found}.\nName one that exists with data.train_split, data.val_split or "
        raise FaultError(Fault("file-missing", path, f"{text}data.test_split."))
    image_ids = []
    for line, content in enumerate(_read_text(path).split("\n"), start=1):
        name = _image_id(content)
        if not name:
            continue
        if (reason := unsafe_path(name)) is not None:
            text = f"the image id {name!r} {reason}, which is refused."
            log.add(Fault("path-unsafe", path, text, line))
        else:
            image_ids.append((name, line))
    if not image_ids:
        raise FaultError(Fault("split-empty", path, "is empty: expected one image id a line."))
    return image_ids


def _image_id(line: str) -> str:
    """What a line of a split names: all of it, as ids may have spaces, but for VOC's second column.

    In the lists of one class that column says whether the image has it: 1, -1, or 0 where it is difficult to see.
    """
    name = line.strip()
    columns = name.rsplit(maxsplit=1)
    return columns[0] if len(columns) == 2 and columns[1] in _CLASS_COLUMN else name


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, limit=_LARGEST_SPLIT).decode("utf-8-sig")
    except LSHFMError as error:
        raise FaultError(Fault("file-missing", path, without_path(error, path))) from error
    except UnicodeDecodeError as error:
        raise FaultError(Fault("file-missing", path, f"can't be read as UTF-8 text: {error}.")) from error


def list_names(folder: Path) -> set[str]:
    """The names of the files in a folder.

    Raises:
        LSHFMError: the folder can't be listed.
    """
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError as error:
        text = (
            f"can't be listed: {error.strerror}. "
            "A folder in VOC layout has Annotations/, JPEGImages/ and ImageSets/Main/."
        )
        raise FaultError(Fault("file-missing", folder, text)) from error


def _find_image(names: set[str], image_id: str, filename: str) -> str | None:
    stems = (image_id, filename, Path(filename).stem)
    candidates = (stem + suffix for stem in stems for suffix in ("", *_IMAGE_SUFFIXES))
    return next((name for name in candidates if name in names and name.endswith(_IMAGE_SUFFIXES)), None)


def _read_annotation(path: Path, image_id: str, log: FaultLog) -> Annotation | None:
    """None where the file as a whole can't be read; an object that can't is left out, and said to `log`."""
    try:
        root = _parse(path, image_id, log)
    except FaultError as error:
        log.add(error.fault)
        return None
    objects = []
    for position, node in enumerate(root.findall("object"), start=1):
        try:
            objects.append((_read_name(node), _read_box(node), _read_difficult(node), position))
        except _ObjectError as error:
            text = f"{error.subject} of object {position} ({_text(node, 'name') or 'no name'}) {error}"
            line = object_line(path, position, error.tag)
            log.add(Fault(error.kind, path, text, line, image_id))
    names, boxes, difficult, positions = (
        map(list, zip(*objects, strict=True)) if objects else ([], [], [], [])
    )
    return Annotation(
        path=path,
        filename=_text(root, "filename"),
        width=_read_size(root, "width"),
        height=_read_size(root, "height"),
        names=names,
        boxes=boxes,
        difficult=difficult,
        positions=positions,
    )


def _parse(path: Path, image_id: str, log: FaultLog) -> ET.Element:
    def fault(kind: str, text: str, line: int | None = None) -> FaultError:
        return FaultError(Fault(kind, path, text, line, image_id))

    try:
        if path.is_file() and (size := path.stat().st_size) > _LARGEST_XML:
            raise fault("annotation-huge", f"has {size:,} bytes, above the limit of {_LARGEST_XML:,}.")
        data = read_bytes(path, limit=_LARGEST_XML)
        root = ET.fromstring(data, ET.XMLParser(target=_TreeBuilderWithoutDoctype()))
    except LSHFMError as error:
        if isinstance(error, FaultError):
            raise
        raise fault("annotation-broken", without_path(error, path)) from error
    except _DoctypeError as error:
        raise fault("annotation-doctype", f"{error}.") from error
    except (ET.ParseError, ValueError, LookupError, OSError) as error:
        line = error.position[0] if isinstance(error, ET.ParseError) else None
        raise fault("annotation-broken", f"can't be read: {error}. Expected a VOC XML file.", line) from error
    if root.tag != "annotation":
        raise fault("annotation-broken", f"expected <annotation>, found <{root.tag}>: not a VOC annotation.")
    declared = _XML_ENCODING.match(data)
    encoding = (
        declared[1].decode() if declared else "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    )
    if encoding.lower() not in ("utf-8", "ascii", "us-ascii"):
        log.add(Fault("encoding", path, f"is in {encoding}, not UTF-8; it was read."))
    return root


class _ObjectError(Exception):
    """What is wrong with an object; `tag` is the element to point at."""

    def __init__(self, kind: str, tag: str, text: str, subject: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.tag = tag
        self.subject = subject or f"<{tag}>"


def object_line(path: Path, position: int, tag: str = "object") -> int | None:
    """The line, from 1, of an object of an annotation, or of an element in it.

    Looked for only when there is something to tell, so that reading doesn't take the time.

    Args:
        path: an XML file that has been read.
        position: of the object, from 1.
        tag: of the element; the object itself where it has none.
    """
    objects = _object_lines(path, path.stat().st_mtime_ns)
    found = objects[position - 1] if position <= len(objects) else {}
    return found.get(tag, found.get("object"))


@lru_cache(maxsize=_FILES_WITH_LINES)
def _object_lines(path: Path, modified: int) -> list[dict[str, int]]:
    """Of each object, the lines of the first element of each name; read once for all faults of a file."""
    depth = 0
    objects: list[dict[str, int]] = []
    is_inside = False
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, is_inside
        if depth == 1:
            is_inside = name == "object"
            if is_inside:
                objects.append({})
        if is_inside:
            objects[-1].setdefault(name, parser.CurrentLineNumber)
        depth += 1

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(read_bytes(path, limit=_LARGEST_XML), True)
    return objects


def _text(node: ET.Element, tag: str) -> str:
    return (node.findtext(tag) or "").strip()


def _read_size(root: ET.Element, tag: str) -> int:
    """The image's width or height as stated, 0 where it is not; some tools write 500.0."""
    try:
        value = float(_text(root, f"size/{tag}"))
    except ValueError:
        return 0
    return max(int(value), 0) if value.is_integer() else 0


def _read_name(node: ET.Element) -> str:
    name = _text(node, "name")
    if not name:
        raise _ObjectError("annotation-incomplete", "name", "is missing. Give the object's class.")
    return name


def _read_box(node: ET.Element) -> tuple[float, float, float, float]:
    corners = node.find("bndbox")
    if corners is None:
        raise _ObjectError("annotation-incomplete", "bndbox", "is missing: expected xmin, ymin, xmax, ymax.")
    values = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = _text(corners, tag)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) < _LARGEST_COORDINATE:
            raise _ObjectError("box-not-a-number", tag, f"is '{text}': expected a number of pixels.")
        values.append(value)
    xmin, ymin, xmax, ymax = values
    if xmax <= xmin - 1 or ymax <= ymin - 1:
        is_reversed = xmax < xmin - 1 or ymax < ymin - 1
        raise _ObjectError(
            "box-reversed" if is_reversed else "box-without-area",
            "bndbox",
            f"{'has its corners changed over' if is_reversed else 'has no area'}: xmin, ymin, xmax, ymax = "
            f"{xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}. Correct or remove it.",
            subject="the box",
        )
    return xmin - 1, ymin - 1, xmax, ymax


def _read_difficult(node: ET.Element) -> bool:
    text = _text(node, "difficult")
    if text not in ("", "0", "1"):
        raise _ObjectError("annotation-incomplete", "difficult", f"is '{text}': expected 0 or 1.")
    return text == "1"


def sorted_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """The class names in `annotations`, each once, sorted."""
    return tuple(sorted({name for annotation in annotations for name in annotation.names}))
