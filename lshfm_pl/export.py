"""`python -m lshfm_pl.export`: write a detector for other programs, and check that the file detects the same."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("export")  # before the imports below, which take seconds

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lshfm_pl.cli import as_dict
from lshfm_pl.data import DetectionDataModule
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.tracing import DETECTIONS, RAW, graph_of
from lshfm_pl.errors import LSHFMError
from lshfm_pl.exporting.accuracy import average_precisions, labelled
from lshfm_pl.exporting.check import Difference, compare_detections, compare_raw, faults_of, total
from lshfm_pl.exporting.format import (
    Calibration,
    Export,
    Limits,
    Reader,
    load_format,
    refuse_missing_extra,
    refuse_other_settings,
)
from lshfm_pl.exporting.pictures import at_several_sizes, from_data, random_pictures
from lshfm_pl.files import atomic_file, temporary_folder
from lshfm_pl.inference.loading import load_trained, read_data
from lshfm_pl.kernels.switches import set_switches

__all__ = ["export"]


def export(config: DictConfig) -> Path:
    """Export `config.checkpoint` in `config.format`, and compare the file with the checkpoint.

    Returns:
        The path of the file.

    Raises:
        LSHFMError: settings do not fit together, the checkpoint does not load, the file exists, or it does not
            detect the same as the checkpoint. Then there is no file, unless `config.keep`.
    """
    set_switches(as_dict(config.get("kernels")))
    chosen = load_format(config.format)
    refuse_missing_extra(config.format, chosen)
    detector = load_trained(config)
    settings = _settings(config, detector)
    refuse_other_settings(config.format, chosen, settings)
    target = Path(config.output or Path(config.output_dir) / f"{detector.config['name']}{chosen.suffix}")
    if not target.name.endswith(chosen.suffix):
        raise LSHFMError(f"output: expected a name that ends in {chosen.suffix}, found {target}")
    chosen.refuse_place(target)
    for path in (target, *chosen.beside(target)):
        _refuse_place(path, overwrite=config.overwrite)
    datamodule = _data(config, "fit" if chosen.is_calibrated else "validate")
    if chosen.is_calibrated:
        settings = replace(settings, calibration=_calibration(config, datamodule))
    limits = _limits(config, settings)
    images = _images(config, datamodule, config.check.images)
    pictures = at_several_sizes(images, settings.size)
    with temporary_folder() as folder:
        written = folder / target.name
        with _told_of_full_disk(folder):
            chosen.write(settings, written)
        read = chosen.read(written)
        difference = compare(settings, read, pictures, limits)
        of_what = (
            "of the data" if datamodule is not None else "of random pixels, as no data were found (data=…)"
        )
        print(f"check on {len(pictures)} images {of_what}: {difference.text()}")
        faults = faults_of(difference, limits)
        if datamodule is not None and settings.nms and limits.ap_loss is not None:
            faults += _faults_of_ap(config, settings, read, datamodule, limits.ap_loss)
        if faults and not config.keep:
            raise LSHFMError(
                f"check: {'; '.join(faults)}. No file was written; keep=true keeps it, and other limits are set "
                f"by check.limits.{settings.weights}"
            )
        size = sum(file.stat().st_size for file in folder.iterdir())
        _move(folder, target, overwrite=config.overwrite)
    if faults:
        raise LSHFMError(f"check: {'; '.join(faults)}. {target} was kept, as keep=true demands")
    print(f"{target}: {detector.config['name']}, {size / 1e6:.2f} MB")
    return target


def compare(settings: Export, read: Reader, pictures: Sequence[Tensor], limits: Limits) -> Difference:
    """The differences of an exported file and its checkpoint, summed over images (float [3, H, W] in 0..1)."""
    reference = graph_of(settings.detector, nms=settings.nms)
    family = architecture_of(cast(nn.Module, settings.detector))
    score_thresh, nms_thresh, most = (
        settings.detector.config.get(family.evaluation.get(key, ""))
        for key in ("score_thresh", "nms_thresh", "detections_per_img")
    )
    differences = []
    for picture in pictures:
        with torch.no_grad():
            outputs = reference(picture[None])
        names = DETECTIONS if settings.nms else RAW
        expected: dict[str, Any] = dict(zip(names, outputs, strict=True))
        found = read(picture)
        if settings.nms:
            differences.append(
                compare_detections(
                    expected,
                    found,
                    least_score=limits.least_score,
                    score_slack=limits.score_slack,
                    score_thresh=score_thresh,
                    nms_thresh=nms_thresh,
                    most=most,
                )
            )
        else:
            differences.append(compare_raw(expected, found, least_score=limits.least_score))
    return total(differences)


def _settings(config: DictConfig, detector: Detector) -> Export:
    if (config.image_height is None) != (config.image_width is None):
        raise LSHFMError("image_height, image_width: give both for a fixed size, or neither for any size")
    size = None if config.image_height is None else (config.image_height, config.image_width)
    return Export(
        detector=detector,
        size=size,
        nms=config.nms,
        half=config.dtype == "float16",
        opset=config.opset,
    )


def _limits(config: DictConfig, settings: Export) -> Limits:
    """The limits for the weights of a file, with those that hold for all files."""
    limits = as_dict(config.check.limits[settings.weights])
    given = {key: config.check[key] for key in limits if config.check.get(key) is not None}
    return Limits(**{**limits, **given})


def _faults_of_ap(
    config: DictConfig, settings: Export, read: Reader, datamodule: DetectionDataModule, most: float
) -> list[str]:
    """What is wrong with the AP of an exported file, which may be lower than the checkpoint's by `most`."""
    graph = graph_of(settings.detector, nms=True)

    def reference(picture: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(DETECTIONS, graph(picture[None]), strict=True))

    images = labelled(datamodule.val_set, config.check.ap_images, config.seed, settings.size)
    expected, found = average_precisions([reference, read], images, settings.detector.class_names)
    print(f"AP on {len(images)} labelled images: {found:.1f}, the checkpoint's is {expected:.1f}")
    if found >= expected - most:
        return []
    return [f"AP {found:.1f}, expected at most {most:g} less than the checkpoint's {expected:.1f}"]


