"""Reading of folders in the layout of the PASCAL VOC devkit: splits and annotations.

A folder holds `Annotations/<id>.xml`, `JPEGImages/<id>.jpg` and `ImageSets/Main/<split>.txt`.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from lshfm_pl.data.faults import Fault, FaultError, FaultLog, without_path
from lshfm_pl.data.images import SUFFIXES
from lshfm_pl.data.spelling import composed
from lshfm_pl.data.voc.layout import ANNOTATIONS, IMAGES, Files, VOCSource, found_layout, list_names
from lshfm_pl.data.voc.splits import read_split
from lshfm_pl.errors import LSHFMError, few
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

_LARGEST_XML = 8 * 2**20
"""Bytes. An object takes about 300."""
_FILES_WITH_LINES = 4
"""Annotations whose lines are kept, for all faults of one of them."""
_LARGEST_COORDINATE = 1e9
"""Pixels: no image has more, and NaN and the infinities are outside of ± this too."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KNOWN_TO_EXPAT = ("utf-8", "utf-16", "iso-8859-1", "us-ascii", "ascii")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_BLANKS_FIRST = re.compile(rb"\A([ \t\r\n]+)(<\?xml[^>\n]*\?>)")
_BARE_AMPERSAND = re.compile(rb"&(?!#?\w+;)")
_DIFFICULT = {"": False, "0": False, "1": True}
_DIFFICULT_READ_SO = {"false": False, "0.0": False, "true": True, "1.0": True}
_XML_ENCODING = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)")


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


def resolve_source(
    root: str | Path, split: str, annotations: str | None = None, images: str | None = None
) -> VOCSource:
    """Find the folder of a split.

    Args:
        root: the data folder.
        split: `<split>` for a folder in VOC layout at `root` itself, `<folder>/<split>` for one below it
            (`VOC2007/trainval`: `root/VOCdevkit/VOC2007` or `root/VOC2007`); or a path, folder or share as
            `VOCSource` has them, at `root` itself.
        annotations: the folder of the XML files; None is VOC's.
        images: the folder of the pictures; None is VOC's.

    Raises:
        LSHFMError: there is no such folder.
    """
    root = Path(root).expanduser()
    is_at_root = split.endswith((".txt", "/", "%"))
    folder, _, name = ("", "", split) if is_at_root else split.rpartition("/")
    candidates = [root / "VOCdevkit" / folder, root / folder] if folder else [root]
    for candidate in candidates:
        if candidate.is_dir():
            return VOCSource(candidate, name, annotations or ANNOTATIONS, images or IMAGES)
    if split in ARCHIVES:
        advice = (
            "Set data.root to the folder that contains VOCdevkit/, or data.download=true to fetch PASCAL VOC."
        )
    elif root.is_dir():
        advice = found_layout(root)
    else:
        advice = "Set data.root to a folder with Annotations/, JPEGImages/ and ImageSets/Main/."
    also = f", nor {candidates[0]}" if folder else ""
    text = f"not found{also}: the split '{split}' needs this folder.\n{advice}"
    raise FaultError(Fault("file-missing", candidates[-1], text))


def read_class_names(
    sources: Sequence[VOCSource], log: FaultLog | None = None, first_pixel: int = 1
) -> tuple[str, ...]:
    """The class names in the annotations of `sources`, sorted.

    Raises:
        LSHFMError: an annotation or image is missing or wrong, unless `log` says to skip it.
    """
    images = read_sources(sources, log or FaultLog(), first_pixel)
    return sorted_names(image.annotation for image in images if image.annotation is not None)


def read_sources(sources: Sequence[VOCSource], log: FaultLog, first_pixel: int = 1) -> list[AnnotatedImage]:
    """Every image of the splits, in their order.

    Args:
        sources: the splits.
        log: is told of what is wrong or unusual.
        first_pixel: the coordinate of an image's first pixel: 1 as in VOC; 0 takes the corners as they are.

    Raises:
        LSHFMError: a split, an annotation or an image is missing or wrong, unless `log` says to skip it.
    """
    prefixes = _folder_prefixes(sources)
    images: dict[str, AnnotatedImage] = {}
    for source in sources:
        files = Files(source)
        for name, line in read_split(source, log, files):
            image_id = f"{prefixes[source.folder]}/{name}"
            if image_id in images:
                text = f"'{name}' is listed twice in the splits that make up one data set. Remove one."
                log.add(Fault("id-repeated", source.split_file, text, line))
                continue
            annotation = None
            annotation_path = files.annotation(name)
            if annotation_path is None:
                path = source.annotation_folder / f"{name}.xml"
                text = f"'{name}' has no annotation {path}. Add the file or remove the line."
                log.add(Fault("file-missing", source.split_file, text, line, image_id))
            else:
                annotation = _read_annotation(annotation_path, image_id, log, first_pixel)
            try:
                image_path = _find_image(files, name, annotation, log)
            except _PictureError as error:
                image_path = None
                log.add(Fault(error.kind, source.split_file, str(error), line, image_id))
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


