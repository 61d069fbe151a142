"""Formats other than ONNX: their files detect the same as the detector that was exported."""

import json
import sys

import pytest
import torch
from exported_detectors import detected, detector_with_boxes, pictures, worst
from small_detectors import CLASS_NAMES, small_detector

from lshfm_pl.detectors import load_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.exporting.check import compare_detections
from lshfm_pl.exporting.format import (
    Export,
    ExportFormat,
    format_names,
    load_format,
    refuse_missing_extra,
    refuse_other_settings,
)


def test_safetensors_are_loaded_back_by_load_detector(tmp_path):
    detector = small_detector("fcos_resnet10fpn_tiny").eval()
    chosen = load_format("safetensors")
    chosen.write(Export(detector=detector), tmp_path / "student.safetensors")
    loaded = load_detector(tmp_path / "student.safetensors")
    assert (loaded.config, loaded.class_names) == (detector.config, CLASS_NAMES)
    expected = detector.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda description: "{",
            "config.json: expected the JSON description of the detector in a.safetensors",
        ),
        (
            lambda description: {**description, "version": 9},
            "config.json: detector format version 9, expected 1",
        ),
        (
            lambda description: {**description, "num_classes": 9},
            "config.json: .* expected 8 class names, found",
        ),
        (lambda description: {**description, "config": {"architecture": "fcos"}}, "config.json: model"),
        (lambda description: {"hidden_size": 768}, "put its config.json beside it"),
        (lambda description: None, "put its config.json beside it"),
    ],
)
def test_a_wrong_description_beside_safetensors_is_named(change, message, tmp_path):
    detector = small_detector("fcos_resnet10fpn_tiny").eval()
    load_format("safetensors").write(Export(detector=detector), tmp_path / "a.safetensors")
    beside = tmp_path / "config.json"
    changed = change(json.loads(beside.read_text()))
    beside.unlink()
    if changed is not None:
        beside.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(LSHFMError, match=message):
        load_detector(tmp_path / "a.safetensors")


def test_safetensors_of_16_bits_take_half_the_space_and_detect_nearly_the_same(tmp_path):
    detector = detector_with_boxes("retinanet_resnet10fpn_tiny")
    chosen = load_format("safetensors")
    chosen.write(Export(detector=detector), tmp_path / "a.safetensors")
    chosen.write(Export(detector=detector, half=True), tmp_path / "half.safetensors")
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "a.safetensors")]
    assert sizes[0] < 0.55 * sizes[1]
    loaded = load_detector(tmp_path / "half.safetensors")
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    picture = pictures()[0]
    difference = compare_detections(
        detected(detector, picture),
        detected(loaded, picture),
        least_score=0.05,
        score_slack=0.03,
        score_thresh=0.01,
        nms_thresh=0.5,
        most=100,
    )
    assert 0 < difference.scores.max() < 0.03


def test_weights_are_not_written_beside_those_of_another_detector(tmp_path):
    chosen = load_format("safetensors")
    path = tmp_path / "a.safetensors"
    chosen.refuse_place(path)
    chosen.write(Export(detector=small_detector("fcos_resnet10fpn_tiny")), path)
    chosen.refuse_place(path)  # replaced together with its description
    with pytest.raises(LSHFMError, match="config.json describes a.safetensors .* give another folder"):
        chosen.refuse_place(tmp_path / "b.safetensors")


def test_torchscript_detects_the_same_at_all_sizes(tmp_path):
    detector = detector_with_boxes("retinanet_resnet10fpn_tiny")
    chosen = load_format("torchscript")
    chosen.write(Export(detector=detector), tmp_path / "a.torchscript")
    run = chosen.read(tmp_path / "a.torchscript")
    for picture in pictures():
        expected = detected(detector, picture)
        found = run(picture)
        difference = compare_detections(
            expected, found, least_score=0.05, score_slack=1e-4, score_thresh=None, nms_thresh=0.5, most=None
        )
        assert worst(difference)[0] < 0.05


def test_wrong_formats_settings_and_missing_packages_are_named():
    with pytest.raises(LSHFMError, match=f"expected one of {', '.join(format_names())}, found onxx"):
        load_format("onxx")
    chosen = ExportFormat(suffix=".a", write=print, read=print, needs=("not_installed",), extra="openvino")
    with pytest.raises(LSHFMError, match=r"new needs not_installed, .* pip install 'lshfm_pl\[openvino\]'"):
        refuse_missing_extra("new", chosen)
    with pytest.raises(LSHFMError, match="dtype: a file of format torchscript has no such choice"):
        refuse_other_settings("torchscript", load_format("torchscript"), Export(detector=None, half=True))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "openvino"])
def test_each_format_that_needs_a_missing_package_names_it(package, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("lshfm_pl.exporting.formats.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    for name in format_names():
        chosen = load_format(name)
        if package in chosen.needs:
            with pytest.raises(LSHFMError, match=rf"{name} needs {package}, .* pip install 'lshfm_pl\["):
                refuse_missing_extra(name, ExportFormat(**{**vars(chosen), "needs": (package,)}))
