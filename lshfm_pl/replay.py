"""`python -m lshfm_pl.replay`: make a training step again that `NonFiniteGuard` skipped."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("replay")  # before the imports below, which take seconds

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn.utils import get_total_norm

from lshfm_pl.data import DetectionDataModule, build_datamodule
from lshfm_pl.data.sampler import Draw
from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.errors import LSHFMError
from lshfm_pl.modules.detection import DetectionModule, Place
from lshfm_pl.precision import autocast
from lshfm_pl.train import build_module

__all__ = ["replay"]

TOLERANCE = 1e-3
"""Relative; other devices and versions round otherwise. On the same ones the figures are equal."""

log = logging.getLogger(__name__)


def replay(config: DictConfig) -> list[dict[str, Any]]:
    """The step in `config.file` again, from its weights, images and random numbers, on `config.device`.

    Returns:
        One entry a loss, and one for the gradient's norm where one process made the step: `name`, `recorded`,
        `replayed` and whether they are the `same`.

    Raises:
        LSHFMError: a file is missing or not of the guard.
    """
    step, weights = _read(Path(config.file))
    settings = OmegaConf.create(weights["config"])
    settings.model.backbone_weights = None  # replaced by the weights of the step
    datamodule = build_datamodule(cli.as_dict(settings.data))
    datamodule.setup("fit")
    module = build_module(settings, datamodule)
    module.load_state_dict(weights["state_dict"])
    device = torch.device(config.device)
    module.to(device).train()
    if hasattr(module, "teacher"):
        module.teacher.to(device)
    rows = [
        row for batch in step["batches"] for row in _replay_batch(module, datamodule, batch, settings, device)
    ]
    if step["world_size"] == 1:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        norm = float(get_total_norm(gradients)) / len(step["batches"]) if gradients else 0.0
        rows.append(_row("gradient norm", step["gradient_norm"], norm))
    for row in rows:
        log.info("%-24s recorded %-24s replayed %s", row["name"], row["recorded"], row["replayed"])
    return rows


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The step and its weights."""
    try:
        step = json.loads(path.read_text(encoding="utf-8"))
        name = Path(step["weights"]).name
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise LSHFMError(
            f"file: expected the step_….json of a run's nonfinite folder, found {path} ({type(error).__name__})"
        ) from error
    weights = read_torch_file(path.with_name(name))
    if not isinstance(weights, dict) or not isinstance(weights.get("config"), dict):
        raise LSHFMError(f"{path.with_name(name)}: expected weights with the config of their run")
    return step, weights


def _replay_batch(
    module: DetectionModule,
    datamodule: DetectionDataModule,
    recorded: dict[str, Any],
    settings: DictConfig,
    device: torch.device,
) -> list[dict[str, Any]]:
    place = Place(**recorded["place"])
    log.info(
        "step %d, epoch %d, batch %d of process %d", place.step, place.epoch, place.batch_idx, place.rank
    )
    log.info("images: %s", ", ".join(str(image["id"]) for image in recorded["images"]))
    items = [datamodule.train_set[Draw(image["index"], place.epoch)] for image in recorded["images"]]
    images, targets = zip(*items, strict=True)
    batch = (
        [image.to(device) for image in images],
        [{key: value.to(device) for key, value in target.items()} for target in targets],
    )
    with autocast(settings.trainer.precision, device):
        losses = module.losses_at(batch, place)
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    return [_row(name, recorded["losses"].get(name, "nan"), loss.item()) for name, loss in losses.items()]


def _row(name: str, recorded: str, replayed: float) -> dict[str, Any]:
    before = float(recorded)
    same = before == replayed or (math.isnan(before) and math.isnan(replayed))
    same = same or math.isclose(before, replayed, rel_tol=TOLERANCE)
    return {"name": name, "recorded": before, "replayed": replayed, "same": same}


@cli.main("replay")
def main(config: DictConfig) -> None:
    """Print the losses; fail if they are others than recorded."""
    differing = [row["name"] for row in replay(config) if not row["same"]]
    if differing:
        raise LSHFMError(
            f"replayed otherwise than recorded: {', '.join(differing)}. "
            "Are data, teacher, versions, device and precision those of the run?"
        )
