"""Exported ONNX files in the place of checkpoints: the same inputs, outputs and descriptions."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lshfm_pl import runtime
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.contents import FORMAT, read_checkpoint
from lshfm_pl.detectors.cost import detector_cost
from lshfm_pl.errors import LSHFMError

__all__ = ["ExportedDetector", "cost_of", "is_exported", "load_exported", "read_content"]

SUFFIX = ".onnx"


class ExportedDetector(nn.Module):
    """An exported file, called like a detector of `build_detector` in evaluation mode.

    Args:
        path: the file, with NMS.
        threads: CPU threads; None for onnxruntime's default.

    Raises:
        LSHFMError: see `runtime.Detector`, or the file was exported without NMS.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        super().__init__()
        self.runtime = runtime.Detector(path, threads=threads)
        if not self.runtime.description["nms"]:
            raise LSHFMError(
                f"{path}: exported with nms=false. Export it with nms=true to detect objects with it"
            )
        self.config = {"name": self.runtime.description["model"]}
        self.class_names = self.runtime.class_names
        self.num_classes = len(self.class_names) + 1
        self.load_report = f"exported file {path}, run by onnxruntime on the CPU"
        # Callers look for the device of the images at the parameters.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """`boxes` [N, 4], `scores` [N] and `labels` [N] of each image (float [3, H, W] in 0..1)."""
        found = []
        for image in images:
            outputs = self.runtime.detect(np.asarray(image.permute(1, 2, 0).cpu()))
            tensors = (torch.from_numpy(np.array(output)).to(image.device) for output in outputs)
            found.append(dict(zip(("boxes", "scores", "labels"), tensors, strict=True)))
        return found


def is_exported(path: str | Path | None) -> bool:
    """Whether a path is that of an exported file, by its suffix."""
    return path is not None and Path(path).suffix.lower() == SUFFIX


def load_exported(path: str | Path, evaluation: Mapping[str, Any]) -> Detector:
    """Load an exported file in place of a detector.

    Args:
        path: the file.
        evaluation: evaluation settings of the command, which must be None.

    Raises:
        LSHFMError: the file does not load, or a setting is given that is a part of the file.
    """
    given = next((key for key, value in evaluation.items() if value is not None), None)
    if given is not None:
        raise LSHFMError(f"{given}: it is a part of {path}; give it to python -m lshfm_pl.export instead")
    return cast(Detector, ExportedDetector(path).eval())


def read_content(path: str | Path) -> Any:
    """The content of a checkpoint; for an exported file its description alone.

    Raises:
        LSHFMError: the file is missing, broken or not safe to read.
    """
    if not is_exported(path):
        return read_checkpoint(path)
    changed = Path(path).stat().st_mtime_ns if Path(path).is_file() else 0
    return {"format": FORMAT, "class_names": list(_class_names(str(path), changed))}


@functools.lru_cache(maxsize=8)
def _class_names(path: str, changed: int) -> tuple[str, ...]:
    """The class names in a file, kept until it changes: commands ask several times, and opening it is slow."""
    return runtime.Detector(path).class_names


def cost_of(detector: Detector, image: Tensor) -> dict[str, float | None]:
    """`detector_cost`; for an exported file, without the operations, which are not counted."""
    if not isinstance(detector, ExportedDetector):
        return dict(detector_cost(detector, image))
    size = Path(detector.runtime.path).stat().st_size
    parameters = detector.runtime.description["parameters"]
    return {"parameters": parameters, "trainable_parameters": 0, "weights_bytes": size, "gflops": None}
