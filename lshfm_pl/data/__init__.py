"""Data sets, samplers, and the data modules that turn them into batches."""

from lshfm_pl.data.build import build_datamodule
from lshfm_pl.data.coco.datamodule import COCODataModule
from lshfm_pl.data.coco.dataset import COCODetection
from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord
from lshfm_pl.data.faults import Fault, FaultLog
from lshfm_pl.data.shapes.datamodule import ShapesDataModule
from lshfm_pl.data.transforms import eval_transform
from lshfm_pl.data.voc.datamodule import VOCDataModule
from lshfm_pl.data.voc.dataset import VOC_CLASSES, VOCDetection
from lshfm_pl.data.yolo.datamodule import YOLODataModule

__all__ = [
    "VOC_CLASSES",
    "COCODataModule",
    "COCODetection",
    "DetectionDataModule",
    "DetectionDataset",
    "DetectionRecord",
    "Fault",
    "FaultLog",
    "ShapesDataModule",
    "VOCDataModule",
    "VOCDetection",
    "YOLODataModule",
    "build_datamodule",
    "eval_transform",
]
