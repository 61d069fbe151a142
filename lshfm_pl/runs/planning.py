"""Planning a comparison: the overrides of its runs, and the settings that are chosen for the user's data."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lshfm_pl.cli import as_dict, has_teacher_labels
from lshfm_pl.data.train_labels import no_set
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.config import import_parts
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.comparison import Plan, Typed
from lshfm_pl.runs.data_of_run import RunData
from lshfm_pl.runs.defaults import choose, choose_side, is_from_scratch, measure

__all__ = ["described_model", "make_plan"]

log = logging.getLogger(__name__)

SHAPES = "shapes"
"""The data set of the quickstart."""


def make_plan(config: DictConfig) -> Plan:
    """Make the plan of a comparison.

    If the data are the user's own, settings that are not given are chosen for them and logged.

    Raises:
        LSHFMError: the data have errors, or the teacher's file does not exist.
    """
    hydra = config.get("hydra") or HydraConfig.get()
    typed = Typed.read(hydra.overrides.task)
    choices = hydra.runtime.choices
    plan = Plan(
        config=config,
        typed=typed,
        models={role: choices[f"model@{role}.model"] for role in ("teacher", "student")},
        data=choices["data"],
        experiments=None
        if choices["data"] != SHAPES
        else {role: config[role].experiment for role in ("teacher", "student")},
    )
    checkpoint = config.teacher.checkpoint
    if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
        raise LSHFMError(
            f"teacher.checkpoint: expected a file of weights, found none at {checkpoint}; "
            "leave the key out to train a teacher"
        )
    data = RunData(config)
    if has_teacher_labels(config) and not data.datamodule.has_set("test"):
        raise LSHFMError(f"compare: {no_set('test')}")
    if plan.experiments is None and OmegaConf.select(config, "fit") is not None:
        choose_for_data(plan, data)
    return plan


def choose_for_data(plan: Plan, data: RunData) -> None:
    """Fill `plan.chosen` by the images and objects of the training set, and log each choice.

    If a trained teacher is given and its file stores its image size, the students get that image size. If the
    training pictures have no labels, they also get its anchors.

    Args:
        plan: is completed.
        data: of its config.

    Raises:
        LSHFMError: the data have errors.
    """
    config = plan.config
    plan.fingerprint = data.fingerprint
    train_set = data.datamodule.train_set
    pictures, rules = measure(train_set.records), as_dict(config.fit)
    models = {role: import_parts(as_dict(config[role].model)) for role in ("teacher", "student")}
    trained = None if config.teacher.checkpoint is None else described_model(config.teacher.checkpoint)
    if trained is not None:
        models["teacher"] = trained
    scratch = {role: is_from_scratch(model) for role, model in models.items()}
    side, reason = choose_side(pictures, rules, from_scratch=any(scratch.values()))
    if config.image_size is not None:
        side, reason = int(config.image_size), f"short side {config.image_size} pixels: image_size is given"
    elif trained is not None:
        side = int(trained["min_size"][-1])
        reason = f"short side {side} pixels: the image size of the given teacher"
    schedule = config.schedule.epochs if "schedule.epochs" in plan.typed.given else None
    for role, model in models.items():
        if role == "teacher" and config.teacher.checkpoint is not None:
            continue
        own_side, own_reason = side, reason
        if "model.min_size" in plan.typed.keys(role):
            own_side = int(model["min_size"][-1])
            own_reason = f"short side {own_side} pixels: {role}.model.min_size is given"
        epochs = plan.epochs(role)
        plan.chosen[role] = choose(
            pictures,
            rules,
            role=role,
            model=model,
            side=own_side,
            side_reason=own_reason,
            batch_size=config.data.batch_size if "data.batch_size" in plan.typed.given else None,
            epochs=schedule if epochs is None else epochs,
            other=models["student" if role == "teacher" else "teacher"],
            trainer=as_dict(config.trainer),
        )
    log_choices(plan, len(train_set))


def described_model(checkpoint: str) -> dict[str, Any] | None:
    """The detector config that a checkpoint stores; None if it stores none with an image size."""
    content = read_checkpoint(Path(checkpoint).expanduser())
    described = content.get("detector") if isinstance(content, dict) else None
    found = described.get("config") if isinstance(described, dict) else None
    return dict(found) if isinstance(found, dict) and found.get("min_size") else None


def log_choices(plan: Plan, images: int) -> None:
    """Log a line for each choice, and one line if it is the same for teacher and student."""
    log.info("chosen for the %d training images (a key that you give replaces a choice):", images)
    roles_of: dict[tuple[str, str], list[str]] = {}
    for role, choices in plan.chosen.items():
        for choice in choices:
            keys = [item.partition("=")[0] for item in choice.overrides]
            if not keys or not all(key in plan.typed.keys(role) for key in keys):
                roles_of.setdefault((choice.subject, choice.text), []).append(role)
    for (subject, text), roles in roles_of.items():
        whose = "" if len(roles) == len(plan.chosen) else f"{roles[0]}'s "
        log.info("  %s%s: %s", whose, subject, text)
