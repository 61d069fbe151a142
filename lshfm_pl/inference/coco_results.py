"""Detections in COCO's format, as `predict` writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lshfm_pl.data.coco.dataset import unused_name

__all__ = ["coco_annotations", "coco_categories", "unused_labels"]


def unused_labels(class_names: Sequence[str], checkpoint: Any) -> set[int]:
    """The labels without a category, such as the numbers that COCO's category ids skip.

    Such a label is named after its number. Labels have gaps only if they are category ids; in other data a class
    with such a name is a real class.

    Args:
        class_names: names of the labels 1..C.
        checkpoint: the content of the detector's file, which may store the config of its training data.
    """
    data = checkpoint.get("data") if isinstance(checkpoint, Mapping) else None
    if isinstance(data, Mapping) and data.get("category_ids") != "keep":
        return set()
    return {label for label, name in enumerate(class_names, start=1) if name == unused_name(label)}


def coco_categories(class_names: Sequence[str], unused: set[int], detected: set[int]) -> list[dict[str, Any]]:
    """The entries of `categories`: all classes, and unused labels only if they were detected nevertheless.

    Args:
        class_names: names of the labels 1..C.
        unused: result of `unused_labels`.
        detected: labels of all detections.
    """
    return [
        {"id": label, "name": name}
        for label, name in enumerate(class_names, start=1)
        if label not in unused or label in detected
    ]


def coco_annotations(found: dict[str, Tensor], image_id: int, count: int) -> list[dict[str, Any]]:
    """The entries of `annotations` for one image.

    Args:
        found: `boxes` [N, 4] as x1, y1, x2, y2 in pixels, `labels` [N], `scores` [N].
        image_id: id of the image.
        count: number of earlier entries; ids begin at `count + 1`.
    """
    boxes = torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], dim=1)
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for number, (box, label, score) in enumerate(
            zip(boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True), count + 1
        )
    ]
