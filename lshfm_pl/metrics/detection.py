"""All detection metrics of a detector on a data set, computed in one pass over its predictions."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, distributed
from torchmetrics.detection import MeanAveragePrecision

from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics.coco_points import IOU_THRESHOLDS, MAX_DETECTIONS, RECALL_POINTS
from lshfm_pl.metrics.coco_tables import CocoTables, coco_tables
from lshfm_pl.metrics.inputs import (
    OPTIONAL_TARGET_KEYS,
    PREDICTION_KEYS,
    TARGET_KEYS,
    check_images,
    copy_to_cpu,
    drop_background,
)
from lshfm_pl.metrics.record import EvaluationRecord
from lshfm_pl.metrics.recording import record_evaluation
from lshfm_pl.metrics.voc_ap import voc_precision_recall

__all__ = ["COCO_BACKENDS", "DetectionMetrics"]

# It logs every stage at level INFO, which Hydra shows.
logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)

CocoBackend = Literal["arrays", "faster_coco_eval", "pycocotools"]
COCO_BACKENDS = get_args(CocoBackend)

DETECTION_LIMITS = [1, 10, MAX_DETECTIONS]


class CocoFigure(NamedTuple):
    """The entries of COCO's precision or recall table over which a metric is averaged."""

    table: Literal["precision", "recall"] = "precision"
    thresholds: slice = slice(None)  # indices into IOU_THRESHOLDS
    size: int = 0  # 0 all, 1 small (area up to 32² pixels), 2 medium, 3 large (from 96²)
    detections: int = -1  # index into DETECTION_LIMITS, per image and class; of recall only


COCO_FIGURES = {
    "AP": CocoFigure(),
    "AP50": CocoFigure(thresholds=slice(0, 1)),
    "AP75": CocoFigure(thresholds=slice(5, 6)),
    "APs": CocoFigure(size=1),
    "APm": CocoFigure(size=2),
    "APl": CocoFigure(size=3),
    "AR1": CocoFigure("recall", detections=0),
    "AR10": CocoFigure("recall", detections=1),
    "AR100": CocoFigure("recall"),
    "ARs": CocoFigure("recall", size=1),
    "ARm": CocoFigure("recall", size=2),
    "ARl": CocoFigure("recall", size=3),
}
"""In the order of COCOeval's `stats`."""

SMALLEST_AREA = 1e-9
"""Square pixels. Replaces an area of 0, which torchmetrics takes for a missing area."""

VOC_IOU_THRESHOLD = 0.5
VOC_FIGURES = {"voc07": "voc07", "voc": "area"}
"""Prefix of a metric's name → method of `voc_average_precision`."""


