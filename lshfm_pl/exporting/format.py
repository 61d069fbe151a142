"""What a format of exported files must say of itself, and finding it by its name."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lshfm_pl.detectors import Detector
from lshfm_pl.errors import LSHFMError

__all__ = [
    "Calibration",
    "Export",
    "ExportFormat",
    "Limits",
    "Reader",
    "format_names",
    "load_format",
    "refuse_missing_extra",
    "refuse_other_settings",
]

_FORMATS = "lshfm_pl.exporting.formats"

Reader = Callable[[Tensor], dict[str, Tensor]]
"""Runs an exported file: from an image (float [3, H, W] in 0..1) to its outputs, by name."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest differences between an exported file and its checkpoint; see `check` in `conf/export.yaml`.

    Attributes:
        least_score: boxes with a higher score must have a partner in the other.
        pixels: difference of a coordinate of two partners; None for any.
        iou: smallest IoU of two partners.
        score: difference of their scores.
        unpaired: share of the boxes that may have no partner within these limits.
        score_slack: distance from the detector's score threshold within which rounding decides.
        undecided: share of the boxes that may have no partner because rounding decided, rounded up to a number.
        ap_loss: of the AP (0..100) on labelled images; None if AP is not compared.
    """

    least_score: float = 0.05
    pixels: float | None = 0.5
    iou: float = 0.0
    score: float = 0.01
    unpaired: float = 0.0
    score_slack: float = 0.001
    undecided: float = 0.02
    ap_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the ranges of 8 bits are found.

    Attributes:
        images: float [3, H, W] in 0..1 each, in which features have the usual ranges.
        reduce_range: whether weights have 7 bits, whose sums no processor limits.
    """

    images: Sequence[Tensor]
    reduce_range: bool = False


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is exported, and how.

    Attributes:
        detector: as loaded, in evaluation mode, on the CPU. Formats must not change it.
        size: height and width of all images; None for any size.
        nms: whether boxes are chosen by NMS; without it the file returns all boxes.
        half: whether weights are stored as float16.
        opset: ONNX's version of its operators.
        calibration: for formats of 8 bits.
    """

    detector: Detector
    size: tuple[int, int] | None = None
    nms: bool = True
    half: bool = False
    opset: int = 17
    calibration: Calibration | None = None

    @property
    def weights(self) -> str:
        """How weights are stored: float32, float16 or int8."""
        return "int8" if self.calibration is not None else "float16" if self.half else "float32"


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """One format.

    Attributes:
        suffix: of its files.
        write: writes an export to a path, and possibly further files into the same folder.
        read: opens a file for the check.
        needs: import paths of optional dependencies.
        extra: the optional dependencies of this package that install them.
        beside: the further files that `write` writes, from the path of the file.
        refuse_place: raises an LSHFMError if a file of this format cannot be at a path.
        options: which settings other than the defaults it can follow: `size`, `nms`, `half`.
        is_calibrated: whether it needs `Export.calibration`.
    """

    suffix: str
    write: Callable[[Export, Path], None]
    read: Callable[[Path], Reader]
    needs: tuple[str, ...] = ()
    extra: str = "export"
    beside: Callable[[Path], Sequence[Path]] = lambda path: ()
    refuse_place: Callable[[Path], None] = lambda path: None
    options: frozenset[str] = frozenset()
    is_calibrated: bool = False


def format_names() -> list[str]:
    """Names of all formats."""
    return [info.name for info in pkgutil.iter_modules(importlib.import_module(_FORMATS).__path__)]


def load_format(name: str) -> ExportFormat:
    """The format with a name.

    Raises:
        LSHFMError: there is no such format.
    """
    if name not in format_names():
        raise LSHFMError(f"format: expected one of {', '.join(format_names())}, found {name}")
    return importlib.import_module(f"{_FORMATS}.{name}").FORMAT


def refuse_missing_extra(name: str, chosen: ExportFormat) -> None:
    """Refuse a format whose optional dependencies are not installed.

    Raises:
        LSHFMError: one is missing.
    """
    for module in chosen.needs:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise LSHFMError(
                f"format: {name} needs {module}, which is not installed: pip install 'lshfm_pl[{chosen.extra}]'"
            ) from error


def refuse_other_settings(name: str, chosen: ExportFormat, export: Export) -> None:
    """Refuse settings that a format cannot follow.

    Raises:
        LSHFMError: there is one.
    """
    given = {"size": export.size is not None, "nms": not export.nms, "half": export.half}
    keys = {"size": "image_height, image_width", "nms": "nms", "half": "dtype"}
    for option, is_given in given.items():
        if is_given and option not in chosen.options:
            raise LSHFMError(f"{keys[option]}: a file of format {name} has no such choice; leave it out")
