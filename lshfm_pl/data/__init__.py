"""Data sets, samplers, and the data modules that turn them into batches."""

from lshfm_pl.data.datamodule import ShapesDataModule, VOCDataModule, build_datamodule, collate
from lshfm_pl.data.voc import VOC_CLASSES, VOCDetection

__all__ = [
    "VOC_CLASSES",
    "ShapesDataModule",
    "VOCDataModule",
    "VOCDetection",
    "build_datamodule",
    "collate",
]
