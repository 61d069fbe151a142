"""Average precision of detections, COCO-style and as in the PASCAL VOC development kit."""

from lshfm_pl.metrics.detection import DetectionMetrics
from lshfm_pl.metrics.record import EvaluationRecord
from lshfm_pl.metrics.voc_ap import voc_average_precision

__all__ = ["DetectionMetrics", "EvaluationRecord", "voc_average_precision"]
