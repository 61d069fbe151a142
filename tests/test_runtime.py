"""`lshfm_pl.runtime`, with files of constant outputs, and without torch."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runtime import FORMAT, Detector

DESCRIPTION = {
    "version": 1,
    "model": "tiny",
    "class_names": ["cat", "dog"],
    "nms": True,
    "size": None,
    "parameters": 1,
}
BOXES, SCORES, LABELS = [[1, 2, 3, 4], [0, 0, 8, 8]], [0.9, 0.2], [2, 1]


def write(path, description=DESCRIPTION, labels=LABELS):
    """A file that finds the same two objects in each picture, and returns them with its input's mean as score."""
    outputs = {
        "boxes": (BOXES, TensorProto.FLOAT),
        "scores": (SCORES, TensorProto.FLOAT),
        "labels": (labels, TensorProto.INT64),
    }
    nodes = [
        helper.make_node(
            "Constant", [], [name], value=helper.make_tensor(name, kind, np.shape(values), np.ravel(values))
        )
        for name, (values, kind) in outputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info(name, kind, None) for name, (_, kind) in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if description is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = FORMAT, json.dumps(description)
    onnx.save(model, path)
    return path


def test_pictures_of_all_kinds_are_detected(tmp_path):
    detector = Detector(write(tmp_path / "a.onnx"), threads=1)
    pixels = np.zeros((20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for image in (pixels, pixels[:, :, 0], Image.fromarray(pixels[:, :, 0]), tmp_path / "a.png"):
        boxes, scores, labels, names = detector(image)
        assert boxes.tolist() == BOXES
        assert scores.tolist() == pytest.approx(SCORES)
        assert (labels.tolist(), names) == (LABELS, ["dog", "cat"])
    assert detector(pixels, score_threshold=0.5).names == ["dog"]


def test_a_file_of_fixed_size_gives_boxes_in_the_picture(tmp_path):
    detector = Detector(write(tmp_path / "a.onnx", {**DESCRIPTION, "size": [10, 10]}))
    assert detector(np.zeros((20, 40, 3), np.uint8)).boxes.tolist() == [[4, 4, 12, 8], [0, 0, 32, 16]]


def test_each_wrong_file_and_picture_has_its_message(tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(LSHFMError, match="found no file"):
        Detector(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LSHFMError, match="a.onnx: not a whole ONNX file"):
        Detector(path)
    for description, message in (
        (None, "an ONNX file of another program"),
        ({**DESCRIPTION, "version": 9}, "version 9 of the description, expected 1"),
        ({**DESCRIPTION, "nms": "yes"}, "its description is damaged at nms"),
        ({"version": 1}, "its description is damaged"),
    ):
        with pytest.raises(LSHFMError, match=message):
            Detector(write(path, description))
    with pytest.raises(LSHFMError, match="finds label 3, but names 2 classes"):
        Detector(write(path, labels=[3, 1]))(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(LSHFMError, match="expected a path, a Pillow image or a uint8 array"):
        Detector(write(path))(np.zeros((4, 4, 3)))
    with pytest.raises(LSHFMError, match="cannot be read as a picture"):
        Detector(path)(path)


def test_torch_is_not_needed(tmp_path):
    """In a process in which torch and the packages that need it cannot be imported."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "pytorch_lightning", "hydra", "omegaconf", "onnx"]))
import numpy
from lshfm_pl.runtime import Detector
print(Detector({str(write(tmp_path / "a.onnx"))!r})(numpy.zeros((9, 9, 3), numpy.uint8)).names)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("['dog', 'cat']\n", "")