class _PictureError(Exception):
    """Why an image has no picture."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _find_image(files: Files, name: str, annotation: Annotation | None, log: FaultLog) -> Path:
    """The file of the id's name; of several the one that `<filename>` names; without any that one too."""
    filename = annotation.filename if annotation else ""
    stated = filename.replace("\\", "/").rpartition("/")[2]
    pictures = files.pictures(name)
    if len(pictures) > 1:
        of_name = [path for path in pictures if path.name == stated]
        if len(of_name) == 1 and annotation is not None:
            names = few([path.name for path in pictures])
            text = f"its <filename> {stated} decides which of {names} is its picture."
            log.add(Fault("image-chosen", annotation.path, text))
            return of_name[0]
        found = f"'{name}' has several pictures: {few([path.name for path in pictures])}"
        advice = "<filename> of its annotation names none of them. Correct it, or remove the others."
        raise _PictureError("image-ambiguous", f"{found}; {advice}")
    if pictures:
        picture = pictures[0]
        other = files.named(name, stated) if Path(stated).stem != picture.stem else None
        if other not in (None, picture) and annotation is not None:
            text = f"its <filename> {stated} is another picture; {picture.name} is taken, which has its name."
            log.add(Fault("image-chosen", annotation.path, text))
        return picture
    alike = files.pictures_alike(name)
    named = alike[0] if len(alike) == 1 else files.named(name, filename) if filename else None
    if named is not None:
        reason = "differs in case or in the form of Unicode alone" if alike else "is its <filename>"
        text = f"'{name}' has no picture of its very name: {named.name} is taken, which {reason}."
        log.add(Fault("image-chosen", annotation.path if annotation else named, text))
        return named
    folder = (files.source.image_folder / name).parent
    others = files.others(name)
    advice = "Add the file or remove the line."
    if others:
        advice = f"There is {few(others)}: convert it to one of these, or correct its name."
    text = f"'{name}' has no image ({', '.join(sorted(SUFFIXES))}) in {folder}. {advice}"
    raise _PictureError("image-missing", text)


def _read_annotation(path: Path, image_id: str, log: FaultLog, first_pixel: int) -> Annotation | None:
    """None where the file as a whole can't be read; an object that can't is left out, and said to `log`."""
    try:
        root = _parse(path, image_id, log)
    except FaultError as error:
        log.add(error.fault)
        return None
    nested = sum(1 for _ in root.iter("object")) - len(root.findall("object"))
    if nested:
        text = f"{nested} <object> not directly in <annotation> would be lost. Move them there."
        log.add(Fault("annotation-incomplete", path, text, image_id=image_id))
    for parent, tags in ((root, ("filename", "size")), (root.find("size"), ("width", "height"))):
        for tag in _repeated(parent, tags):
            text = f"<{tag}> is there more than once. Keep one."
            log.add(Fault("element-repeated", path, text, image_id=image_id))
    objects = []
    for position, node in enumerate(root.findall("object"), start=1):
        try:
            _refuse_repeated(node)
            box = _read_box(node, first_pixel)
            objects.append((_read_name(node), box, _read_difficult(node), position))
            if (text := _text(node, "difficult")) not in _DIFFICULT:
                told = f"<difficult> of object {position} is '{text}', read as {int(objects[-1][2])}."
                log.add(Fault("value-read", path, told, object_line(path, position, "difficult")))
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
        root = ET.fromstring(_xml(data), ET.XMLParser(target=_TreeBuilderWithoutDoctype()))
    except LSHFMError as error:
        if isinstance(error, FaultError):
            raise
        raise fault("annotation-broken", without_path(error, path)) from error
    except _DoctypeError as error:
        raise fault("annotation-doctype", f"{error}.") from error
    except (ET.ParseError, ValueError, LookupError, OSError) as error:
        line = error.position[0] if isinstance(error, ET.ParseError) else None
        advice = _advice(data, error) if isinstance(error, ET.ParseError) else "Expected a VOC XML file."
        raise fault("annotation-broken", f"can't be read: {error}. {advice}", line) from error
    if root.tag != "annotation":
        raise fault("annotation-broken", f"expected <annotation>, found <{root.tag}>: not a VOC annotation.")
    declared = _XML_ENCODING.match(data)
    encoding = declared[1].decode() if declared else "utf-16" if data[:2] in _UTF16_MARKS else "utf-8"
    if encoding.lower() not in ("utf-8", "ascii", "us-ascii"):
        log.add(Fault("encoding", path, f"is in {encoding}, not UTF-8; it was read."))
    return root