class DetectionMetrics:
    """COCO-style and VOC average precision of a detector on a data set. All metrics are in 0–100.

    `compute` returns
        AP, AP50, AP75: mean over IoU 0.50:0.05:0.95, at 0.50, at 0.75; 101-point interpolation, at most
            100 detections per image and class. Objects marked difficult are removed from the ground
            truth, so a detection of one is a false positive; the paper's AP50 was computed like this. Crowds
            follow COCO: a detection inside a crowd counts neither as true nor as false positive.
        APs, APm, APl: AP of the small (area up to 32² pixels), medium and large (from 96²) objects.
        AR1, AR10, AR100: recall averaged over the same IoUs, with at most 1, 10, 100 detections per image
            and class; ARs, ARm, ARl: AR100 of the small, medium, large objects.
        voc07_mAP, voc_mAP: the VOC development kit's 11-point AP and area AP at IoU 0.5, where difficult
            objects and crowds are ignored.
        AP/<class>, AP50/<class>, voc07_AP/<class>, voc_AP/<class>: the same per class.

    A mean is taken over the classes with positives: ground truth that is neither difficult nor crowd. Other
    classes are NaN and are left out. Without any positives the means are 0.0 and all classes are NaN. A metric
    of a size without positives is NaN.

    With torch.distributed, `compute` gathers the images of all processes, so every process must call it. An
    image that was seen more than once, as with a padded distributed sampler, counts once. So the metrics do
    not depend on the number of processes.

    Args:
        class_names: names of the labels 1..C, without background.
        backend: `arrays`, this project's own computation, or one of the slower references `faster_coco_eval` and
            `pycocotools`, which torchmetrics calls; their results are equal.

    Raises:
        LSHFMError: unknown backend, or two classes have the same name.
    """

    def __init__(self, class_names: Sequence[str], backend: CocoBackend = "arrays") -> None:
        if backend not in COCO_BACKENDS:
            raise LSHFMError(
                f"metrics backend: expected one of {', '.join(COCO_BACKENDS)}, found {backend!r}"
            )
        if len(set(class_names)) != len(class_names):
            raise LSHFMError(f"class_names: expected different names, found {', '.join(class_names)}")
        self.class_names = tuple(class_names)
        self.backend = backend
        self._images: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def reset(self) -> None:
        """Remove all images."""
        self._images = {}

    def update(
        self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Add images. Their tensors are copied to the CPU.

        Args:
            predictions: per image `boxes` [N, 4] (x1, y1, x2, y2; pixels of the original image),
                `scores` [N], `labels` [N] in 1..C. Detections with label 0 (background) are dropped.
            targets: per image `boxes` [M, 4], `labels` [M] in 1..C, `difficult` [M], and `image_id`, an
                integer that identifies the image in the data set. Optional are `crowd` [M] (default False)
                and `area` [M] in square pixels (default: the area of the box).

        Raises:
            LSHFMError: lengths differ, a key is missing, shapes don't fit, or a label is not in 1..C.
        """
        check_images(predictions, targets, further_target_keys=("image_id",))
        for prediction, target in zip(predictions, targets, strict=True):
            image_id = int(target["image_id"])
            kept = (drop_background(copy_to_cpu(prediction, PREDICTION_KEYS)), _with_crowd_and_area(target))
            for part in kept:
                self._check_labels(image_id, part["labels"])
            self._images.setdefault(image_id, kept)

    def compute(self) -> dict[str, float]:
        """All metrics (see the class) over the images of all processes."""
        _, predictions, targets = self._all_images()
        figures = self._coco_figures(predictions, targets) | self._voc_figures(predictions, targets)
        # Means first: they are what readers of the file look for.
        return dict(sorted(figures.items(), key=lambda item: "/" in item[0]))

    def record(self) -> EvaluationRecord:
        """The matches of each image, from which AP, AP50 and AP75 follow; over all processes, like `compute`."""
        image_ids, predictions, targets = self._all_images()
        return record_evaluation(predictions, targets, image_ids=image_ids, class_names=self.class_names)

    def _all_images(self) -> tuple[list[int], list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        """Image ids in ascending order, with predictions and targets in the same order."""
        images = self._gather()
        image_ids = sorted(images)
        return image_ids, [images[i][0] for i in image_ids], [images[i][1] for i in image_ids]

    def _check_labels(self, image_id: int, labels: Tensor) -> None:
        outside = labels[(labels < 1) | (labels > len(self.class_names))]
        if len(outside):
            raise LSHFMError(
                f"image {image_id}: expected labels 1..{len(self.class_names)} "
                f"(one per class name), found {int(outside[0])}"
            )

    def _gather(self) -> dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._images
        of_ranks: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(of_ranks, self._images)
        gathered = {}
        for images in reversed(of_ranks):  # on every process, the copy of the lowest rank wins
            gathered.update(images)
        return gathered

    def _coco_figures(
        self, predictions: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]
    ) -> dict[str, float]:
        kept_targets = [
            {
                "boxes": target["boxes"][~target["difficult"]],
                "labels": target["labels"][~target["difficult"]],
                "iscrowd": target["crowd"][~target["difficult"]].long(),
                # torchmetrics takes an area of 0 for a missing one and uses the area of the box instead.
                "area": target["area"][~target["difficult"]].clamp_min(SMALLEST_AREA),
            }
            for target in targets
        ]
        per_class = {figure: np.full(len(self.class_names), np.nan) for figure in COCO_FIGURES}
        if any(len(target["labels"]) for target in kept_targets):
            tables = self._coco_tables(predictions, kept_targets)
            for name, (table_name, thresholds, size, detections) in COCO_FIGURES.items():
                # [IoU, (recall,) class]; −1 marks a class without objects
                whole = tables.precision if table_name == "precision" else tables.recall[..., detections]
                table = whole[..., size][thresholds]
                for k, label in enumerate(tables.classes):
                    if (table[..., k] > -1).any():
                        per_class[name][label - 1] = 100 * table[..., k].mean()
        figures = {
            name: _mean_of_known(values, without=math.nan if COCO_FIGURES[name].size else 0.0)
            for name, values in per_class.items()
        }
        for figure in ("AP", "AP50"):
            figures |= self._named(figure, per_class[figure])
        return figures

    def _coco_tables(
        self, predictions: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]
    ) -> CocoTables:
        if self.backend == "arrays":
            return coco_tables(predictions, targets, DETECTION_LIMITS)
        metric = MeanAveragePrecision(
            box_format="xyxy",
            iou_thresholds=IOU_THRESHOLDS,
            rec_thresholds=RECALL_POINTS,
            max_detection_thresholds=DETECTION_LIMITS,
            extended_summary=True,
            backend=self.backend,
            sync_on_compute=False,
        )
        metric.warn_on_many_detections = False
        metric.update(predictions, targets)
        summary = metric.compute()
        precision, recall = (summary[name].numpy() for name in ("precision", "recall"))
        return CocoTables(precision[..., -1], recall, summary["classes"].reshape(-1).tolist())

    def _voc_figures(
        self, predictions: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]
    ) -> dict[str, float]:
        targets = [{**target, "difficult": target["difficult"] | target["crowd"]} for target in targets]
        curves = voc_precision_recall(predictions, targets, iou_threshold=VOC_IOU_THRESHOLD)
        figures = {}
        for prefix, method in VOC_FIGURES.items():
            per_class = np.full(len(self.class_names), np.nan)
            for label, curve in curves.items():
                if curve.num_positives:
                    per_class[label - 1] = 100 * curve.average_precision(method)
            figures[f"{prefix}_mAP"] = _mean_of_known(per_class, without=0.0)
            figures |= self._named(f"{prefix}_AP", per_class)
        return figures

    def _named(self, figure: str, per_class: np.ndarray) -> dict[str, float]:
        return {
            f"{figure}/{name}": value
            for name, value in zip(self.class_names, per_class.tolist(), strict=True)
        }


def _with_crowd_and_area(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The target on the CPU, with `crowd` and `area` filled in."""
    optional = [key for key in OPTIONAL_TARGET_KEYS if key in target]
    copies = copy_to_cpu(target, (*TARGET_KEYS, *optional))
    sides = copies["boxes"][:, 2:] - copies["boxes"][:, :2]
    return {"crowd": torch.zeros_like(copies["difficult"]), "area": sides.prod(dim=1), **copies}


def _mean_of_known(values: np.ndarray, *, without: float) -> float:
    """The mean of the values that aren't NaN, or `without` if there are none."""
    known = [value for value in values.tolist() if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else without
