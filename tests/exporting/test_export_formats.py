"""Formats other than ONNX: their files detect the same as the detector that was exported."""

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
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LSHFMError, match="config.json: expected the JSON description"):
        load_detector(tmp_path / "student.safetensors")


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
    with pytest.raises(LSHFMError, match="dtype: a file of format safetensors has no such choice"):
        refuse_other_settings("safetensors", load_format("safetensors"), Export(detector=None, half=True))


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
