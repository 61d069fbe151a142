"""Labels that the teacher gives to pictures without labels."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.relabelled import relabelled
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["PseudoLabeller", "PseudoLabels", "pseudo_labeller"]

LEAST_SIDE = 1.0
"""Pixels. Detections with a shorter side are no labels."""

KEYS = ("score", "classes", "soft")


class PseudoLabels(NamedTuple):
    """Targets for the pictures of a batch.

    Attributes:
        targets: for each picture `boxes` [N, 4] in its pixels, `labels` [N], and its `image_id`.
        weights: [B], the mean score of each picture's boxes; 1 for a picture without boxes. None without weights.
    """

    targets: list[dict[str, Tensor]]
    weights: Tensor | None


class PseudoLabeller:
    """Labels pictures with the detections of a frozen teacher whose scores reach a threshold.

    The weight of a picture's detection losses is the mean score of its labels. Weights of single boxes would need
    losses of its own for each family: each of torchvision's adds up the losses of all boxes in another place, after
    matching and sampling of its own.

    Args:
        teacher: the frozen teacher. It resizes and normalises pictures as in evaluation.
        class_names: the student's classes, with which those of the teacher are matched by name.
        score: threshold of all classes.
        classes: thresholds of single classes, by name.
        soft: whether scores are weights.

    Raises:
        LSHFMError: the teacher lacks a class, a threshold is out of range or below the teacher's own, or a name is
            not that of a class.
    """

    def __init__(
        self,
        teacher: Detector,
        class_names: tuple[str, ...],
        *,
        score: float,
        classes: Mapping[str, float] | None = None,
        soft: bool = True,
    ) -> None:
        detector = relabelled(teacher, class_names)
        if detector is None:
            missing = [name for name in class_names if name not in teacher.class_names]
            raise LSHFMError(
                f"distill.pseudo_labels: expected a teacher that knows all classes of the data, found one without "
                f"{first_few(missing)}, which would be taken for background (it has "
                f"{first_few(teacher.class_names, 8)})"
            )
        of_class = dict(classes or {})
        unknown = [name for name in of_class if name not in class_names]
        if unknown:
            raise LSHFMError(
                f"distill.pseudo_labels.classes: expected names of classes of the data "
                f"({first_few(class_names, 8)}), found {first_few(unknown)}"
            )
        if not isinstance(soft, bool):
            raise LSHFMError(f"distill.pseudo_labels.soft: expected true or false, found {soft!r}")
        thresholds = {"score": score, **{f"classes.{name}": value for name, value in of_class.items()}}
        for key, value in thresholds.items():
            _check_threshold(key, value, _own_threshold(teacher))
        self.detector = detector
        self.soft = soft
        self._thresholds = torch.tensor([score, *(of_class.get(name, score) for name in class_names)])

    def to(self, device: torch.device) -> None:
        """Move the teacher and the thresholds to a device."""
        self.detector.to(device)
        self._thresholds = self._thresholds.to(device)

    @torch.no_grad()
    def __call__(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> PseudoLabels:
        """Label pictures.

        Args:
            images: float [3, H, W] in 0..1, on the device of `to`.
            targets: their targets, of which all but the objects is kept: the pictures stay unlabelled ones.
        """
        labelled, weights = [], []
        for target, found in zip(targets, self.detector(images), strict=True):
            boxes, labels, scores = (found[key] for key in ("boxes", "labels", "scores"))
            is_large = (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(dim=1)
            kept = is_large & (scores >= self._thresholds[labels])
            own = {key: target[key] for key in ("image_id", UNLABELLED) if key in target}
            labelled.append({"boxes": boxes[kept].float(), "labels": labels[kept], **own})
            weights.append(scores[kept].float().mean() if bool(kept.any()) else scores.new_ones(()).float())
        return PseudoLabels(labelled, torch.stack(weights) if self.soft else None)


def pseudo_labeller(settings: Any, teacher: Detector, class_names: tuple[str, ...]) -> PseudoLabeller | None:
    """The labeller for `distill.pseudo_labels`; None if it is off.

    Args:
        settings: the node of the config: null, or a mapping of which `score: null` turns it off.
        teacher: see `PseudoLabeller`.
        class_names: likewise.

    Raises:
        LSHFMError: a key is unknown, or see `PseudoLabeller`.
    """
    if settings is None:
        return None
    unknown = [key for key in settings if key not in KEYS]
    if unknown:
        raise LSHFMError(f"distill.pseudo_labels.{unknown[0]}: expected one of {', '.join(KEYS)}")
    if settings.get("score") is None:
        return None
    return PseudoLabeller(teacher, class_names, **settings)


def _own_threshold(teacher: Detector) -> float:
    """The score below which the teacher reports no detection."""
    key = architecture_of(teacher).evaluation.get("score_thresh")
    value = None if key is None else teacher.config.get(key)
    return 0.0 if value is None else float(value)


def _check_threshold(key: str, value: Any, least: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not 0 < value <= 1:
        raise LSHFMError(
            f"distill.pseudo_labels.{key}: expected a score above 0 and up to 1, found {value!r}"
        )
    if value < least:
        raise LSHFMError(
            f"distill.pseudo_labels.{key}: expected at least {least:g}, below which the teacher reports nothing, "
            f"found {value:g}"
        )
