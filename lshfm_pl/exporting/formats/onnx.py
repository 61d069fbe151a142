"""ONNX, by torch's exporter that traces: the operators of onnxruntime, for all sizes of pictures."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lshfm_pl import __version__, runtime
from lshfm_pl.detectors.tracing import DETECTIONS, RAW, graph_of, recording, traceable
from lshfm_pl.errors import LSHFMError, short_reason
from lshfm_pl.exporting.format import Export, ExportFormat, Reader

__all__ = ["FORMAT", "LAYERS", "NEEDS", "read", "write"]

NEEDS = ("onnx", "onnxruntime")
EXAMPLE = (203, 301)
"""Height and width of the traced picture, if any size is allowed: odd, and different."""
_FEWEST_ELEMENTS = 32
"""Smaller tensors stay float32: they hold sizes and thresholds, and take no space."""
LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators whose weights are stored in fewer bits."""


def write(export: Export, path: Path) -> None:
    """Write an ONNX file.

    Raises:
        LSHFMError: the family cannot be exported like this, or the exporter fails.
    """
    import onnx  # here, so that a missing extra is told before

    graph = graph_of(traceable(export.detector), nms=export.nms)
    example = torch.rand(1, 3, *(export.size or EXAMPLE))
    with recording(export.detector, onnx=True):
        graph(example)  # torchvision's pooling sets its scales at the first call
        try:
            torch.onnx.export(
                graph,
                (example,),
                str(path),
                dynamo=False,
                opset_version=export.opset,
                input_names=["images"],
                output_names=list(DETECTIONS if export.nms else RAW),
                dynamic_axes=_axes(export),
            )
        except Exception as error:  # the exporter may raise anything
            raise LSHFMError(
                f"format: torch.onnx.export failed for {export.detector.config['name']} ({short_reason(error)})"
            ) from error
    model = onnx.load(str(path))
    if export.half:
        _store_as_half(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = runtime.FORMAT, json.dumps(describe(export))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def describe(export: Export) -> dict[str, Any]:
    """What the file says of itself. `input` is for people; the runtime reads the rest."""
    detector, config = export.detector, export.detector.config
    return {
        "version": runtime.VERSION,
        "lshfm_pl": __version__,
        "model": config["name"],
        "class_names": list(detector.class_names),
        "nms": export.nms,
        "size": None if export.size is None else list(export.size),
        "weights": export.weights,
        "parameters": sum(parameter.numel() for parameter in cast(nn.Module, detector).parameters()),
        "input": "float32 [N, 3, H, W], RGB, 0..1; the file itself normalises and resizes",
        **{key: config[key] for key in ("min_size", "max_size", "image_mean", "image_std") if key in config},
    }


def read(path: Path) -> Reader:
    """Run a file by onnxruntime."""
    detector = runtime.Detector(path)
    names = DETECTIONS if detector.description["nms"] else RAW

    def run(image: Tensor) -> dict[str, Tensor]:
        outputs = detector.raw(np.asarray(image.permute(1, 2, 0)))
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


def _axes(export: Export) -> dict[str, dict[int, str]]:
    sides = {} if export.size is not None else {2: "height", 3: "width"}
    if export.nms:
        return {"images": sides, **{name: {0: "objects"} for name in DETECTIONS}}
    return {"images": {0: "batch", **sides}, **{name: {0: "batch", 1: "anchors"} for name in RAW}}


def _store_as_half(model: Any) -> None:
    """Store the weights of layers as float16; the file converts them back, as CPUs compute in float32."""
    import onnx

    graph = model.graph
    read_by_layers = {name for node in graph.node if node.op_type in LAYERS for name in node.input}
    casts = []
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.name not in read_by_layers or array.dtype != np.float32 or array.size < _FEWEST_ELEMENTS:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


FORMAT = ExportFormat(
    suffix=".onnx",
    write=write,
    read=read,
    needs=NEEDS,
    options=frozenset({"size", "nms", "half"}),
)
