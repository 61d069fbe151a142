"""Files of 8 bits, and their check, which refuses files that detect something else."""

import dataclasses
import re

import numpy as np
import onnx
import pytest
from exported_detectors import detector_with_boxes
from hydra import compose, initialize_config_dir
from onnx import numpy_helper
from small_detectors import EVERY_STUDENT

from lshfm_pl import export as command
from lshfm_pl import runtime
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.exporting.check import faults_of
from lshfm_pl.exporting.format import Calibration, Export, load_format
from lshfm_pl.exporting.formats.int8 import layers_before_others
from lshfm_pl.exporting.pictures import at_several_sizes, random_pictures

SLOW = pytest.mark.slow
PREDICTION = re.compile(r"cls_logits|bbox_reg\.|bbox_pred|bbox_ctrness|cls_score|module_list\.\d\.1\.weight")
"""In the names of the weights that predict classes and boxes."""


def limits_of(settings):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return command._limits(compose("export", overrides=["checkpoint=x"]), settings)


def faults(settings, path, **changes):
    """Of the check, with as many pictures as the command takes."""
    limits = dataclasses.replace(limits_of(settings), **changes)
    seen = at_several_sizes(random_pictures(8, 1), settings.size)
    return faults_of(command.compare(settings, load_format("onnx").read(path), seen, limits), limits)


def quantised(name, path, **changes):
    """Without NMS where the family can: with random weights it chooses among boxes of nearly equal scores."""
    changes = {"nms": name.startswith("fasterrcnn"), **changes}
    images = random_pictures(4, 0)
    settings = Export(detector=detector_with_boxes(name), calibration=Calibration(images=images), **changes)
    load_format("int8").write(settings, path)
    return settings


def scrambled(path, change, kind):
    """Change the weights of the third layer of a file."""
    model = onnx.load(path)
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    inputs = {output: node.input[0] for node in model.graph.node for output in node.output if node.input}
    wanted = inputs[layers[2].input[1]]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == wanted)
    weights = numpy_helper.to_array(tensor)
    assert weights.dtype == kind
    tensor.CopyFrom(numpy_helper.from_array(change(weights).astype(kind), wanted))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "a.int8.onnx"
    return quantised("retinanet_resnet10fpn_tiny", path), path


def test_a_file_of_8_bits_agrees_and_is_smaller(retinanet):
    settings, path = retinanet
    assert faults(settings, path) == []
    detector = runtime.Detector(path)
    assert detector.description["weights"] == "int8"
    assert path.stat().st_size < 0.5 * 4 * detector.description["parameters"]


@pytest.mark.parametrize(
    "change", [lambda weights: np.roll(weights, 1, axis=0), lambda weights: weights // 4]
)
def test_wrong_weights_of_8_bits_are_refused(retinanet, change, tmp_path):
    settings, path = retinanet
    copy = tmp_path / "b.int8.onnx"
    copy.write_bytes(path.read_bytes())
    scrambled(copy, change, np.int8)
    assert "boxes have no partner within" in " ".join(faults(settings, copy))


def test_wrong_weights_of_16_bits_are_refused(tmp_path):
    settings = Export(detector=detector_with_boxes("retinanet_resnet10fpn_tiny"), half=True, nms=False)
    path = tmp_path / "a.onnx"
    load_format("onnx").write(settings, path)
    assert faults(settings, path) == []
    scrambled(path, lambda weights: weights * np.float16(1.1), np.float16)
    assert "boxes have no partner within 2 px" in " ".join(faults(settings, path))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW) for name in EVERY_STUDENT[:1] + EVERY_STUDENT[2:]]
)
def test_every_family_is_quantised_but_for_its_predictions(name, tmp_path):
    path = tmp_path / "a.int8.onnx"
    settings = quantised(name, path)
    source = tmp_path / "a.onnx"
    load_format("onnx").write(dataclasses.replace(settings, calibration=None), source)
    model = onnx.load(source)
    chosen = layers_before_others(model)
    others = [
        node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm") and node.name not in chosen
    ]
    assert len(chosen) > 10
    assert others
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert bool(PREDICTION.search(node.input[1])) == (node.name in others), node.name
    # Random boxes are thin, and random scores spread widely, so that rounding changes many of them.
    assert faults(settings, path, iou=0.0, unpaired=0.6) == []


def test_a_file_of_fixed_size_agrees_too(tmp_path):
    settings = quantised("ssdlite_mobilenetv3_tiny", tmp_path / "a.int8.onnx", size=(128, 160))
    assert faults(settings, tmp_path / "a.int8.onnx") == []


def test_ranges_need_pictures(tmp_path):
    detector = detector_with_boxes("retinanet_resnet10fpn_tiny")
    for calibration in (None, Calibration(images=[])):
        with pytest.raises(
            LSHFMError, match="int8 needs pictures that show the ranges of features, found none"
        ):
            load_format("int8").write(
                Export(detector=detector, calibration=calibration), tmp_path / "a.int8.onnx"
            )
