"""`python -m lshfm_pl.predict`: what a checkpoint detects in pictures, drawn and as COCO-format JSON."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("predict")  # before the imports below, which take seconds

import glob
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lshfm_pl.cli import as_dict
from lshfm_pl.console import is_terminal
from lshfm_pl.data.coco import unused_name
from lshfm_pl.data.dataset import watched
from lshfm_pl.data.images import FORMATS, SUFFIXES, decode_image
from lshfm_pl.data.voc_layout import is_picture
from lshfm_pl.data.workers import worker_arguments
from lshfm_pl.detectors import Detector, load_detector
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.config import EVALUATION_SETTINGS
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import fitting_name
from lshfm_pl.metrics.inputs import foreground
from lshfm_pl.modules.detection import as_float
from lshfm_pl.reporting.drawing import draw_detections, save_picture
from lshfm_pl.results import write_json

__all__ = ["SOME_UNREADABLE", "choose_device", "detect", "find_pictures", "predict", "unused_labels"]

SOME_UNREADABLE = 3
"""Exit status where pictures were left out because they could not be read."""

PREDICTIONS, PICTURES = "predictions.json", "pictures"
"""What is written to the output folder."""

_NOT_READ = {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".psd", ".ppm", ".pgm", ".tga"}
"""Suffixes of formats that are not read. A file that is named, or found by a pattern, may have any."""


class Picture(NamedTuple):
    """A file and its name in the output: its path below the folder that was given, or that all of them share."""

    path: Path
    name: str


class _Pictures(Dataset[tuple[int, Tensor | str, list[str]]]):
    """(position, uint8 image [3, H, W] or the reason why it cannot be read, what is wrong inside)."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str, list[str]]:
        path = self.pictures[index].path
        try:
            image, faults = watched(path, lambda: decode_image(path, upright=True))
        except LSHFMError as error:
            return index, str(error), []
        return index, image, [str(fault) for fault in faults if fault.is_error]


def predict(config: DictConfig) -> list[str]:
    """Detect objects in `config.images`; writes `predictions.json` and `pictures/` in `config.output_dir`.

    `predictions.json` has COCO's format: `images` (`id`, `file_name`, `width`, `height`), `categories` (`id` is the
    detector's label, `name`) and `annotations` (`image_id`, `category_id`, `bbox` as x, y, width, height in pixels,
    `score`); `annotations` is what pycocotools' `loadRes` takes. `unreadable` names the files left out.

    Returns:
        The names of the files that could not be read.

    Raises:
        LSHFMError: a checkpoint that does not load, no pictures, or none that can be read.
    """
    for key, least in (("batch_size", 1), ("num_workers", 0)):
        if type(config[key]) is not int or config[key] < least:
            raise LSHFMError(f"{key}: expected a whole number of at least {least}, found {config[key]}")
    pictures = find_pictures(config.images)
    detector = load_detector(
        config.checkpoint,
        config=as_dict(config.get("model")),
        which=config.which,
        evaluation={key: config[key] for key in EVALUATION_SETTINGS},
    )
    detector.to(choose_device(config.device))
    folder = Path(config.output_dir)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "categories": []}
    annotations: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    loader: DataLoader[Any] = DataLoader(
        _Pictures(pictures),
        batch_size=config.batch_size,
        **worker_arguments(min(config.num_workers, len(pictures))),
        collate_fn=list,
    )
    with tqdm(total=len(pictures), unit="picture", disable=not is_terminal(sys.stderr)) as bar:
        for batch in loader:
            read = [(index, image) for index, image, _ in batch if isinstance(image, Tensor)]
            for text in (text for _, _, told in batch for text in told):
                tqdm.write(f"warning: {text}", file=sys.stderr)
            for index, reason in ((index, item) for index, item, _ in batch if isinstance(item, str)):
                unreadable.append({"file_name": pictures[index].name, "reason": reason})
                tqdm.write(f"left out: {reason}", file=sys.stderr)
            found = detect(detector, [image for _, image in read]) if read else []
            for (index, image), of_image in zip(read, found, strict=True):
                picture = pictures[index]
                height, width = image.shape[-2:]
                size = {"width": width, "height": height}
                content["images"].append({"id": index + 1, "file_name": picture.name, **size})
                annotations += _annotations(of_image, index + 1, len(annotations))
                if config.pictures:
                    save_picture(
                        _drawn(image, of_image, detector, config.score_threshold),
                        folder / PICTURES / fitting_name(picture.name, ".png"),
                        optimize=False,
                    )
            bar.update(len(batch))
    if not content["images"]:
        raise LSHFMError(
            f"images: none of the {len(pictures)} files could be read, such as {pictures[0].path}"
        )
    target = folder / PREDICTIONS
    content["categories"] = _categories(
        detector.class_names,
        unused_labels(detector.class_names, read_checkpoint(config.checkpoint)),
        {annotation["category_id"] for annotation in annotations},
    )
    write_json({**content, "annotations": annotations, "unreadable": unreadable}, target)
    print(f"{len(content['images'])} pictures, {len(annotations)} detections: {target}")
    if config.pictures:
        print(f"drawn from score {config.score_threshold:g}: {folder / PICTURES}")
    if unreadable:
        print(
            f"{len(unreadable)} of {len(pictures)} files could not be read and were left out", file=sys.stderr
        )
    return [entry["file_name"] for entry in unreadable]


