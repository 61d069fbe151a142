"""The published figures of the experiments, which are listed in `published.yaml` beside this module."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lshfm_pl.cli.own_folder import composed
from lshfm_pl.paths import CONFIG_DIR
from lshfm_pl.reporting.runs import Run
from lshfm_pl.runs.augmentation import PUBLISHED, describe_augmentation

__all__ = [
    "NOT_A_LOSS_SETTING",
    "data_name",
    "figures_of_run",
    "published_ap50",
    "published_figures",
    "published_of_run",
]

NOT_A_DATA_SET = ("root", "download", "batch_size", "eval_batch_size", "num_workers", "start_method",
                  "aspect_ratio_groups", "flip_probability", "seed", "class_names", "on_bad_sample",
                  "unlabelled_share", "defaults")  # fmt: skip
"""Keys of `data` that do not change which images are used."""

ADDED_LATER = ("annotations", "images", "first_pixel", "keep_empty_images", "drop_categories",
               "train_labels", "unlabelled")  # fmt: skip
"""Keys of `data` that older runs lack. These runs had the values that the files in `conf/data/` have now."""

NOT_A_LOSS_SETTING = {"name", "_target_", "seed", "check_teacher"}
"""Keys of `distill` that are not compared between the runs of a line, or with a published row."""

ROW_SETTINGS = {
    "schedule": ("epochs", "lr", "reference_batch_size", "optimizer", "decay", "milestones", "gamma",
                 "mimic_warmup_steps"),
    "trainer": ("max_steps", "max_time", "limit_train_batches", "limit_test_batches", "overfit_batches"),
}  # fmt: skip
"""Settings that must be those of a published row, besides detector and loss."""


@cache
def _published() -> dict[str, dict[str, float]]:
    """Experiment → metric → figure."""
    path = Path(__file__).with_name("published.yaml")
    figures = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: {key: float(value) for key, value in figure.items()}
        if isinstance(figure, Mapping)
        else {"AP50": float(figure)}
        for name, figure in figures.items()
    }


def published_ap50(experiment: str) -> float | None:
    """The published AP50 (0–100) of an experiment; None if there is none."""
    return published_figures(experiment).get("AP50")


def published_figures(experiment: str) -> Mapping[str, float]:
    """The published figures (0–100) of an experiment, by metric."""
    return _published().get(experiment, {})


def published_of_run(run: Run) -> float | None:
    """The published AP50 of a run, as `figures_of_run`; None if there is none."""
    return figures_of_run(run).get("AP50")


def figures_of_run(run: Run) -> Mapping[str, float]:
    """The published figures for a run's data, detector, teacher, loss and settings, by metric.

    Settings that the run has not recorded are assumed to be the published ones.
    """
    names = [data_name(run.results.get("data")), run.model]
    if run.role == "student" and not run.is_plain:
        architecture = run.model.partition("_")[0]
        names += [str(run.teacher).removeprefix(f"{architecture}_"), run.loss]
    if names[0] is None:
        return {}
    data, rest = names[0], "_".join(map(str, names[1:]))
    for experiment, figures in _published().items():
        name = experiment.removeprefix(f"{data}_")
        # A name on COCO begins with the length of the schedule, which is one of the compared settings.
        if (
            name != experiment
            and rest in (name, name.partition("_")[2])
            and _has_settings_of(run, experiment)
        ):
            return figures
    return {}


def _has_settings_of(run: Run, experiment: str) -> bool:
    row = _row_settings(experiment)
    if "checkpoint" in run.results:
        # An evaluation has no training settings; only the post-processing matters.
        model = run.config.get("model")
        of_model = model.get("postprocess") if isinstance(model, Mapping) else None
        postprocess = run.config.get("postprocess") or of_model
        return postprocess is None or postprocess == row["model"].get("postprocess", postprocess)
    settings = run.results.get("settings")
    if not isinstance(settings, Mapping):
        settings = run.config
    augment = settings.get("augment")
    if (augment if isinstance(augment, str) else describe_augmentation(settings)) != PUBLISHED:
        return False
    own = _relevant({**settings, "distill": run.results["distill"]})
    return all(
        row[part][key] == value for part in row for key, value in own[part].items() if key in row[part]
    )


@cache
def _row_settings(experiment: str) -> dict[str, dict[str, Any]]:
    config = composed("train", [f"experiment={experiment}", "output_dir=unused"])
    parts = ("model", "schedule", "trainer", "distill")
    return _relevant({part: OmegaConf.to_container(config[part], resolve=True) for part in parts})


def _relevant(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Part of the config → those of a run's settings that are compared with a published row."""
    parts = {
        part: dict(value) if isinstance(value := settings.get(part), Mapping) else {}
        for part in ("model", "distill", *ROW_SETTINGS)
    }
    if "backbone_weights" in parts["model"]:
        # ImageNet weights may also come from a file.
        parts["model"]["backbone_weights"] = parts["model"]["backbone_weights"] is not None
    for key in NOT_A_LOSS_SETTING:
        parts["distill"].pop(key, None)
    for part, keys in ROW_SETTINGS.items():
        parts[part] = {key: value for key, value in parts[part].items() if key in keys}
    return parts


def data_name(data: Any) -> str | None:
    """The name of the file in `conf/data/` with the same images as a run's data; None if there is none."""
    if not isinstance(data, Mapping):
        return None
    wanted = _images(data)
    for name, images in _known_data().items():
        later = {key: images[key] for key in ADDED_LATER if key in images}
        if {**later, **wanted} == images:
            return name
    return None


@cache
def _known_data() -> dict[str, dict[str, Any]]:
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in CONFIG_DIR.glob("data/[!_]*.yaml")
    }
    return {name: _images(data) for name, data in files.items() if "???" not in data.values()}


def _images(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in NOT_A_DATA_SET}
