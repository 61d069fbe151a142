"""TorchScript: a recorded program for torch.jit.load, in Python or C++, which needs torchvision's operators."""

import warnings
from pathlib import Path

import torch
import torchvision  # noqa: F401  registers the operators that a file needs
from torch import Tensor

from lshfm_pl.detectors.tracing import DETECTIONS, graph_of, recording, traceable
from lshfm_pl.errors import LSHFMError, short_reason
from lshfm_pl.exporting.format import Export, ExportFormat, Reader
from lshfm_pl.exporting.formats.onnx import EXAMPLE

__all__ = ["FORMAT", "read", "write"]


def write(export: Export, path: Path) -> None:
    """Record a detector for pictures [1, 3, H, W] of any size.

    Raises:
        LSHFMError: the family cannot be recorded.
    """
    graph = graph_of(traceable(export.detector), nms=True)
    example = torch.rand(1, 3, *EXAMPLE)
    with recording(export.detector, onnx=False):
        graph(example)  # torchvision's pooling sets its scales at the first call
        try:
            torch.jit.trace(graph, (example,), check_trace=False).save(str(path))
        except Exception as error:  # tracing may raise anything
            raise LSHFMError(
                f"format: {export.detector.config['name']} cannot be recorded as TorchScript "
                f"({short_reason(error)}); format=onnx may do"
            ) from error


def read(path: Path) -> Reader:
    """Run a file by torch."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch calls TorchScript deprecated, as docs/export.md says
        program = torch.jit.load(str(path)).eval()

    def run(image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(DETECTIONS, program(image[None]), strict=True))

    return run


FORMAT = ExportFormat(suffix=".torchscript", write=write, read=read)