def find_pictures(images: Any) -> list[Picture]:
    """The files that `images` means: a folder (with all below it), a file, a glob pattern, or a list of them.

    Raises:
        LSHFMError: there is none.
    """
    entries = list(images) if isinstance(images, ListConfig | list | tuple) else [images]
    files: list[Path] = []
    roots: list[Path] = []
    for entry in entries:
        paths, root = _matching(Path(entry).expanduser().absolute())
        if not paths:
            raise LSHFMError(
                f"images: expected a folder with pictures ({', '.join(sorted(SUFFIXES))}), a file or a pattern "
                f"in quotes; found none by {entry}"
            )
        files += paths
        roots.append(root)
    top = Path(os.path.commonpath(roots))
    return [Picture(path, path.relative_to(top).as_posix()) for path in dict.fromkeys(files)]


def _matching(pattern: Path) -> tuple[list[Path], Path]:
    """The files, sorted, and the folder that they are looked for in."""
    if pattern.is_file():
        return [pattern], pattern.parent
    if pattern.is_dir():
        files = sorted(file for file in pattern.rglob("*") if not file.is_dir())
        drawn = [file for file in files if _is_drawn(file, pattern)]
        if drawn:
            print(
                f"left out: {len(drawn)} pictures that predict has drawn, such as {drawn[0]}", file=sys.stderr
            )
            files = [file for file in files if file not in set(drawn)]
        others = [file for file in files if file.suffix.lower() in _NOT_READ]
        if others:
            print(
                f"left out: {len(others)} files of formats that are not read, such as {others[0]}; "
                f"convert them to one of {', '.join(FORMATS)}",
                file=sys.stderr,
            )
        return [file for file in files if is_picture(file.name)], pattern
    fixed = len(list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1])))
    root = Path(*pattern.parts[:fixed])
    return sorted(file for file in root.glob("/".join(pattern.parts[fixed:])) if not file.is_dir()), root


def _is_drawn(file: Path, top: Path) -> bool:
    """Whether a file below `top` is of an earlier output of this command."""
    parents = itertools.takewhile(lambda parent: parent != top, file.parents)
    return any(parent.name == PICTURES and (parent.parent / PREDICTIONS).exists() for parent in parents)


def choose_device(name: str | None) -> torch.device:
    """The device of that name; None is a GPU if there is one.

    Raises:
        LSHFMError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise LSHFMError(f"device: expected cpu, cuda or cuda:<number>, found {name} ({reason})") from error
    return device


def detect(detector: Detector, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """`boxes` [N, 4], `labels` [N] and `scores` [N] of uint8 images [3, H, W], on the CPU, in their pixels.

    Labels are those of classes, from 1.
    """
    device = next(detector.parameters()).device
    with torch.inference_mode():
        found = detector(as_float([image.to(device) for image in images]))
    return [{key: value.cpu() for key, value in foreground(of_image).items()} for of_image in found]


def unused_labels(class_names: Sequence[str], checkpoint: Any) -> set[int]:
    """The labels that no category of the data has, as those that COCO's ids leave out.

    They have names by their own number. Only labels that are category ids have such gaps: in data of another kind a
    class of that name is a class.

    Args:
        class_names: of the labels 1..C.
        checkpoint: the content of the file that they are from, which may say what data it was trained with.
    """
    data = checkpoint.get("data") if isinstance(checkpoint, Mapping) else None
    if isinstance(data, Mapping) and data.get("category_ids") != "keep":
        return set()
    return {label for label, name in enumerate(class_names, start=1) if name == unused_name(label)}


def _categories(class_names: Sequence[str], unused: set[int], detected: set[int]) -> list[dict[str, Any]]:
    """All classes; of labels that are none those that were detected all the same."""
    return [
        {"id": label, "name": name}
        for label, name in enumerate(class_names, start=1)
        if label not in unused or label in detected
    ]


def _annotations(found: dict[str, Tensor], image_id: int, count: int) -> list[dict[str, Any]]:
    """The detections of one image as COCO results, numbered on from `count`."""
    boxes = torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], dim=1)
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for number, (box, label, score) in enumerate(
            zip(boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True), count + 1
        )
    ]


def _drawn(image: Tensor, found: dict[str, Tensor], detector: Detector, threshold: float) -> Tensor:
    shown = {key: value[found["scores"] >= threshold] for key, value in found.items()}
    return draw_detections(image, shown["boxes"], shown["labels"], detector.class_names, shown["scores"])


@cli.main("predict")
def main(config: DictConfig) -> None:
    """Predict, and tell by the exit status whether all pictures could be read."""
    if predict(config):
        sys.exit(SOME_UNREADABLE)
