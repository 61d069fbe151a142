"""Repeat a training step that was skipped because of a NaN or infinite value."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn.utils import get_total_norm

from lshfm_pl.cli import as_dict
from lshfm_pl.data import DetectionDataModule
from lshfm_pl.data.sampler import Draw
from lshfm_pl.detectors.checkpoint import take_over_norm_eps
from lshfm_pl.detectors.config import refuse_unnamed_parts
from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.errors import LSHFMError, short_reason
from lshfm_pl.inference.loading import read_recorded_data
from lshfm_pl.kernels.switches import set_switches
from lshfm_pl.mimic.build import refuse_unnamed_losses
from lshfm_pl.runs.reading import read_json
from lshfm_pl.training.build import build_module
from lshfm_pl.training.detection import DetectionModule, Place
from lshfm_pl.training.distillation import DistillationModule
from lshfm_pl.training.precision import autocast

__all__ = ["replay"]

TOLERANCE = 1e-3
"""Relative: other devices and versions round differently. On the same ones the values are equal."""

log = logging.getLogger(__name__)


def replay(config: DictConfig) -> list[dict[str, Any]]:
    """Repeat the step in `config.file` with its weights, images and random numbers, on `config.device`.

    Returns:
        An entry for each loss, and one for the gradient norm if a single process made the step. An entry has
        `name`, `recorded`, `replayed`, and `same`, which says whether the two values agree.

    Raises:
        LSHFMError: a file is missing, or was not written by `NonFiniteGuard`.
    """
    step, weights = _read(Path(config.file))
    try:
        precision, datamodule, module = _rebuilt(weights)
    except (OmegaConfBaseException, RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise LSHFMError(
            f"file: the config beside the weights of {config.file} is damaged ({short_reason(error)})"
        ) from error
    device = torch.device(config.device)
    module.to(device).train()
    if isinstance(module, DistillationModule):
        module.move_teacher(device)
    rows = [
        row
        for batch in step["batches"]
        for row in _replay_batch(module, datamodule, batch, precision, device)
    ]
    if step["world_size"] == 1:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        norm = float(get_total_norm(gradients)) / len(step["batches"]) if gradients else 0.0
        rows.append(_row("gradient norm", step["gradient_norm"], norm))
    for row in rows:
        log.info("%-24s recorded %-24s replayed %s", row["name"], row["recorded"], row["replayed"])
    return rows


def _rebuilt(weights: dict[str, Any]) -> tuple[str | None, DetectionDataModule, DetectionModule]:
    """The precision, the data module, and the module with the weights of the step."""
    _refuse_references(weights["config"])
    settings = OmegaConf.create(weights["config"])
    set_switches(settings.get("kernels"))
    # The file may be a stranger's: it must not make this command import anything.
    for detector in (settings.model, settings.teacher.detector):
        refuse_unnamed_parts(as_dict(detector))
    refuse_unnamed_losses(as_dict(settings.distill))
    datamodule = read_recorded_data(
        as_dict(settings.data), weights, stage="fit", augment=as_dict(settings.get("augment"))
    )
    module = build_module(settings, datamodule, is_resumed=True)
    take_over_norm_eps(module.detector, weights.get("detector"))
    module.load_state_dict(weights["state_dict"])
    return settings.trainer.precision, datamodule, module


def _refuse_references(config: Any) -> None:
    """Stop for a `${…}` in the config of a file, which may compute something; a run saves none.

    Raises:
        LSHFMError: there is one.
    """
    if isinstance(config, str) and "${" in config:
        raise LSHFMError(f"file: expected values in the config of a run, found the reference {config}")
    inside = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    for value in inside:
        _refuse_references(value)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of the step, and the content of its weights file."""
    try:
        step = read_json(path, path.parent)
        name = Path(step["weights"]).name
    except (LSHFMError, ValueError, KeyError, TypeError) as error:
        raise _no_step(path, error) from error
    weights = read_torch_file(path.with_name(name))
    if not isinstance(weights, dict) or not isinstance(weights.get("config"), dict):
        raise LSHFMError(f"{path.with_name(name)}: expected weights with the config of their run, found none")
    try:
        _check_step(step)
    except (ValueError, KeyError, TypeError) as error:
        raise _no_step(path, error) from error
    return step, weights


def _no_step(path: Path, error: Exception) -> LSHFMError:
    reason = str(error) if isinstance(error, LSHFMError) else type(error).__name__
    return LSHFMError(f"file: expected the step_….json of a run's nonfinite folder, found {path} ({reason})")


def _check_step(step: dict[str, Any]) -> None:
    """Check the record of a step.

    Raises:
        KeyError, TypeError, ValueError: a value is missing or not possible.
    """
    float(step["gradient_norm"])
    if type(step["world_size"]) is not int or not step["batches"]:
        raise ValueError
    for batch in step["batches"]:
        place = Place(**batch["place"])
        indices = [image["index"] for image in batch["images"]]
        draws = [image.get("draw", 0) for image in batch["images"]]
        if any(type(number) is not int or number < 0 for number in (*place, *indices, *draws)) or not indices:
            raise ValueError
        if not isinstance(batch["losses"], dict) or not all("id" in image for image in batch["images"]):
            raise TypeError
        for loss in batch["losses"].values():
            float(loss)


def _replay_batch(
    module: DetectionModule,
    datamodule: DetectionDataModule,
    recorded: dict[str, Any],
    precision: str | None,
    device: torch.device,
) -> list[dict[str, Any]]:
    place = Place(**recorded["place"])
    log.info(
        "step %d, epoch %d, batch %d of process %d", place.step, place.epoch, place.batch_idx, place.rank
    )
    log.info("images: %s", ", ".join(str(image["id"]) for image in recorded["images"]))
    trained_on = datamodule.trained_images
    if any(image["index"] >= len(trained_on) for image in recorded["images"]):
        raise LSHFMError(
            f"file: the step has an image index that is too high; the training set has only "
            f"{len(trained_on)} images"
        )
    items = [trained_on[Draw(image["index"], image.get("draw", place.epoch))] for image in recorded["images"]]
    images, targets = zip(*items, strict=True)
    batch = (
        [image.to(device) for image in images],
        [{key: value.to(device) for key, value in target.items()} for target in targets],
    )
    with autocast(precision, device):
        losses = module.losses_at(batch, place)
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    return [_row(name, recorded["losses"].get(name, "nan"), loss.item()) for name, loss in losses.items()]


def _row(name: str, recorded: str, replayed: float) -> dict[str, Any]:
    before = float(recorded)
    same = before == replayed or (math.isnan(before) and math.isnan(replayed))
    same = same or math.isclose(before, replayed, rel_tol=TOLERANCE)
    return {"name": name, "recorded": before, "replayed": replayed, "same": same}
