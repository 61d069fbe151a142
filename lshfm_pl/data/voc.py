"""Object detection data sets in the folder layout of the PASCAL VOC devkit.

A folder holds `Annotations/<id>.xml`, `JPEGImages/<id>.jpg` and `ImageSets/Main/<split>.txt`.
"""

import difflib
import http.client
import io
import math
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg

from lshfm_pl.data.sampler import Draw, mix_seed
from lshfm_pl.errors import LSHFMError

__all__ = [
    "VOC_CLASSES",
    "VOCDetection",
    "VOCRecord",
    "VOCSource",
    "decode_image",
    "download_voc",
    "read_class_names",
    "resolve_source",
]

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The twenty classes of PASCAL VOC 2007–2012 in the devkit's order; `VOC_CLASSES[i]` has label `i + 1`."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")

# What torchvision and Pillow raise for files that are broken, too large or no images.
_DECODING_ERRORS = (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError)

# The torchvision archive (year, image_set) that holds a split.
_ARCHIVES = {
    "VOC2007/train": ("2007", "trainval"),
    "VOC2007/val": ("2007", "trainval"),
    "VOC2007/trainval": ("2007", "trainval"),
    "VOC2007/test": ("2007", "test"),
    "VOC2012/train": ("2012", "trainval"),
    "VOC2012/val": ("2012", "trainval"),
    "VOC2012/trainval": ("2012", "trainval"),
}

Target = dict[str, Tensor]
Transform = Callable[[tv_tensors.Image, dict[str, Any]], tuple[Tensor, dict[str, Any]]]


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
class VOCRecord:
    """One annotated image, with all its objects, those marked difficult included.

    `boxes` float32 [N, 4] are (x1, y1, x2, y2) in pixels, 0-based and continuous; `labels` int64 [N] are
    1..C; `difficult` bool [N]. `width` and `height` are in pixels, as the annotation states them.
    """

    # Arrays, not tensors: a spawned loader worker would open one shared-memory file per tensor.
    image_id: str
    image_path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True, slots=True)
class _Annotation:
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


