"""safetensors: the student's weights, with a `config.json` beside them from which `load_detector` builds it."""

import json
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lshfm_pl.detectors import load_detector
from lshfm_pl.detectors.checkpoint import detector_description
from lshfm_pl.detectors.contents import CONFIG_FILE
from lshfm_pl.detectors.tracing import DETECTIONS, graph_of
from lshfm_pl.errors import LSHFMError
from lshfm_pl.exporting.format import Export, ExportFormat, Reader
from lshfm_pl.files import write_atomically

__all__ = ["FORMAT", "read", "write"]


def write(export: Export, path: Path) -> None:
    """Write the weights to `path`, and the description to `config.json` in the same folder.

    Of float16 are only the weights of layers: those of norms and the biases take no space.
    """
    weights = cast(nn.Module, export.detector).state_dict()
    if export.half:
        weights = {
            key: value.half() if value.is_floating_point() and value.dim() > 1 else value
            for key, value in weights.items()
        }
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    text = json.dumps(detector_description(export.detector), indent=2)
    write_atomically(path.with_name(CONFIG_FILE), f"{text}\n".encode())


def read(path: Path) -> Reader:
    """Load the detector, and run it in torch."""
    graph = graph_of(load_detector(path), nms=True)

    def run(image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(DETECTIONS, graph(image[None]), strict=True))

    return run


def refuse_place(path: Path) -> None:
    """Refuse a folder with weights of another detector, whose `config.json` would be replaced.

    Raises:
        LSHFMError: there are such weights.
    """
    beside = path.with_name(CONFIG_FILE)
    if not beside.exists():
        return
    others = sorted(file for file in path.parent.glob(f"*{path.suffix}") if file.name != path.name)
    if others:
        raise LSHFMError(
            f"output: {beside} describes {others[0].name} and can describe one file only; give another folder"
        )


FORMAT = ExportFormat(
    suffix=".safetensors",
    write=write,
    read=read,
    beside=lambda path: [path.with_name(CONFIG_FILE)],
    refuse_place=refuse_place,
    options=frozenset({"half"}),
)
