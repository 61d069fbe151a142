"""ONNX with weights and features in 8 bits, by onnxruntime's static quantisation.

The layers that predict classes and boxes stay in float32, as do decoding and NMS.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lshfm_pl import runtime
from lshfm_pl.errors import LSHFMError, short_reason
from lshfm_pl.exporting.format import Export, ExportFormat
from lshfm_pl.exporting.formats.onnx import LAYERS, NEEDS, read
from lshfm_pl.exporting.formats.onnx import write as write_onnx
from lshfm_pl.files import temporary_folder

__all__ = ["FORMAT", "layers_before_others", "write"]

_ALL, _FIRST, _THIRD = slice(None), slice(1), slice(2, 3)
_FEATURES_OF = {
    **dict.fromkeys(("Add", "Mul", "Div", "Concat"), _ALL),
    **dict.fromkeys(("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Erf"), _FIRST),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "Pad"), _FIRST),
    **dict.fromkeys(("InstanceNormalization", "LayerNormalization", "RoiAlign"), _FIRST),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"), _FIRST),
    **dict.fromkeys(("Cast", "Identity"), _FIRST),
    **dict.fromkeys(("ScatterND", "ScatterElements"), _THIRD),
}
"""Operators between the layers of a network → their inputs with features; others are sizes, places and indices."""


def write(export: Export, path: Path) -> None:
    """Quantise the ONNX file of an export, with the ranges of features in `export.calibration`.

    Raises:
        LSHFMError: the family cannot be exported like this, there are no pictures, or onnxruntime fails.
    """
    import onnx
    from onnxruntime import quantization

    calibration = export.calibration
    if calibration is None or not calibration.images:
        raise LSHFMError(
            "format: int8 needs pictures that show the ranges of features, found none: give data=… as in training"
        )

    left = iter(calibration.images)

    class Pictures(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(left, None)
            if image is None:
                return None
            return {"images": runtime.as_input(np.asarray(image.permute(1, 2, 0)), export.size)}

    with temporary_folder() as folder:
        source, quantised = folder / "source.onnx", folder / "quantised.onnx"
        write_onnx(export, source)
        chosen = layers_before_others(onnx.load(str(source)))
        try:
            with _silent():
                quantization.quantize_static(
                    str(source),
                    str(quantised),
                    Pictures(),
                    quant_format=quantization.QuantFormat.QDQ,
                    op_types_to_quantize=list(LAYERS),
                    nodes_to_quantize=chosen,
                    # With one scale a layer, the depthwise convolutions of MobileNets lose their small channels.
                    per_channel=True,
                    reduce_range=calibration.reduce_range,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
        except Exception as error:  # the quantiser may raise anything
            raise LSHFMError(
                f"format: onnxruntime cannot quantise {export.detector.config['name']} ({short_reason(error)})"
            ) from error
        model = onnx.load(str(quantised))
    # The quantiser adds shapes of features, from which onnxruntime may infer other shapes of empty tensors.
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def layers_before_others(model: Any) -> list[str]:
    """Names of the layers of an ONNX model whose outputs, as features, reach another layer.

    The others predict classes or boxes, which suffer most from rounding.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in LAYERS and node.input[1] in weights]
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [layer.input[0] for layer in layers]
    while waiting:
        tensor = waiting.pop()
        if tensor in seen or (node := producers.get(tensor)) is None:
            continue
        seen.add(tensor)
        if node.op_type in LAYERS:
            found.add(node.name)
        waiting += node.input[_FEATURES_OF[node.op_type]] if node.op_type in _FEATURES_OF else []
    return [layer.name for layer in layers if layer.name in found]


@contextmanager
def _silent() -> Iterator[None]:
    """Without the quantiser's advice, which it logs as warnings of the root."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


FORMAT = ExportFormat(
    suffix=".int8.onnx",
    write=write,
    read=read,
    needs=NEEDS,
    options=frozenset({"size", "nms"}),
    is_calibrated=True,
)
