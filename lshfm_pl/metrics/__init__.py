"""Average precision of detections, COCO-style and as in the PASCAL VOC development kit."""

import importlib
from typing import TYPE_CHECKING, Any

from lshfm_pl.metrics.record import EvaluationRecord

if TYPE_CHECKING:
    from lshfm_pl.metrics.detection import DetectionMetrics
    from lshfm_pl.metrics.voc_ap import voc_average_precision

__all__ = ["DetectionMetrics", "EvaluationRecord", "voc_average_precision"]

_WITH_TORCH = {"DetectionMetrics": "detection", "voc_average_precision": "voc_ap"}
"""Name → its module, imported when it is asked for: a report of finished runs starts without torch."""


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
