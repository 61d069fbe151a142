"""Data sets, samplers, and the data modules that turn them into batches."""

from lshfm_pl.data.coco import COCODetection
from lshfm_pl.data.datamodule import (
    COCODataModule,
    DetectionDataModule,
    ShapesDataModule,
    VOCDataModule,
    build_datamodule,
)
from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.data.voc import VOC_CLASSES, VOCDetection

__all__ = [
    "VOC_CLASSES",
    "COCODataModule",
    "COCODetection",
    "DetectionDataModule",
    "DetectionDataset",
    "ShapesDataModule",
    "VOCDataModule",
    "VOCDetection",
    "build_datamodule",
]
