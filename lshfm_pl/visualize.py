"""`python -m lshfm_pl.visualize`: draw ground truth, detections and the agreement of features as PNG files."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("visualize")  # before the imports below, which take seconds

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from PIL import Image, ImageShow
from torch import Tensor

from lshfm_pl.data import DetectionDataset
from lshfm_pl.detectors import Detector, build_detector
from lshfm_pl.drawing.agreement import agreement_picture
from lshfm_pl.drawing.grid import TRUTH, detection_grid, save_picture
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.inference.detect import choose_device, detect
from lshfm_pl.inference.loading import load_for_data, load_split, started_from, stored_data
from lshfm_pl.kernels.switches import set_switches
from lshfm_pl.mimic.agreement import agreement_maps, find_hash
from lshfm_pl.seeding import LARGEST_SEED, seed_everything

__all__ = ["visualize"]


LONGEST_NAME = 120
"""Bytes of image names in the name of a PNG file: file systems allow 255 bytes in all."""

SHARED_FILE_NAMES = {"last", "best", "checkpoints"}
"""Parts of a checkpoint's path that many runs share, so that they cannot serve as a title."""


def visualize(config: DictConfig) -> list[Path]:
    """Draw the pictures that the config asks for into `config.output_dir`; returns the PNG files.

    Raises:
        LSHFMError: a checkpoint or the data do not load, classes differ, or an image does not exist.
    """
    set_switches(cli.as_dict(config.get("kernels")))
    if config.show:
        refuse_without_display()
    files = checkpoint_files(config)
    if config.agreement and config.teacher not in files:
        raise LSHFMError(
            f"agreement: expected a checkpoint named {config.teacher} among checkpoints, found "
            f"{first_few(files) or 'none'}; give "
            f"'checkpoints={{teacher: <file>, student: <file>}}', or teacher=<name>"
        )
    device = choose_device(config.device)
    dataset, class_names = load_split(config, list(files.values()))
    chosen = choose_images(dataset, config)
    samples = [dataset[index] for index in chosen]
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    names = [dataset.records[index].image_id for index in chosen]

    columns: dict[str, list[dict[str, Tensor]]] = {TRUTH: targets}
    detectors: dict[str, Detector] = {}
    for title, file in files.items():
        detector = load_for_data(file, config, class_names).to(device)
        # One image at a time, as in evaluation: padding would move the boxes a little.
        columns[title] = [detect(detector, [image])[0] for image in images]
        if config.agreement:
            detectors[title] = detector

    folder, kind = Path(config.output_dir), "detections" if files else "ground_truth"
    groups = [range(len(images))] if config.grid else [[position] for position in range(len(images))]
    written = [
        detection_grid(
            [images[position] for position in group],
            {title: [entries[position] for position in group] for title, entries in columns.items()},
            class_names,
            score_threshold=config.score_threshold,
            captions=[names[position] for position in group],
            targets=[targets[position] for position in group] if config.errors else None,
            path=folder / f"{kind}_{config.split}_{_selection([names[position] for position in group])}.png",
        )
        for group in groups
    ]
    if config.agreement:
        written += draw_agreement(config, files, detectors, dict(zip(names, images, strict=True)))
    for path in written:
        print(path)
        if config.show:
            show(path)
    return written


def checkpoint_files(config: DictConfig) -> dict[str, str]:
    """Title → file of `checkpoint` or `checkpoints`. The entries of a list get the names of their folders.

    Raises:
        LSHFMError: both keys are given, or two entries have the same title.
    """
    if config.checkpoint is not None and config.checkpoints is not None:
        raise LSHFMError("visualize: give checkpoint=<file> or checkpoints=…, not both")
    if isinstance(config.checkpoints, DictConfig):
        return {str(title): str(file) for title, file in config.checkpoints.items()}
    several = config.checkpoints if isinstance(config.checkpoints, ListConfig) else [config.checkpoints]
    given = [config.checkpoint] if config.checkpoint is not None else several
    files = [str(file) for file in given if file is not None]
    titles = [_title(file) for file in files]
    if len(set(titles)) < len(titles):
        raise LSHFMError(
            f"checkpoints: expected different names, found {first_few(titles)}; give names yourself: "
            "'checkpoints={a: <file>, b: <file>}'"
        )
    return dict(zip(titles, files, strict=True))


def _title(file: str) -> str:
    """The last part of a checkpoint's path that is not one of `SHARED_FILE_NAMES`."""
    path = Path(file)
    parts = [*path.parts[:-1], path.stem]
    distinctive = [part for part in parts if part not in SHARED_FILE_NAMES and part not in ("/", ".", "..")]
    return distinctive[-1] if distinctive else path.stem


