"""Finding the image files of an annotation file in COCO's JSON format: `file_name` → path."""

import os
import posixpath
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from lshfm_pl.data.coco.values import EntryError, Notes, has_unprintable, refuse_missing, short_repr
from lshfm_pl.data.faults import Fault, FaultError, FaultLog, unsafe_path
from lshfm_pl.data.folders import walk
from lshfm_pl.data.listed import ListedFolders
from lshfm_pl.data.spelling import fold_spelling

__all__ = ["ImageFinder", "advice", "file_name_of", "find_images"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_LONGEST_PART = 255
"""Bytes of a file name that common file systems allow."""
_LONGEST_PATH = 4095
_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])")
_PLAIN_NAME = re.compile(r"\w[\w-]*(\.[\w-]+)+", re.ASCII)
"""The usual name: without folders."""
_LOCAL_FILES = "/data/local-files/"
"""Prefix of Label Studio's names for files on its own machine: `/data/local-files/?d=<path>`."""

_COCO2017_NAMES = ("instances_train2017.json", "instances_val2017.json", "train2017", "val2017")
_COCO2017_ADVICE = (
    "data.root needs annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/*.jpg "
    "and val2017/*.jpg: unpack http://images.cocodataset.org/zips/train2017.zip, …/zips/val2017.zip and "
    "…/annotations/annotations_trainval2017.zip there."
)


class NamedImage(Protocol):
    """The required attributes of an entry of `images`."""

    @property
    def id(self) -> int | str:
        """Id that is unique in its file."""

    @property
    def file_name(self) -> str:
        """Name as the entry states it."""


def file_name_of(entry: dict[str, Any], notes: Notes, others: Sequence[str] = ()) -> str:
    """The `file_name` of an entry, or the name under another key.

    Args:
        entry: entry of `images`.
        notes: receives what was read although it has the wrong format.
        others: keys to use if there is no `file_name`.

    Raises:
        EntryError: there is no name, or no file can have it.
    """
    key = next((key for key in ("file_name", *others) if key in entry), None)
    if key is None:
        refuse_missing("file_name")
    name = entry[key]
    if not isinstance(name, str) or not name.strip():
        raise EntryError(f"{key} is {short_repr(name)}, expected text")
    if key != "file_name":
        notes.add("value-read", f"{key} is {short_repr(name)}, read as file_name")
    elif has_unprintable(name) and not has_unprintable(name.strip()):
        notes.add("value-read", f"file_name is {short_repr(name)}, read without its line break")
        name = name.strip()
    if (reason := _impossible_name(name)) is not None:
        raise EntryError(f"file_name {short_repr(name)} {reason}", "path-unsafe")
    return name


def find_images(
    folder: Path,
    images: Sequence[NamedImage],
    annotation_file: Path,
    log: FaultLog | None = None,
    setting: str = "data.{train,val,test}_images",
) -> list[Path | None]:
    """Find the path of every image below `folder`. Each folder is listed once.

    If no file has exactly the name, these are tried: without leading folders (of the annotation tool, or those at
    the end of `folder`), `/` instead of `\\`, other case or Unicode form, or with a missing suffix added. One
    file must be the only match. All such matches give one warning. No path leaves `folder`, except by a symbolic
    link.

    Raises:
        LSHFMError: the folder is missing, all images are missing, or one is and `log` does not skip errors. If it
            skips errors, the path of a missing image is None.
    """
    log = log or FaultLog()
    if not folder.is_dir():
        raise FaultError(Fault("file-missing", folder, f"no such folder of images.\n{advice(folder)}"))
    below = ImageFinder(folder)
    notes = Notes()
    paths: list[Path | None] = []
    faults: list[Fault] = []
    for image in images:
        path = below.exact(image.file_name)
        if path is None:
            try:
                path = below.resolve(image.file_name)
                notes.add(
                    "file-name-read",
                    f"{short_repr(image.file_name)} of image {image.id} is {_short_path(path, folder)}",
                )
            except _NotFoundError as error:
                text = f"{error.text}, but {annotation_file} lists it. {error.advice}"
                if error.kind == "path-unsafe":
                    text = f"entry of image {image.id}: {error.text}. {error.advice}"
                place = annotation_file if error.kind == "path-unsafe" else folder / image.file_name
                faults.append(Fault(error.kind, place, text, image_id=str(image.id)))
        paths.append(path)
    if len(faults) == len(images) > 1:
        raise FaultError(_none_found_fault(folder, images, annotation_file, faults[0], setting))
    for fault in faults:
        log.add(fault)
    texts = {"file-name-read": f"file_names match a file of {folder} except for folder or spelling"}
    notes.report(annotation_file, log, texts)
    _report_repeated_files(below, images, paths, annotation_file, log)
    return paths


