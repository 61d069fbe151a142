"""Whether the students of a comparison can learn from its teacher, which is known before anything is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli import as_dict, inherited_parts, refuse_unlabelled_alone
from lshfm_pl.cli.closest import config_error
from lshfm_pl.cli.grammar import quote_texts
from lshfm_pl.cli.inputs import refuse_lost_settings
from lshfm_pl.cli.own_folder import composed
from lshfm_pl.cli.spelling import translate_arguments
from lshfm_pl.detectors import Detector, build_detector
from lshfm_pl.detectors.config import complete_config, import_parts
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import build_losses, make_tap
from lshfm_pl.mimic.inherit import inherit

__all__ = ["refuse_unfit_losses", "train_config"]

_CLASSES = ("one", "other")
"""Of detectors that are not trained."""


def train_config(overrides: Sequence[str]) -> DictConfig:
    """The config of `train` with these overrides, composed within another command.

    Raises:
        LSHFMError: they are not those of a config.
    """
    arguments = quote_texts(translate_arguments("train", [*overrides, "output_dir=unused"]))
    try:
        return composed("train", arguments)
    except (HydraException, OmegaConfBaseException) as error:
        raise LSHFMError(config_error(error, "train", arguments)) from error


def refuse_unfit_losses(students: Mapping[str, Sequence[str]], teacher: Mapping[str, Any]) -> None:
    """Stop if a student cannot learn from the teacher by its losses, or cannot inherit the parts that it asks for.

    Both are built with random weights. The global random state stays unchanged.

    Args:
        students: name → overrides of the student's training.
        teacher: config of the teacher's detector, from its file or from a run of this comparison.

    Raises:
        LSHFMError: there is such a student.
    """
    with torch.random.fork_rng(devices=[]):
        mimicked: Detector | None = None
        for name, overrides in students.items():
            try:
                config = train_config(overrides)
                refuse_lost_settings(config)
                refuse_unlabelled_alone(config)
                settings = as_dict(config.distill)
                student = _untrained(import_parts(as_dict(config.model)))
                # After the student, whose parts are imported: those that only a file names must not be.
                mimicked = mimicked or _untrained(complete_config(teacher))
                if parts := inherited_parts(config):
                    inherit(student, mimicked, parts)
                if (loss := settings.pop("name")) == "none":
                    continue
                losses = build_losses(loss, mimicked, student=student, **settings)
                losses.add_adapters(make_tap(student, mimicked, losses.points, is_adapted=True), seed=0)
            except LSHFMError as error:
                how = "; a comparison takes settings as in 'distill=[none,{l2:{point:pyramid}}]'"
                raise LSHFMError(
                    f"the student {name}: {error}" + (how if "distill.point=" in str(error) else "")
                ) from error


def _untrained(model: Mapping[str, Any]) -> Detector:
    return build_detector(model, num_classes=len(_CLASSES) + 1, class_names=_CLASSES, load_backbone=False)
