"""Reading of folders in the layout of the PASCAL VOC devkit: splits and annotations.

A folder holds `Annotations/<id>.xml`, `JPEGImages/<id>.jpg` and `ImageSets/Main/<split>.txt`.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lshfm_pl.errors import LSHFMError

__all__ = [
    "ARCHIVES",
    "Annotation",
    "VOCSource",
    "list_names",
    "read_class_names",
    "read_source",
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
    """The content of one XML file; class names are not yet labels."""

    path: Path
    filename: str
    width: int
    height: int
    names: list[str]
    boxes: list[tuple[float, float, float, float]]
    difficult: list[bool]


class _TreeBuilderWithoutDoctype(ET.TreeBuilder):
    """Refuses the declaration that every XML entity attack needs, in any encoding, before it is read."""

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> NoReturn:
        raise ValueError(f"<!DOCTYPE {name} …> is refused")


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
    raise LSHFMError(
        f"No data folder for the split '{split}': {' and '.join(map(str, candidates))} not found.\n{advice}"
    )


def read_class_names(sources: Sequence[VOCSource]) -> tuple[str, ...]:
    """The class names in the annotations of `sources`, sorted.

    Raises:
        LSHFMError: an annotation or image is missing or wrong.
    """
    return sorted_names(annotation for source in sources for *_, annotation in read_source(source))


def read_source(source: VOCSource) -> list[tuple[str, Path, Annotation]]:
    """The (image id, image path, annotation) of every line of a split.

    Raises:
        LSHFMError: the split, an annotation or an image is missing or wrong.
    """
    image_ids = read_split(source)
    images_folder = source.folder / "JPEGImages"
    image_names = list_names(images_folder)
    annotation_names = list_names(source.folder / "Annotations")
    items = []
    for image_id in image_ids:
        annotation_path = source.folder / "Annotations" / f"{image_id}.xml"
        if annotation_path.name not in annotation_names:
            raise LSHFMError(
                f"No annotation {annotation_path} for '{image_id}', which {source.split_file} lists. "
                "Add the file or remove the line."
            )
        annotation = _read_annotation(annotation_path)
        image_name = _find_image(image_names, image_id, annotation.filename)
        if image_name is None:
            raise LSHFMError(
                f"No image '{image_id}' (.jpg, .jpeg or .png) in {images_folder}, but {source.split_file} "
                "lists it. Add the file or remove the line."
            )
        items.append((image_id, images_folder / image_name, annotation))
    return items


def read_split(source: VOCSource) -> list[str]:
    """The image ids that a split lists, in its order.

    Raises:
        LSHFMError: the split file is missing, empty or no text.
    """
    path = source.split_file
    if not path.is_file():
        existing = sorted(file.stem for file in path.parent.glob("*.txt"))
        found = f"its folder has: {', '.join(existing)}" if existing else "its folder has no split at all"
        raise LSHFMError(
            f"No split file {path}; {found}.\n"
            "Name one that exists with data.train_split, data.val_split or data.test_split."
        )
    lines = (line.split() for line in _read_text(path).splitlines())
    image_ids = [tokens[0] for tokens in lines if tokens]
    if not image_ids:
        raise LSHFMError(f"The split file {path} is empty: expected one image id a line.")
    return image_ids


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LSHFMError(f"Can't read {path} as UTF-8 text: {error}.") from error


def list_names(folder: Path) -> set[str]:
    """The names of the files in a folder.

    Raises:
        LSHFMError: the folder can't be listed.
    """
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise LSHFMError(
            f"Can't list {folder}: {error.strerror}. "
            "A folder in VOC layout has Annotations/, JPEGImages/ and ImageSets/Main/."
        ) from error


def _find_image(names: set[str], image_id: str, filename: str) -> str | None:
    stems = (image_id, filename, Path(filename).stem)
    candidates = (stem + suffix for stem in stems for suffix in ("", *_IMAGE_SUFFIXES))
    return next((name for name in candidates if name in names and name.endswith(_IMAGE_SUFFIXES)), None)


def _read_annotation(path: Path) -> Annotation:
    try:
        root = ET.fromstring(path.read_bytes(), ET.XMLParser(target=_TreeBuilderWithoutDoctype()))
    except (ET.ParseError, ValueError, LookupError, OSError) as error:
        raise LSHFMError(f"Can't read the annotation {path}: {error}. Expected a VOC XML file.") from error
    if root.tag != "annotation":
        raise LSHFMError(f"Expected <annotation> in {path}, found <{root.tag}>: not a VOC annotation.")
    names, boxes, difficult = [], [], []
    for position, node in enumerate(root.findall("object"), start=1):
        where = f"object {position} in {path}"
        name = _text(node, "name")
        if not name:
            raise LSHFMError(f"No <name> in {where}. Give the object's class.")
        names.append(name)
        boxes.append(_read_box(node, f"{where} ({name})"))
        difficult.append(_read_difficult(node, f"{where} ({name})"))
    return Annotation(
        path=path,
        filename=_text(root, "filename"),
        width=_read_size(root, "width"),
        height=_read_size(root, "height"),
        names=names,
        boxes=boxes,
        difficult=difficult,
    )


def _text(node: ET.Element, tag: str) -> str:
    return (node.findtext(tag) or "").strip()


def _read_size(root: ET.Element, tag: str) -> int:
    """The image's width or height as stated, 0 where it is not."""
    try:
        return max(int(_text(root, f"size/{tag}")), 0)
    except ValueError:
        return 0


def _read_box(node: ET.Element, where: str) -> tuple[float, float, float, float]:
    corners = node.find("bndbox")
    if corners is None:
        raise LSHFMError(f"No <bndbox> for {where}. Expected xmin, ymin, xmax, ymax.")
    values = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = _text(corners, tag)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise LSHFMError(f"<{tag}> of {where} is '{text}': expected a number of pixels.")
        values.append(value)
    xmin, ymin, xmax, ymax = values
    if xmax <= xmin - 1 or ymax <= ymin - 1:
        raise LSHFMError(
            f"The box of {where} has no area: xmin, ymin, xmax, ymax = "
            f"{xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}. Correct or remove it."
        )
    return xmin - 1, ymin - 1, xmax, ymax


def _read_difficult(node: ET.Element, where: str) -> bool:
    text = _text(node, "difficult")
    if text not in ("", "0", "1"):
        raise LSHFMError(f"<difficult> of {where} is '{text}': expected 0 or 1.")
    return text == "1"


def sorted_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """The class names in `annotations`, each once, sorted."""
    return tuple(sorted({name for annotation in annotations for name in annotation.names}))
