"""`python -m lshfm_pl.visualize`: draw ground truth, detections and the agreement of features as PNG files."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("visualize")  # before the imports below, which take seconds

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from torch import Tensor

from lshfm_pl.data.sampler import Draw
from lshfm_pl.detectors import Detector
from lshfm_pl.drawing.agreement import agreement_picture
from lshfm_pl.drawing.display import refuse_without_display, show
from lshfm_pl.drawing.grid import TRUTH, detection_grid, save_picture
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.inference.detect import choose_device, detect
from lshfm_pl.inference.initial import initial_detector
from lshfm_pl.inference.loading import load_for_data, load_split
from lshfm_pl.inference.selection import choose_images
from lshfm_pl.kernels.switches import set_switches
from lshfm_pl.mimic.agreement import agreement_maps, find_hash

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
    if config.split is None:
        config.split = "train" if config.get("augment") else "test"
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
    samples = [dataset[Draw(index, config.epoch)] for index in chosen]
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    names = [dataset.records[index].image_id for index in chosen]

    title = f"training pictures of epoch {config.epoch}" if config.get("augment") else TRUTH
    columns: dict[str, list[dict[str, Tensor]]] = {title: targets}
    detectors: dict[str, Detector] = {}
    for title, file in files.items():
        detector = load_for_data(file, config, class_names).to(device)
        # One image at a time, as in evaluation: padding would move the boxes a little.
        columns[title] = [detect(detector, [image])[0] for image in images]
        if config.agreement:
            detectors[title] = detector

    folder = Path(config.output_dir)
    kind = "detections" if files else "augmented" if config.get("augment") else "ground_truth"
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


def _selection(names: Sequence[str]) -> str:
    """The names of the images in a picture, as a part of its file name."""
    text = "_".join(names) if len(names) <= 2 else f"{names[0]}_and_{len(names) - 1}_more"
    return re.sub(r"[^\w.-]+", "-", text).encode()[:LONGEST_NAME].decode(errors="ignore")


@cli.main("visualize")
def main(config: DictConfig) -> None:
    """Draw the pictures and print their paths."""
    visualize(config)
