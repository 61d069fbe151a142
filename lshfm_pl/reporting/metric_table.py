"""The metrics: their meanings, and the table of one evaluation."""

import math
from collections.abc import Sequence

from lshfm_pl.errors import LSHFMError, printable

__all__ = ["DEFAULT_METRICS", "LONGEST_NAME", "METRIC_DESCRIPTIONS", "check_metrics", "metrics_table"]


METRIC_DESCRIPTIONS = {
    "AP": "COCO-style AP (mean over IoU 0.50:0.05:0.95, 101-point), difficult objects dropped, crowds ignored",
    "AP50": "COCO-style AP at IoU 0.5 (101-point), difficult objects dropped, crowds ignored; "
    "the metric of the paper",
    "AP75": "COCO-style AP at IoU 0.75 (101-point), difficult objects dropped, crowds ignored",
    "APs": "AP of small objects (area up to 32² pixels)",
    "APm": "AP of medium objects (area 32² to 96² pixels)",
    "APl": "AP of large objects (area from 96² pixels)",
    "AR1": "COCO-style recall (mean over IoU 0.50:0.05:0.95) with one detection per image and class",
    "AR10": "COCO-style recall with 10 detections per image and class",
    "AR100": "COCO-style recall with 100 detections per image and class",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
    "voc07_mAP": "VOC07 11-point mAP at IoU 0.5, difficult objects and crowds ignored",
    "voc_mAP": "VOC area mAP (2010 and later) at IoU 0.5, difficult objects and crowds ignored",
}

DEFAULT_METRICS = ("AP", "AP50", "voc07_mAP")

LONGEST_NAME = 100
"""Characters of a class name that a table shows."""


def check_metrics(metrics: Sequence[str]) -> None:
    """Check that all metrics are keys of `METRIC_DESCRIPTIONS`.

    Raises:
        LSHFMError: a metric is unknown.
    """
    unknown = [metric for metric in metrics if metric not in METRIC_DESCRIPTIONS]
    if unknown:
        raise LSHFMError(
            f"metrics: expected some of {', '.join(METRIC_DESCRIPTIONS)}, found {', '.join(unknown)}"
        )


def metrics_table(metrics: dict[str, float]) -> str:
    """All metrics of an evaluation as two Markdown tables.

    The first table has the metrics over all classes with their meanings, the second one has a line for each class.
    Classes without ground truth are listed below it.
    """
    lines = ["| all classes | | |", "|---|---:|---|"]
    for name, description in METRIC_DESCRIPTIONS.items():
        lines.append(f"| {name} | {_cell(metrics[name])} | {description} |")
    columns = ("AP", "AP50", "voc07_AP", "voc_AP")
    lines += ["", "| class | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    classes = [key.removeprefix("AP/") for key in metrics if key.startswith("AP/")]
    absent = [name for name in classes if math.isnan(metrics[f"AP/{name}"])]
    for name in classes:
        if name not in absent:
            cells = [_cell(metrics[f"{column}/{name}"]) for column in columns]
            lines.append(f"| {_name(name)} | {' | '.join(cells)} |")
    if absent:
        lines += ["", f"Without ground truth: {', '.join(map(_name, absent))}"]
    return "\n".join(lines)


def _name(class_name: str) -> str:
    """The name of a class, escaped and shortened for a table cell."""
    name = printable(class_name)
    return (name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…").replace("|", "\\|")


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