def choose_images(dataset: DetectionDataset, config: DictConfig) -> list[int]:
    """Indices into the data set: those of `index`, else of the images `image_id`, else `random` ones by `seed`.

    Raises:
        LSHFMError: `index` and `image_id` are both given, or there is no such image.
    """
    if config.index is not None and config.image_id is not None:
        raise LSHFMError("visualize: give index or image_id, not both")
    if config.index is not None:
        positions = [int(index) for index in _as_list(config.index)]
        for index in positions:
            if not -len(dataset) <= index < len(dataset):
                raise LSHFMError(
                    f"index: expected 0..{len(dataset) - 1}, the images of {config.split}, found {index}"
                )
        return [range(len(dataset))[index] for index in positions]
    if config.image_id is not None:
        return [
            position for name in _as_list(config.image_id) for position in _named(dataset, str(name), config)
        ]
    count = min(config.random, len(dataset))
    if count < 1:
        raise LSHFMError(f"random: expected at least one image, found {config.random} of {len(dataset)}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed))
    return sorted(order[:count].tolist())


def _named(dataset: DetectionDataset, name: str, config: DictConfig) -> list[int]:
    """Indices of the images with this id. The folder in front of an id may be left out."""
    found = [
        position
        for position, record in enumerate(dataset.records)
        if record.image_id == name or record.image_id.endswith(f"/{name}")
    ]
    if not found:
        examples = first_few(record.image_id for record in dataset.records)
        raise LSHFMError(f"image_id: no image {name} in {config.split}; expected one such as {examples}")
    return found


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, ListConfig | list) else [value]


def draw_agreement(
    config: DictConfig,
    files: Mapping[str, str],
    detectors: Mapping[str, Detector],
    images: Mapping[str, Tensor],
) -> list[Path]:
    """Draw maps of the cosine and of the equal hash bits, before and after training, for each image and student.

    Returns:
        The PNG files.

    Raises:
        LSHFMError: student and teacher cannot be compared, or the initial weights are not available.
    """
    teacher = detectors[config.teacher]
    written = []
    for title, student in detectors.items():
        if student is teacher:
            continue
        head, source = find_hash(files[title], teacher, config.seed)
        print(f"{title}: bits by {source}")
        compared = {title: student}
        if config.before:
            fresh = initial_detector(student, files[title], config.seed)
            compared = {"before training": fresh.to(next(student.parameters()).device), **compared}
        for name, image in images.items():
            maps = {who: agreement_maps(detector, teacher, image, head) for who, detector in compared.items()}
            without = [entry.title for entry in maps[title] if entry.cosine_hw is None]
            if without:
                print(
                    f"{title}: left out, as the number of channels differs from the teacher's: "
                    f"{first_few(without, 10)}"
                )
            path = Path(config.output_dir) / f"agreement_{config.split}_{_selection([name, title])}.png"
            written.append(save_picture(agreement_picture(image, maps), path))
    return written


def initial_detector(detector: Detector, file: str, seed: int) -> Detector:
    """Build a detector as it was before training.

    Args:
        detector: the trained one.
        file: its checkpoint. If it stores the seed of its run, that seed is used.
        seed: used otherwise.

    Raises:
        LSHFMError: the initial weights of its backbone are not available, or training started from a whole
            detector; before=false does without them.
    """
    if (start := started_from(file)) is not None:
        raise LSHFMError(
            f"before: the training of {file} started from the detector {start}, which is not read for a picture. "
            "Give before=false to draw the trained weights alone"
        )
    stored = (stored_data(file) or {}).get("seed")
    with torch.random.fork_rng():
        is_seed = isinstance(stored, int) and not isinstance(stored, bool) and 0 <= stored <= LARGEST_SEED
        seed_everything(int(stored) if is_seed else seed)  # type: ignore[arg-type]
        refuse_download(detector.config.get("backbone_weights"), file)
        try:
            fresh = build_detector(
                detector.config, num_classes=detector.num_classes, class_names=detector.class_names
            )
        except LSHFMError as error:
            raise LSHFMError(f"{error}\nbefore=false draws the trained weights alone") from error
    return fresh.eval()


def refuse_download(backbone_weights: str | None, file: str) -> None:
    """Refuse to download weights from an address that only a checkpoint names.

    Raises:
        LSHFMError: the backbone's weights come from such an address.
    """
    if backbone_weights is not None and backbone_weights.startswith(("http://", "https://")):
        raise LSHFMError(
            f"before: the backbone of {file} started with the weights of {backbone_weights}, which are not "
            "downloaded for a picture. Give before=false to draw the trained weights alone"
        )


def _selection(names: Sequence[str]) -> str:
    """The names of the images in a picture, as a part of its file name."""
    text = "_".join(names) if len(names) <= 2 else f"{names[0]}_and_{len(names) - 1}_more"
    return re.sub(r"[^\w.-]+", "-", text).encode()[:LONGEST_NAME].decode(errors="ignore")


def refuse_without_display() -> None:
    """Check before any work is done that a window can be opened.

    Raises:
        LSHFMError: there is no display.
    """
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise LSHFMError(
            "show: there is no display to open a window on; leave show=false and open the PNG files"
        )


def show(path: Path) -> None:
    """Open a picture in the desktop's viewer.

    Raises:
        LSHFMError: there is no viewer.
    """
    with Image.open(path) as picture:
        if not ImageShow.show(picture, title=path.name):
            raise LSHFMError(f"show: found no program that shows pictures; open {path} yourself")


@cli.main("visualize")
def main(config: DictConfig) -> None:
    """Draw the pictures and print their paths."""
    visualize(config)