def _data(config: DictConfig, stage: str) -> DetectionDataModule | None:
    """The data of `data=…` or of the checkpoint; None if the latter are not there."""
    try:
        return read_data([config.checkpoint], config.get("data"), stage=stage, drawn_below=None)[0]
    except LSHFMError:
        if "data" in config and config.data is not None:
            raise
        return None


def _calibration(config: DictConfig, datamodule: DetectionDataModule | None) -> Calibration:
    """Training images, as the check uses those of validation."""
    images = [] if datamodule is None else from_data(datamodule.train_set, config.int8.images, config.seed)
    return Calibration(images=images, reduce_range=config.int8.reduce_range)


def _images(config: DictConfig, datamodule: DetectionDataModule | None, count: int) -> list[Tensor]:
    if datamodule is None:
        return random_pictures(count, config.seed)
    return from_data(datamodule.val_set, count, config.seed)


def _refuse_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that cannot be written, or is there already, before the work of an export."""
    if path.is_dir():
        raise LSHFMError(f"output: expected the path of a file to write, found the folder {path}")
    if path.exists() and not overwrite:
        raise LSHFMError(f"output: {path} exists already; give another path, or overwrite=true")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise LSHFMError(f"output: expected a folder for {path.name}, found the file {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LSHFMError(f"output: {path} cannot be written, as {folder} is read-only; give another path")


@contextmanager
def _told_of_full_disk(folder: Path) -> Iterator[None]:
    """Say which disk is full, where a library only says that one is."""
    try:
        yield
    except (OSError, LSHFMError) as error:
        cause = error.__cause__ if isinstance(error, LSHFMError) else error
        if not (isinstance(cause, OSError) and cause.errno == errno.ENOSPC):
            raise
        raise LSHFMError(
            f"output: the disk of the temporary files is full ({folder.parent}); free some space, or name another "
            "folder by TMPDIR=<folder>"
        ) from error


def _move(folder: Path, target: Path, *, overwrite: bool) -> None:
    """Move the files of a folder into that of `target`."""
    files = sorted(folder.iterdir())
    for file in files:  # once more, as the work takes time
        _refuse_place(target.parent / file.name, overwrite=overwrite)
    for file in files:
        try:
            with atomic_file(target.parent / file.name) as temporary:
                shutil.copyfile(file, temporary)
        except OSError as error:
            raise LSHFMError(f"output: {target} cannot be written ({error.strerror or error})") from error


@cli.main("export")
def main(config: DictConfig) -> None:
    """Export one detector."""
    export(config)
