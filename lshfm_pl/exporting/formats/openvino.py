"""OpenVINO's format, an `.xml` file with a `.bin` file beside it, converted from the ONNX file."""

from pathlib import Path

import torch
from torch import Tensor

from lshfm_pl.detectors.tracing import DETECTIONS
from lshfm_pl.errors import LSHFMError, short_reason
from lshfm_pl.exporting.format import Export, ExportFormat, Reader
from lshfm_pl.exporting.formats.onnx import NEEDS
from lshfm_pl.exporting.formats.onnx import write as write_onnx
from lshfm_pl.files import temporary_folder

__all__ = ["FORMAT", "read", "write"]


def write(export: Export, path: Path) -> None:
    """Convert the ONNX file of an export.

    Raises:
        LSHFMError: the family cannot be exported, or OpenVINO does not take its ONNX file.
    """
    import openvino

    with temporary_folder() as folder:
        source = folder / "source.onnx"
        write_onnx(export, source)
        try:
            openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=export.half)
        except Exception as error:  # OpenVINO's errors are RuntimeErrors and others
            raise LSHFMError(
                f"format: OpenVINO does not take {export.detector.config['name']} ({short_reason(error)})"
            ) from error


def read(path: Path) -> Reader:
    """Run a file by OpenVINO on the CPU, in float32."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(image: Tensor) -> dict[str, Tensor]:
        outputs = model(image[None].numpy())
        return {name: torch.from_numpy(outputs[name].copy()) for name in DETECTIONS}

    return run


FORMAT = ExportFormat(
    suffix=".xml",
    write=write,
    read=read,
    needs=(*NEEDS, "openvino"),
    extra="openvino",
    beside=lambda path: [path.with_suffix(".bin")],
    options=frozenset({"size", "half"}),
)