def _xml(data: bytes) -> bytes | str:
    """XML as expat reads it: no blanks before its declaration, and encodings decoded that expat doesn't know."""
    data = _BLANKS_FIRST.sub(rb"\2\1", data)  # after it, so that lines keep their numbers
    declared = _XML_ENCODING.match(data)
    name = declared[1].decode() if declared else "utf-8"
    return data if name.lower() in _KNOWN_TO_EXPAT else data.decode(name)


def _advice(data: bytes, error: ET.ParseError) -> str:
    """What is probably wrong where XML can't be parsed."""
    lines = data.splitlines()
    line = lines[error.position[0] - 1] if error.position[0] <= len(lines) else b""
    if _XML_ENCODING.match(data) is None and data[:2] not in _UTF16_MARKS:
        try:
            data.decode()
        except UnicodeDecodeError:
            return "Its text is not UTF-8: store it as UTF-8, or declare its encoding in the first line."
    if _BARE_AMPERSAND.search(line):
        return "Write & as &amp;."
    return "Expected a VOC XML file."


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
    parser.Parse(_xml(read_bytes(path, limit=_LARGEST_XML)), True)
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


def _repeated(node: ET.Element | None, tags: Sequence[str]) -> list[str]:
    """Those of the elements that are there more than once."""
    if node is None:
        return []
    counts = Counter(child.tag for child in node)
    return [tag for tag in tags if counts[tag] > 1]


def _refuse_repeated(node: ET.Element) -> None:
    """Of an element that comes again one would be read, and the others lost."""
    for tag in [*_repeated(node, ("name", "bndbox", "difficult")), *_repeated(node.find("bndbox"), _CORNERS)]:
        raise _ObjectError("element-repeated", tag, "is there more than once: one object has one. Keep one.")


def _read_name(node: ET.Element) -> str:
    name = _text(node, "name")
    if not name:
        raise _ObjectError("annotation-incomplete", "name", "is missing. Give the object's class.")
    return composed(name)


def _read_box(node: ET.Element, first_pixel: int) -> tuple[float, float, float, float]:
    corners = node.find("bndbox")
    if corners is None:
        raise _ObjectError("annotation-incomplete", "bndbox", "is missing: expected xmin, ymin, xmax, ymax.")
    values = []
    for tag in _CORNERS:
        text = _text(corners, tag)
        try:
            value = math.nan if "_" in text else float(text)  # Python reads 1_0 as 10
        except ValueError:
            value = math.nan
        if not abs(value) < _LARGEST_COORDINATE:
            raise _ObjectError("box-not-a-number", tag, f"is '{text}': expected a number of pixels.")
        values.append(value)
    xmin, ymin, xmax, ymax = values
    left, top = xmin - first_pixel, ymin - first_pixel
    if xmax <= left or ymax <= top:
        is_reversed = xmax < left or ymax < top
        raise _ObjectError(
            "box-reversed" if is_reversed else "box-without-area",
            "bndbox",
            f"{'has its corners changed over' if is_reversed else 'has no area'}: xmin, ymin, xmax, ymax = "
            f"{xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}. Correct or remove it.",
            subject="the box",
        )
    return left, top, xmax, ymax


def _read_difficult(node: ET.Element) -> bool:
    text = _text(node, "difficult")
    known = {**_DIFFICULT, **_DIFFICULT_READ_SO}
    if text.lower() not in known:
        raise _ObjectError("annotation-incomplete", "difficult", f"is '{text}': expected 0 or 1.")
    return known[text.lower()]


def sorted_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """The class names in `annotations`, each once, sorted."""
    return tuple(sorted({name for annotation in annotations for name in annotation.names}))
