"""The folder layout of VOC: finding annotations and images, and describing folders with another layout."""

import os
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultError
from lshfm_pl.data.folders import is_hidden, is_picture, walk
from lshfm_pl.data.listed import ListedFolders
from lshfm_pl.errors import first_few

__all__ = [
    "ANNOTATIONS",
    "IMAGES",
    "Files",
    "VOCSource",
    "describe_layout",
    "is_annotation",
    "list_names",
]

ANNOTATIONS = "Annotations"
IMAGES = "JPEGImages"
SPLITS = Path("ImageSets") / "Main"

_FOLDERS_LOOKED_AT = 200
"""Number of folders below the data folder that are examined to describe another layout."""
_DEPTH = 3
_TRAINING, _EVALUATION = ("train", "trainval"), ("val", "valid", "validation", "test", "eval")


@dataclass(frozen=True)
class VOCSource:
    """One split of one folder in VOC layout.

    Attributes:
        folder: the folder to which the other paths are relative.
        split: the name of a list in ImageSets/Main; `<name>.txt`, the path of a list; `<folder>/`, all
            annotations of that folder; `<a>-<b>%`, a share of all annotations; or `<folder>/<a>-<b>%`, a share of
            those of a folder.
        annotations: the folder of the XML files.
        images: the folder of the images.
    """

    folder: Path
    split: str
    annotations: str = ANNOTATIONS
    images: str = IMAGES

    @property
    def split_file(self) -> Path:
        """The text file that lists the image ids of the split, or the folder that replaces it."""
        if self.split.endswith(".txt"):
            return self.folder / self.split
        if self.split.endswith(("/", "%")):
            return self.annotation_folder / self.split.rpartition("/")[0]
        return self.folder / SPLITS / f"{self.split}.txt"

    @property
    def annotation_folder(self) -> Path:
        """The folder of `<id>.xml`."""
        return self.folder / self.annotations

    @property
    def image_folder(self) -> Path:
        """The folder of the images."""
        return self.folder / self.images


def is_annotation(name: str) -> bool:
    """Whether a file name has the suffix of an annotation and is not hidden."""
    return name.lower().endswith(".xml") and not is_hidden(name)


def list_names(folder: Path, listed: ListedFolders) -> Collection[str]:
    """The names in a folder.

    Args:
        folder: the folder.
        listed: lists it, unless it has done so.

    Raises:
        LSHFMError: the folder can't be listed.
    """
    try:
        return listed.read(folder)
    except OSError as error:
        text = f"can't be listed: {error.strerror}. {describe_layout(_data_folder(folder))}"
        raise FaultError(Fault("file-missing", folder, text)) from error


def _data_folder(folder: Path) -> Path:
    """The nearest parent folder that exists."""
    return next((parent for parent in folder.parents if parent.is_dir()), Path())


class Files:
    """The files of a source.

    Args:
        source: the source.
        needs_annotations: whether the folder of annotations must exist.

    Raises:
        LSHFMError: the folders of annotations and images can't be listed.
    """

    def __init__(self, source: VOCSource, *, needs_annotations: bool = True) -> None:
        self.source = source
        self._listed = ListedFolders()
        needed = (source.image_folder, source.annotation_folder)[: 1 + needs_annotations]
        for folder in needed:
            list_names(folder, self._listed)

    def annotation(self, image_id: str) -> Path | None:
        """The XML file of an id; None if there is none."""
        folder = (self.source.annotation_folder / image_id).parent
        name = Path(image_id).name
        return next(
            (
                folder / f"{name}{suffix}"
                for suffix in (".xml", ".XML")
                if f"{name}{suffix}" in self._listed.names(folder)
            ),
            None,
        )

    def pictures(self, image_id: str) -> list[Path]:
        """The files that can be the image of an id: its name with an accepted suffix."""
        path = self.source.image_folder / image_id
        alike = self._listed.of_stem(path.parent, path.name)
        return [path.parent / name for name in alike if Path(name).stem == path.name and is_picture(name)]

    def pictures_alike(self, image_id: str) -> list[Path]:
        """Like `pictures`, for names that differ only in case or Unicode form and are no other id."""
        path = self.source.image_folder / image_id
        return [
            path.parent / name
            for name in self._listed.of_stem(path.parent, path.name)
            if is_picture(name)
            and self.annotation(Path(image_id).with_name(Path(name).stem).as_posix()) is None
        ]

    def named(self, image_id: str, filename: str) -> Path | None:
        """The image that `<filename>` names, in the folder of the id's image. Its suffix may be missing."""
        name = filename.replace("\\", "/").rpartition("/")[2]
        folder = (self.source.image_folder / image_id).parent
        if name in self._listed.names(folder) and is_picture(name):
            return folder / name
        found = self._listed.of_stem(folder, name) or self._listed.of_stem(folder, Path(name).stem)
        pictures = [other for other in found if is_picture(other)]
        return folder / pictures[0] if name and len(pictures) == 1 else None

    def others(self, image_id: str) -> list[str]:
        """Files with the name of an id, in any case, that are not accepted as its image."""
        path = self.source.image_folder / image_id
        return [
            name for name in self._listed.of_stem(path.parent, path.name) if not name.lower().endswith(".xml")
        ]

    def exact(self, image_id: str) -> str | None:
        """The id for a name that has an annotation or an image; None if it has neither.

        If the annotation is spelled differently from its image, its spelling is returned.
        """
        if self.annotation(image_id) is not None:
            return image_id
        if not self.pictures(image_id):
            return None
        other = self.spelled(image_id)
        return image_id if other is None or self.pictures(other) else other

    def spelled(self, image_id: str) -> str | None:
        """The single id whose files have this name except for case and Unicode form; None if there isn't one."""
        for top, is_wanted in (
            (self.source.annotation_folder, is_annotation),
            (self.source.image_folder, is_picture),
        ):
            names = self._listed.of_stem((top / image_id).parent, Path(image_id).name)
            stems = {Path(name).stem for name in names if is_wanted(name)}
            if stems:
                return Path(image_id).with_name(stems.pop()).as_posix() if len(stems) == 1 else None
        return None

    def has_folder(self, name: str) -> bool:
        """Whether there are ids that begin with this folder."""
        return any((top / name).is_dir() for top in (self.source.annotation_folder, self.source.image_folder))

    @cached_property
    def example(self) -> str:
        """An existing id, for messages."""
        names = sorted(
            name for name in self._listed.names(self.source.annotation_folder) if name.endswith(".xml")
        )
        return names[0].removesuffix(".xml") if names else "000001"