def advice(path: Path) -> str:
    """What to set if a file or folder is missing."""
    if path.name in _COCO2017_NAMES:
        return _COCO2017_ADVICE
    return (
        "Set data.root, and data.{train,val,test}_annotations and data.{train,val,test}_images below it "
        "(or as absolute paths)."
    )


class _NotFoundError(Exception):
    """No file matches a name, or more than one does."""

    def __init__(self, text: str, advice: str, kind: str = "image-missing") -> None:
        super().__init__(text)
        self.text = text
        self.advice = advice
        self.kind = kind


class ImageFinder:
    """The files below a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed = ListedFolders()
        self._real_folders: dict[str, str] = {}
        self._everywhere: dict[str, list[Path]] | None = None

    def exact(self, name: str) -> Path | None:
        """The file with exactly this name; None if there is none or it would leave the folder."""
        if _PLAIN_NAME.fullmatch(name) and name in self._listed.names(self.root):
            return self.root / name
        if unsafe_path(name) is not None:
            return None
        path = self.root / name
        return path if path.name in self._listed.names(path.parent) else None

    def alike(self, name: str) -> Path | None:
        """The single file that a name can mean, without those in folders that it does not have; else None."""
        try:
            return self.resolve(name, deeper=False)
        except _NotFoundError:
            return None

    def target(self, path: Path) -> str:
        """A path that is the same for all spellings of, and links to, a file."""
        folder, name = os.path.split(path)
        folder = folder or os.curdir
        if self._listed.names(folder).get(name):
            return os.path.realpath(path)
        return f"{self._real(folder)}/{name}"

    def _real(self, folder: str) -> str:
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return self._real_folders[folder]

    def resolve(self, name: str, *, deeper: bool = True) -> Path:
        """The single file that a name can mean if no file has exactly this name.

        Args:
            name: of a file.
            deeper: whether a file in a deeper folder fits a name of another machine.

        Raises:
            _NotFoundError: there is no such file, or more than one.
        """
        parts = _parts(name)
        reason = unsafe_path(name)
        missing = (
            _NotFoundError("no such image", "Add the file or remove the entry.")
            if reason is None
            else _NotFoundError(
                f"file_name {short_repr(name)} {reason}, and no file below {self.root} has its name",
                "Give names below the folder of images.",
                "path-unsafe",
            )
        )
        for start in range(len(parts)):
            found = self._fitting(self.root, parts[start:]) or self._fitting(
                self.root, _unquoted(parts[start:])
            )
            if len(found) > 1:
                raise self._ambiguous(found)
            if found:
                self._refuse_other_folder(parts, start, found[0])
                return found[0]
        # A relative path means its folders: a file of this name in other folders is another picture.
        is_foreign = reason is not None or "\\" in name or "://" in name
        if deeper and parts and (len(parts) == 1 or is_foreign):
            found = self._anywhere(parts)
            if len(found) > 1:
                raise self._ambiguous(found)
            if found:
                self._refuse_other_folder(parts, len(parts) - 1, found[0])
                return found[0]
        if parts and reason is None and (other := self._of_stem(parts[-1])) is not None:
            missing.advice = f"There is {other}: correct the suffix if it is this one."
        raise missing

    def _ambiguous(self, found: Sequence[Path]) -> _NotFoundError:
        names = " or ".join(_short_path(path, self.root) for path in found[:2])
        return _NotFoundError(f"no such image, and it could be {names}", "Give the name of one.")

    def _fitting(self, folder: Path, parts: Sequence[str]) -> list[Path]:
        """The files that match except for case, Unicode form and a missing suffix."""
        name, *rest = parts
        is_there = name in self._listed.names(folder)
        fitting = [name] if is_there else self._listed.alike(folder, name)
        if rest:
            return [path for known in fitting for path in self._fitting(folder / known, rest)]
        if not fitting:
            fitting = [known for suffix in _SUFFIXES for known in self._listed.alike(folder, name + suffix)]
        return [folder / known for known in fitting if (folder / known).is_file()]

    def _of_stem(self, name: str) -> str | None:
        """A file with this name and another suffix, for messages."""
        return next(
            (known for known in self._listed.names(self.root) if Path(known).stem == Path(name).stem), None
        )

    def _refuse_other_folder(self, parts: Sequence[str], start: int, found: Path) -> None:
        """Refuse a match without leading folders if a sibling of this folder has the name of the first of them."""
        if start == 0:
            return
        beside = self.root.absolute().parent
        first = beside / parts[0]
        is_this = fold_spelling(parts[0]) in (fold_spelling(part) for part in self.root.absolute().parts)
        if not is_this and first.is_dir():
            raise _NotFoundError(
                f"no such image; {parts[0]}/ is next to this folder, and {_short_path(found, self.root)} in this "
                "folder has the name too",
                f"Set the folder of images to {beside} if the first is meant.",
            )

    def _anywhere(self, parts: Sequence[str]) -> list[Path]:
        """Files of this name in deeper folders: those with the longest end in common with the wanted path."""
        if self._everywhere is None:
            self._everywhere = {}
            for folder, files in walk(self.root):
                for file in files:
                    self._everywhere.setdefault(fold_spelling(file), []).append(folder / file)
        wanted = [fold_spelling(part) for part in reversed(parts)]

        def in_common(path: Path) -> int:
            found = map(fold_spelling, reversed(path.parts))
            return sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wanted, found, strict=False))
            )

        found = {path: in_common(path) for path in self._everywhere.get(wanted[0], [])}
        return [path for path, number in found.items() if number == max(found.values())]


def _parts(name: str) -> list[str]:
    """The folders and the file name of a path of any operating system or of a URL, without `..`."""
    if name.startswith(_LOCAL_FILES) or "://" in name:
        try:
            url = urlsplit(name)
            name = parse_qs(url.query).get("d", [unquote(url.path)])[0]
        except ValueError:  # no URL
            return []
    name = _DRIVE.sub("", name.replace("\\", "/"), count=1) if _DRIVE.match(name) else name.replace("\\", "/")
    return [part for part in posixpath.normpath(name).split("/") if part not in ("", ".", "..", "~")]


def _unquoted(parts: Sequence[str]) -> list[str]:
    """A path with decoded percent encoding, as in `my%20cat.jpg`."""
    names = [unquote(part) for part in parts]
    return [
        part for name in names for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")
    ]


def _short_path(path: Path, folder: Path) -> str:
    """A path for a message, relative to the parent of `folder`."""
    return (Path(folder.name) / path.relative_to(folder)).as_posix()


def _impossible_name(name: str) -> str | None:
    """Why no file can have this name; None if one can."""
    if len(name) <= _LONGEST_PART and name.isascii() and name.isprintable():
        return None  # the usual name
    if has_unprintable(name):
        return "has a character that no file name should have"
    size = len(name.encode())
    if size > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_PART for part in re.split(r"[/\\]", name)):
        return f"has {size:,} bytes: longer than a file name can be"
    return None


def _none_found_fault(
    folder: Path, images: Sequence[NamedImage], annotation_file: Path, first: Fault, setting: str
) -> Fault:
    name = images[0].file_name
    text = f"none of the {len(images):,} images of {annotation_file} is in this folder, such as {short_repr(name)}"
    parts = _parts(name)
    for above in [folder.absolute(), *folder.absolute().parents][1:3]:
        if len(parts) > 1 and (above / Path(*parts)).is_file():
            return Fault("image-missing", folder, f"{text}.\nThey are below {above}: set {setting} to it.")
    if "it could be" in first.text:
        reason = first.text.partition(", but ")[0]
        return Fault("image-missing", folder, f"{text}: {reason}.\nWrite the folders into the names.")
    other_suffix = first.text.rpartition("There is ")[2] if "There is " in first.text else ""
    advice = f"There is {other_suffix}" if other_suffix else f"Set {setting} to the folder that has them."
    return Fault("image-missing", folder, f"{text}.\n{advice}")


def _report_repeated_files(
    below: ImageFinder,
    images: Sequence[NamedImage],
    paths: Sequence[Path | None],
    annotation_file: Path,
    log: FaultLog,
) -> None:
    """Report files with several ids: their objects are divided, and in each copy the others' are background."""
    ids: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        if path is not None:
            ids.setdefault(below.target(path), []).append(index)
    for indices in ids.values():
        if len(indices) < 2:
            continue
        path = paths[indices[0]]
        assert path is not None
        names = " and ".join(short_repr(images[index].id) for index in indices)
        file = _short_path(path, below.root)
        text = f"file {file} has several ids, {names}: its objects are divided. Give it one id."
        for index in indices:
            if index != indices[0]:  # skipping must leave out all of them
                this, first = (short_repr(images[number].id) for number in (index, indices[0]))
                text = f"image {this} is the same file as image {first}."
            log.add(Fault("file-repeated", annotation_file, text, image_id=str(images[index].id)))
