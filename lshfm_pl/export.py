"""`python -m lshfm_pl.export`: write a detector for other programs, and check that the file detects the same."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("export")  # before the imports below, which take seconds

import shutil
import tempfile
from collections.abc import Sequence
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
from lshfm_pl.exporting.check import Difference, compare_detections, compare_raw, faults_of, total
from lshfm_pl.exporting.format import (
    Export,
    ExportFormat,
    Limits,
    Reader,
    load_format,
    refuse_missing_extra,
    refuse_other_settings,
)
from lshfm_pl.exporting.pictures import at_several_sizes, from_data, random_pictures
from lshfm_pl.files import atomic_file
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
    if target.suffix != chosen.suffix:
        raise LSHFMError(f"output: expected a name that ends in {chosen.suffix}, found {target}")
    if not config.overwrite:
        _refuse_existing([target])
    datamodule = _data(config)
    images = _images(config, datamodule, config.check.images)
    pictures = at_several_sizes(images, settings.size)
    with tempfile.TemporaryDirectory(prefix="lshfm_pl_") as folder:
        written = Path(folder) / target.name
        chosen.write(settings, written)
        difference = compare(settings, chosen.read(written), pictures, config)
        of_what = (
            "of the data" if datamodule is not None else "of random pixels, as no data were found (data=…)"
        )
        print(f"check on {len(pictures)} images {of_what}: {difference.text()}")
        faults = faults_of(difference, _limits(config, chosen, half=settings.half))
        if faults and not config.keep:
            raise LSHFMError(
                f"check: {'; '.join(faults)}. No file was written; keep=true keeps it, check.pixels=… and "
                "check.score=… allow more"
            )
        _move(Path(folder), target, overwrite=config.overwrite)
    if faults:
        raise LSHFMError(f"check: {'; '.join(faults)}. {target} was kept, as keep=true demands")
    print(f"{target}: {detector.config['name']}, {target.stat().st_size / 1e6:.2f} MB")
    return target


def compare(settings: Export, read: Reader, pictures: Sequence[Tensor], config: DictConfig) -> Difference:
    """The differences of an exported file and its checkpoint, summed over images (float [3, H, W] in 0..1)."""
    reference = graph_of(settings.detector, nms=settings.nms)
    family = architecture_of(cast(nn.Module, settings.detector))
    threshold, most = (
        settings.detector.config.get(family.evaluation.get(key, ""))
        for key in ("nms_thresh", "detections_per_img")
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
                    least_score=config.check.least_score,
                    score_slack=config.check.score_slack,
                    nms_thresh=threshold,
                    most=most,
                )
            )
        else:
            differences.append(compare_raw(expected, found, least_score=config.check.least_score))
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


def _limits(config: DictConfig, chosen: ExportFormat, *, half: bool) -> Limits:
    """The limits of the format, with those of the command line."""
    given = {key: config.check[key] for key in ("pixels", "score", "unpaired")}
    limits = chosen.half_limits if half else chosen.limits
    return replace(limits, **{key: value for key, value in given.items() if value is not None})


def _data(config: DictConfig) -> DetectionDataModule | None:
    """The data of `data=…` or of the checkpoint; None if the latter are not there."""
    try:
        return read_data([config.checkpoint], config.get("data"), stage="validate", drawn_below=None)[0]
    except LSHFMError:
        if "data" in config and config.data is not None:
            raise
        return None


def _images(config: DictConfig, datamodule: DetectionDataModule | None, count: int) -> list[Tensor]:
    if datamodule is None:
        return random_pictures(count, config.seed)
    return from_data(datamodule.val_set, count, config.seed)


def _refuse_existing(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.exists():
            raise LSHFMError(f"output: {path} exists already; give another path, or overwrite=true")


def _move(folder: Path, target: Path, *, overwrite: bool) -> None:
    """Move the files of a folder into that of `target`."""
    files = sorted(folder.iterdir())
    if not overwrite:
        _refuse_existing([target.parent / file.name for file in files])
    for file in files:
        try:
            with atomic_file(target.parent / file.name) as temporary:
                shutil.copyfile(file, temporary)
        except OSError as error:
            raise LSHFMError(f"output: {target} cannot be written ({error})") from error


@cli.main("export")
def main(config: DictConfig) -> None:
    """Export one detector."""
    export(config)