def describe_layout(root: Path) -> str:
    """Describe what a folder with another layout contains, and the settings with which it can be read."""
    counts = {folder: count for folder, count in _counts(root) if any(count)}
    both = [folder for folder, (xml, pictures) in counts.items() if xml and pictures]
    xml_alone = [folder for folder, (xml, pictures) in counts.items() if xml and not pictures]
    pictures_alone = [folder for folder, (xml, pictures) in counts.items() if pictures and not xml]
    if both:
        settings = f"{_folders(_common_parent(both), _common_parent(both))} {_splits(root, both)}"
        return f"Found .xml files next to images in {first_few(both)}. Give: {settings}"
    if xml_alone and pictures_alone:
        folders = _folders(_common_parent(xml_alone), _common_parent(pictures_alone))
        found = f"Found .xml files in {first_few(xml_alone)} and images in {first_few(pictures_alone)}."
        return f"{found} Give: {folders} {_splits(root, xml_alone)}"
    found = first_few((f"{folder}/" for folder in sorted(_children(root))), 8) or "no folder"
    expected = f"A folder in VOC layout has {ANNOTATIONS}/, {IMAGES}/ and {SPLITS}/"
    return f"{expected}; {root} has {found}."


def _children(root: Path) -> list[str]:
    try:
        return [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []


def _counts(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Folders below `root` with their numbers of XML files and images."""
    for number, (folder, names) in enumerate(walk(root, _DEPTH)):
        if number >= _FOLDERS_LOOKED_AT:
            return
        xml = sum(map(is_annotation, names))
        yield folder.relative_to(root).as_posix(), (xml, sum(map(is_picture, names)))


def _common_parent(folders: list[str]) -> str:
    """The common parent of `folders`; a single folder itself."""
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders) or ".").as_posix()


def _splits(root: Path, folders: list[str]) -> str:
    """Settings for the splits: existing lists, else folders with the names of splits, else shares."""
    lists = sorted(path.stem for path in (root / SPLITS).glob("*.txt"))
    if lists:
        return _settings(_best_match(lists, _TRAINING), _best_match(lists, _EVALUATION), "")
    names = {Path(folder).name: folder for folder in folders}
    training, evaluation = _best_match(list(names), _TRAINING), _best_match(list(names), _EVALUATION)
    if training and evaluation:
        top = "" if _common_parent(folders) == "." else f"{_common_parent(folders)}/"
        return _settings(names[training].removeprefix(top), names[evaluation].removeprefix(top), "/")
    return "data.train_split=0-80% data.val_split=80-100%"


def _folders(annotations: str, images: str) -> str:
    return shlex.join([f"data.annotations={annotations}", f"data.images={images}"])


def _settings(training: str | None, evaluation: str | None, end: str) -> str:
    names = {"train_split": training, "val_split": evaluation}
    return " ".join(
        f"data.{key}=<list>{end}" if name is None else shlex.quote(f"data.{key}={name}{end}")
        for key, name in names.items()
    )


def _best_match(names: list[str], wanted: tuple[str, ...]) -> str | None:
    """The name that equals one of the wanted names, or else starts with one."""
    exact = [name for want in wanted for name in names if name.casefold() == want]
    return next(iter([*exact, *(n for want in wanted for n in names if n.casefold().startswith(want))]), None)
