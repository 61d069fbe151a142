"""Reading which images a split in VOC layout has: lines of a list, all files of a folder, or a share of them."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultError, FaultLog, unsafe_path
from lshfm_pl.data.folders import is_other_picture, is_picture, walk
from lshfm_pl.data.text_files import read_text
from lshfm_pl.data.voc.layout import SPLITS, Files, VOCSource, describe_layout, is_annotation
from lshfm_pl.errors import LSHFMError

__all__ = ["LARGEST_SPLIT", "read_split"]

LARGEST_SPLIT = 256 * 2**20
"""Bytes. A line has about 20."""
_NUMBER = re.compile(r"-?\d+")
_COLUMNS = re.compile(r"(.*?)(?:\s+-?\d+){2,}")
"""A name with several numbers after it, as in lists of classes and breeds."""
_SHARE = re.compile(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)%")
_SHARE_SEED = "share of a VOC folder"
"""Part of the hash that orders ids for shares, so that the order is the same on every machine."""


def read_split(
    source: VOCSource, log: FaultLog | None = None, files: Files | None = None
) -> list[tuple[str, int]]:
    """The image ids of a split, in order, with their line numbers from 1.

    A line is an id if there is a file of that name. Otherwise VOC's second column is removed (in lists of one class
    it says whether the image contains the class), and file names, paths and comments are accepted if exactly one id
    matches.

    Args:
        source: the split.
        log: receives warnings and errors about lines.
        files: files of the folder; None to use each line as an id.

    Raises:
        LSHFMError: the list is missing, empty or not text, or an id points outside of the folder.
    """
    log = log or FaultLog()
    if source.split.endswith(("/", "%")):
        return _of_folder(source, log, files or Files(source))
    path = source.split_file
    if not os.path.lexists(path):
        existing = sorted(file.stem for file in path.parent.glob("*.txt"))
        if existing:
            text = (
                f"no such split file; its folder has: {', '.join(existing)}.\n"
                "Choose one of them with data.train_split, data.val_split or data.test_split."
            )
        else:
            text = f"no such split file, and there is no other one in {SPLITS}.\n{_without_lists(source)}"
        raise FaultError(Fault("file-missing", path, text))
    image_ids: list[tuple[str, int]] = []
    unknown: list[tuple[str, int]] = []
    unsafe: list[Fault] = []
    read_so: list[Fault] = []
    for line, content in enumerate(
        re.split(r"\r\n|\n|\r", read_text(path, log, limit=LARGEST_SPLIT)), start=1
    ):
        name = content.strip()
        if not name:
            continue
        found = None if files is None else _ids_of(name, files)
        if found is None:
            plain = _without_column(name)
            if (reason := unsafe_path(plain)) is not None:
                text = f"the image id {plain[:100]!r} {reason}, which is refused."
                unsafe.append(Fault("path-unsafe", path, text, line))
            else:
                image_ids.append((plain, line))
            unknown.append((plain, line))
            continue
        ids, is_plain = found
        image_ids += [(image_id, line) for image_id in ids]
        if not is_plain:
            meant = f"as {', '.join(ids[:3])}" if ids else "as a comment"
            read_so.append(Fault("split-line-read", path, f"the line '{name[:100]}' was read {meant}.", line))
    if not image_ids and not unsafe:
        raise FaultError(Fault("split-empty", path, "is empty: expected one image id per line."))
    if files is not None and len(unknown) == len(image_ids) + len(unsafe) > 1:
        first = unknown[0]
        text = (
            f"none of its {len(unknown)} lines has an annotation in {source.annotation_folder} or a picture in "
            f"{source.image_folder}: the first is '{first[0]}'. Expected ids, such as '{files.example}'."
        )
        raise FaultError(Fault("file-missing", path, text, first[1]))
    for fault in (*unsafe, *read_so):
        log.add(fault)
    return image_ids


def _without_lists(source: VOCSource) -> str:
    if source.annotation_folder.is_dir() and source.image_folder.is_dir():
        return (
            "Give lists of ids, or shares of all images: data.train_split=0-80% data.val_split=80-100%, or "
            "folders of annotations: data.train_split=<folder>/"
        )
    return describe_layout(source.folder)


def _of_folder(source: VOCSource, log: FaultLog, files: Files) -> list[tuple[str, int]]:
    """All ids that have an annotation in a folder or below it, or a share of them."""
    below, _, share = source.split.rpartition("/")
    limits = _limits(source.split, share)
    top = source.annotation_folder / below
    if not top.is_dir():
        text = f"no such folder of annotations, which the split '{source.split}' names. "
        raise FaultError(Fault("file-missing", top, text + describe_layout(source.folder)))
    ids = [
        (folder / name).relative_to(source.annotation_folder).as_posix()[: -len(".xml")]
        for folder, names in walk(top)
        for name in names
        if is_annotation(name)
    ]
    if not ids:
        raise FaultError(Fault("split-empty", top, "has no annotation (.xml)."))
    _warn_about_unannotated(source.image_folder / below, source, files, log)
    if share:
        ids.sort(
            key=lambda name: hashlib.sha256(
                f"{_SHARE_SEED}/{name}".encode("utf-8", "surrogateescape")
            ).digest()
        )
        first, last = (round(limit * len(ids) / 100) for limit in limits)
        ids = ids[first:last]
        if not ids:
            raise FaultError(Fault("split-empty", top, f"has too few images for the share {share}."))
    return [(name, 1) for name in sorted(ids)]


def _limits(split: str, share: str) -> tuple[float, float]:
    match = _SHARE.fullmatch(share)
    limits = (float(match[1]), float(match[2])) if match else (0.0, 100.0)
    if (share and match is None) or not 0 <= limits[0] < limits[1] <= 100:
        raise LSHFMError(f"data: the split '{split}' is not a share: expected for example 0-80% or 80-100%.")
    return limits


def _warn_about_unannotated(folder: Path, source: VOCSource, files: Files, log: FaultLog) -> None:
    """Report images without an annotation: nothing says whether they are background or were not annotated."""
    for place, names in walk(folder):
        for name in names:
            if not (is_picture(name) or is_other_picture(name)):
                continue
            path = place / name
            image_id = path.relative_to(source.image_folder).with_suffix("").as_posix()
            if files.annotation(image_id) is None:
                log.add(
                    Fault("image-unannotated", path, "has no annotation (.xml) and is not part of the split.")
                )


def _without_column(name: str) -> str:
    columns = name.rsplit(maxsplit=1)
    return columns[0] if len(columns) == 2 and columns[1] in ("-1", "0", "1") else name


def _ids_of(line: str, files: Files) -> tuple[list[str], bool] | None:
    """The ids that a line means, and whether it has the form of VOC's lists; None if that is unclear."""
    found = _meant(line, files, files.exact)
    if found is None and (alike := _meant(line, files, files.spelled)) is not None:
        return alike[0], False
    return found


