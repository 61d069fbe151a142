"""Reading splits in VOC layout: the folder of a split, and its images with their annotations.

A folder contains `Annotations/<id>.xml`, `JPEGImages/<id>.jpg` and `ImageSets/Main/<split>.txt`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.folders import pictures_below
from lshfm_pl.data.split import Part
from lshfm_pl.data.voc.annotations import Annotation, read_annotation
from lshfm_pl.data.voc.layout import ANNOTATIONS, IMAGES, Files, VOCSource, describe_layout
from lshfm_pl.data.voc.pictures import PictureError, find_picture
from lshfm_pl.data.voc.splits import read_split

__all__ = [
    "ARCHIVES",
    "AnnotatedImage",
    "find_pictures",
    "read_class_names",
    "read_sources",
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
"""Split → torchvision's archive (year, image_set) that contains it."""


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One line of a split.

    Attributes:
        image_id: `<folder>/<id>`, unique over all folders that are read together.
        image_path: the image file; None if it is missing and errors are skipped.
        annotation: the annotation; None if it can't be read and errors are skipped.
    """

    image_id: str
    image_path: Path | None
    annotation: Annotation | None


def resolve_source(
    root: str | Path, split: str, annotations: str | None = None, images: str | None = None
) -> VOCSource:
    """Find the folder of a split.

    Args:
        root: the data folder.
        split: `<split>` for a folder in VOC layout at `root` itself; `<folder>/<split>` for one below it
            (`VOC2007/trainval`: `root/VOCdevkit/VOC2007` or `root/VOC2007`); or a path, folder or share as in
            `VOCSource`, at `root` itself.
        annotations: folder of the XML files; None for VOC's.
        images: folder of the images; None for VOC's.

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
            "Set data.root to the folder that contains VOCdevkit/, or data.download=true to download VOC."
        )
    elif root.is_dir():
        advice = describe_layout(root)
    else:
        advice = "Set data.root to a folder with Annotations/, JPEGImages/ and ImageSets/Main/."
    also = f", nor {candidates[0]}" if folder else ""
    text = f"not found{also}: the split '{split}' needs this folder.\n{advice}"
    raise FaultError(Fault("file-missing", candidates[-1], text))


def read_class_names(
    sources: Sequence[VOCSource], log: FaultLog | None = None, first_pixel: int = 1, part: Part | None = None
) -> tuple[str, ...]:
    """The class names in the annotations of `sources`, sorted.

    Raises:
        LSHFMError: an annotation or image is missing or invalid, and `log` does not skip errors.
    """
    images = read_sources(sources, log or FaultLog(), first_pixel, part)
    return sorted_names(image.annotation for image in images if image.annotation is not None)


def read_sources(
    sources: Sequence[VOCSource], log: FaultLog, first_pixel: int = 1, part: Part | None = None
) -> list[AnnotatedImage]:
    """Read all images of the splits, in order.

    Args:
        sources: the splits.
        log: receives errors and warnings.
        first_pixel: coordinate of an image's first pixel: 1 as in VOC; 0 uses the corners unchanged.
        part: the part of the images that is read; None for all.

    Raises:
        LSHFMError: a split, an annotation or an image is missing or invalid, and `log` does not skip errors.
    """
    prefixes = _folder_prefixes(sources)
    images: dict[str, AnnotatedImage] = {}
    for source, files, name, line in _lines(sources, log, part):
        image_id = f"{prefixes[source.folder]}/{name}"
        if image_id in images:
            text = f"'{name}' is listed twice in the splits that make up one data set; it is read once."
            log.add(Fault("entry-repeated", source.split_file, text, line))
            continue
        annotation = None
        annotation_path = files.annotation(name)
        if annotation_path is None:
            path = source.annotation_folder / f"{name}.xml"
            text = f"'{name}' has no annotation {path}. Add the file or remove the line."
            log.add(Fault("file-missing", source.split_file, text, line, image_id))
        else:
            annotation = read_annotation(annotation_path, image_id, log, first_pixel)
        try:
            image_path = find_picture(files, name, annotation, log)
        except PictureError as error:
            image_path = None
            log.add(Fault(error.kind, source.split_file, str(error), line, image_id))
        images[image_id] = AnnotatedImage(image_id, image_path, annotation)
    return list(images.values())


def find_pictures(sources: Sequence[VOCSource], log: FaultLog, part: Part | None = None) -> list[Path]:
    """The image files of the splits, in order, whether they have an annotation or not.

    A split that is all annotations of a folder has all pictures of the folder. For a share of them, and a part of
    divided images, the annotations still say which images there are, since the other sets have the rest.

    Args:
        sources: the splits.
        log: receives errors and warnings.
        part: the part of the images; None for all.

    Raises:
        LSHFMError: a split or an image is missing, and `log` does not skip errors.
    """
    whole = [source for source in sources if part is None and source.split.endswith("/")]
    paths = [path for source in whole for path in pictures_below(source.image_folder / source.split, log)]
    others = [source for source in sources if source not in whole]
    for source, files, name, line in _lines(others, log, part, needs_annotations=False):
        try:
            paths.append(find_picture(files, name, None, log))
        except PictureError as error:
            log.add(Fault(error.kind, source.split_file, str(error), line, name))
    return paths


def _lines(
    sources: Sequence[VOCSource], log: FaultLog, part: Part | None, *, needs_annotations: bool = True
) -> list[tuple[VOCSource, Files, str, int]]:
    """Source, its files, id and line number of each image of the splits, or of a part of them."""
    lines = []
    for source in sources:
        files = Files(source, needs_annotations=needs_annotations)
        lines += [(source, files, name, line) for name, line in read_split(source, log, files)]
    if part is None:
        return lines
    pictures = [files.pictures(name) or files.pictures_alike(name) for _, files, name, _ in lines]
    is_chosen = part.choose([found[0] if found else None for found in pictures])
    return [line for line, is_mine in zip(lines, is_chosen, strict=True) if is_mine]


def _folder_prefixes(sources: Sequence[VOCSource]) -> dict[Path, str]:
    """Prefixes that make image ids unique: the folder's name, or its path if two folders have the same name."""
    folders = {source.folder for source in sources}
    names = [folder.resolve().name for folder in folders]
    return {
        folder: name if names.count(name) == 1 else folder.as_posix()
        for folder, name in zip(folders, names, strict=True)
    }


def sorted_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """The distinct class names in `annotations`, sorted."""
    return tuple(sorted({name for annotation in annotations for name in annotation.names}))