class VOCDetection(Dataset[tuple[Tensor, Target]]):
    """One or more splits in VOC layout, merged in the order given.

    All annotations are read, and all files looked for, when the object is made; images are read on access.
    An item is `(image, target)`: image uint8 [3, H, W] RGB; target with `boxes` float32 [N, 4] (x1, y1, x2,
    y2 in pixels, 0-based, continuous), `labels` int64 [N] in 1..C (0 is background), `difficult` bool [N] and
    `image_id` int64 [], the position in the data set. Boxes follow the published convention: xmin and ymin
    of the 1-based inclusive annotation are lowered by one, xmax and ymax kept, so that x spans 0..W.

    The key of an item is an int, or a `Draw(index, epoch)`: random transforms depend on (seed, epoch, index)
    and on nothing else, so neither on the loader's workers nor on the order of access.

    Args:
        sources: the (folder, split) pairs.
        class_names: names of the labels 1..C; None reads them from the annotations (sorted).
        transforms: called with `(tv_tensors.Image, target)` whose boxes are `tv_tensors.BoundingBoxes`.
        keep_difficult: False drops objects marked difficult from the targets (training).
        seed: the seed of the random transforms, at least 0.

    Raises:
        LSHFMError: a folder, split, image or annotation is missing or wrong; the message names the file.
    """

    def __init__(
        self,
        sources: Sequence[VOCSource],
        class_names: Sequence[str] | None = None,
        *,
        transforms: Transform | None = None,
        keep_difficult: bool = True,
        seed: int = 0,
    ) -> None:
        annotated = [(source, *item) for source in sources for item in _read_source(source)]
        if class_names is None:
            class_names = _sorted_names(annotation for *_, annotation in annotated)
        self.sources = tuple(sources)
        self.class_names = tuple(class_names)
        self.keep_difficult = keep_difficult
        self.transforms = transforms
        self.seed = seed
        prefixes = _folder_prefixes(sources)
        label_of = {name: label for label, name in enumerate(self.class_names, start=1)}
        self.records = [
            _make_record(f"{prefixes[source.folder]}/{image_id}", image_path, annotation, label_of)
            for source, image_id, image_path, annotation in annotated
        ]
        _refuse_duplicates(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, Target]:
        index, epoch = key if isinstance(key, Draw) else (key, 0)
        index = range(len(self))[index]
        image = decode_image(self.records[index].image_path)
        target = self.target(index)
        if self.transforms is None:
            return image, target
        target["boxes"] = tv_tensors.BoundingBoxes(
            target["boxes"], format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=tuple(image.shape[-2:])
        )
        # Only the CPU generator, whose state fork_rng puts back: torch.manual_seed would reseed CUDA too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix_seed(self.seed, epoch, index))
            image, target = self.transforms(tv_tensors.Image(image), target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return image.as_subclass(Tensor), plain

    def target(self, index: int) -> Target:
        """The target of an item before transforms, without reading its image; the tensors are the class's."""
        record = self.records[index]
        keep = np.full(len(record.labels), True) if self.keep_difficult else ~record.difficult
        return {
            "boxes": torch.from_numpy(record.boxes[keep]),
            "labels": torch.from_numpy(record.labels[keep]),
            "difficult": torch.from_numpy(record.difficult[keep]),
            "image_id": torch.tensor(index),
        }

    @property
    def aspect_ratios(self) -> list[float]:
        """Width / height of every image."""
        return [record.width / record.height for record in self.records]

    def describe(self) -> dict[str, Any]:
        """Counts: `images`, annotated `difficult` objects, `objects` in the targets, these by `classes`."""
        counts = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        for record in self.records:
            labels = record.labels if self.keep_difficult else record.labels[~record.difficult]
            counts += np.bincount(labels, minlength=len(counts))
        return {
            "images": len(self),
            "objects": int(counts.sum()),
            "difficult": int(sum(record.difficult.sum() for record in self.records)),
            "classes": dict(zip(self.class_names, counts[1:].tolist(), strict=True)),
        }


def decode_image(path: Path) -> Tensor:
    """Read an image file as uint8 [3, H, W] RGB.

    Raises:
        LSHFMError: the file can't be read or is no image.
    """
    try:
        data = path.read_bytes()
        if data.startswith(b"\xff\xd8"):
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except _DECODING_ERRORS as error:
        raise LSHFMError(f"Can't read the image {path}: {error}. Replace the file.") from error


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
    if split in _ARCHIVES:
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
    return _sorted_names(annotation for source in sources for *_, annotation in _read_source(source))


def download_voc(root: str | Path, splits: Sequence[str]) -> None:
    """Fetch the PASCAL VOC archives that hold `splits` (`VOC2007/trainval`, …) into `root/VOCdevkit`.

    The addresses and checksums are torchvision's. A split whose files are all there is not fetched again.

    Raises:
        LSHFMError: a split is not one of VOC2007 or VOC2012, or the download failed.
    """
    root = Path(root).expanduser()
    unknown = [split for split in splits if split not in _ARCHIVES]
    if unknown:
        raise LSHFMError(
            f"data.download=true can't fetch '{unknown[0]}': it knows {', '.join(_ARCHIVES)}. "
            "Set data.download=false and data.root to your own data."
        )
    parent = root.parent if root.name == "VOCdevkit" else root
    for year, image_set in sorted({_ARCHIVES[split] for split in splits}):
        if _is_complete(root, f"VOC{year}/{image_set}"):
            continue
        try:
            torchvision.datasets.VOCDetection(str(parent), year=year, image_set=image_set, download=True)
        except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
            key = "2007-test" if image_set == "test" else year
            archive = torchvision.datasets.voc.DATASET_YEAR_DICT[key]
            raise LSHFMError(
                f"Downloading VOC{year} {image_set} failed (network or mirror): {error}.\n"
                f"Fetch {archive['url']} (md5 {archive['md5']}) by hand and unpack it in {parent}, "
                f"so that {parent / 'VOCdevkit' / f'VOC{year}' / 'Annotations'} exists."
            ) from error


def _is_complete(root: Path, split: str) -> bool:
    try:
        source = resolve_source(root, split)
        image_ids = _read_split(source)
        images = _list_names(source.folder / "JPEGImages")
        annotations = _list_names(source.folder / "Annotations")
    except LSHFMError:
        return False
    return all(f"{name}.jpg" in images and f"{name}.xml" in annotations for name in image_ids)


def _read_source(source: VOCSource) -> list[tuple[str, Path, _Annotation]]:
    """The (image id, image path, annotation) of every line of a split."""
    image_ids = _read_split(source)
    images_folder = source.folder / "JPEGImages"
    image_names = _list_names(images_folder)
    annotation_names = _list_names(source.folder / "Annotations")
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


def _read_split(source: VOCSource) -> list[str]:
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


def _list_names(folder: Path) -> set[str]:
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


def _read_annotation(path: Path) -> _Annotation:
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
    return _Annotation(
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


def _make_record(
    image_id: str, image_path: Path, annotation: _Annotation, label_of: dict[str, int]
) -> VOCRecord:
    width, height = annotation.width, annotation.height
    if not (width and height):
        width, height = _image_size(image_path)
    labels = [_label(name, label_of, annotation.path) for name in annotation.names]
    return VOCRecord(
        image_id=image_id,
        image_path=image_path,
        width=width,
        height=height,
        boxes=np.array(annotation.boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        difficult=np.array(annotation.difficult, dtype=np.bool_),
    )


def _label(name: str, label_of: dict[str, int], path: Path) -> int:
    label = label_of.get(name)
    if label is None:
        closest = difflib.get_close_matches(name, label_of, n=1)
        advice = f"Did you mean '{closest[0]}'?" if closest else f"The classes are: {', '.join(label_of)}."
        raise LSHFMError(f"The class '{name}' in {path} is not in data.class_names. {advice}")
    return label


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels from the file's header."""
    try:
        with Image.open(path) as image:
            return image.size
    except _DECODING_ERRORS as error:
        raise LSHFMError(f"Can't read the size of the image {path}: {error}. Replace the file.") from error


def _sorted_names(annotations: Iterable[_Annotation]) -> tuple[str, ...]:
    return tuple(sorted({name for annotation in annotations for name in annotation.names}))


def _folder_prefixes(sources: Sequence[VOCSource]) -> dict[Path, str]:
    """What makes image ids unique across folders: the folder's name, or its path where two share a name."""
    folders = {source.folder for source in sources}
    names = [folder.resolve().name for folder in folders]
    return {
        folder: name if names.count(name) == 1 else folder.as_posix()
        for folder, name in zip(folders, names, strict=True)
    }


def _refuse_duplicates(records: Sequence[VOCRecord]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.image_id in seen:
            raise LSHFMError(
                f"The image {record.image_id} is listed twice in the splits that make up one data set "
                f"({record.image_path}). Remove one line or one split."
            )
        seen.add(record.image_id)