def _meant(line: str, files: Files, find: Callable[[str], str | None]) -> tuple[list[str], bool] | None:
    """`_ids_of` with a function `find` that returns the id for a name, or None."""

    def id_of(name: str) -> str | None:
        return find(name) if name and unsafe_path(name) is None else None

    def first_id(text: str) -> str | None:
        return next((found for name in _as_ids(text, files) if (found := id_of(name))), None)

    if found := id_of(line):
        return [found], found == line
    columns = line.rsplit(maxsplit=1)
    has_column = len(columns) == 2 and _NUMBER.fullmatch(columns[1]) is not None
    if has_column and (found := id_of(columns[0])):
        return [found], found == columns[0]
    if line.startswith("#"):
        return [], False
    if (numbered := _COLUMNS.fullmatch(line)) and (found := id_of(numbered[1])):
        return [found], False
    uncommented = line.partition("#")[0].strip()
    for whole in (line, columns[0] if has_column else line, uncommented):
        if found := first_id(whole):
            return [found], False
    items = [item for item in re.split(r"[,;]", uncommented) if item.strip()]
    ids = [first_id(item) for item in items]
    if len(items) > 1 and all(ids):
        return list(dict.fromkeys(name for name in ids if name)), False
    tokens = [token for token in re.split(r"[,;\s]+", uncommented) if _has_suffix(token)]
    distinct = {first_id(token) for token in tokens}
    if len(distinct) == 1 and (only := distinct.pop()) is not None:
        return [only], False
    return None


def _has_suffix(name: str) -> bool:
    return name.lower().rstrip("\"'").endswith(".xml") or is_picture(name.rstrip("\"'"))


def _as_ids(text: str, files: Files) -> Iterator[str]:
    """The ids that a file name or path can mean, starting with the whole name."""
    name = text.strip().strip("\"'").replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    names = [name]
    for folder in (files.source.images, files.source.annotations):
        if folder != "." and f"/{folder}/" in f"/{name}":
            names.append(f"/{name}".rpartition(f"/{folder}/")[2])
    # For a path on another machine: what is below each of its folders, unless ids begin with that folder.
    folders = name.split("/")[:-1]
    if folders and _has_suffix(name) and (folders[0] in ("", "..") or not files.has_folder(folders[0])):
        names += ["/".join(name.split("/")[start:]) for start in range(1, len(folders) + 1)]
    for candidate in names:
        yield candidate
        if _has_suffix(candidate):
            yield candidate.rpartition(".")[0]
