"""Augmentation of training pictures: torchvision's transforms, and those that mix several pictures."""

from lshfm_pl.data.augment.copy_paste import CopyPaste
from lshfm_pl.data.augment.mixing import MixingTransform, Sample
from lshfm_pl.data.augment.mixup import MixUp
from lshfm_pl.data.augment.mosaic import Mosaic

__all__ = ["CopyPaste", "MixUp", "MixingTransform", "Mosaic", "Sample"]
