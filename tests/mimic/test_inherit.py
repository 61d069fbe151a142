"""Starting a student with the teacher's neck and head."""

import csv
import io

import pytest
import torch
from small_detectors import CLASS_NAMES, small_detector

from lshfm_pl.detectors import build_detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.inherit import differing_anchors, fits_whole, inherit

PAIRS = {
    "fasterrcnn_resnet10fpn_tiny": "fasterrcnn_resnet18fpn_small",
    "retinanet_resnet10fpn_tiny": "retinanet_resnet18fpn_small",
    "fcos_resnet10fpn_tiny": "fcos_resnet18fpn_small",
    "ssdlite_mobilenetv3_tiny": "ssdlite_mobilenetv3_small",
}


def state(detector):
    return {key: value.clone() for key, value in detector.state_dict().items()}


@pytest.mark.parametrize("name", PAIRS)
def test_tensors_of_the_same_name_and_shape_are_taken_and_each_is_reported(name):
    teacher, student = small_detector(PAIRS[name], seed=1), small_detector(name)
    before, given = state(student), teacher.state_dict()
    report = inherit(student, teacher, ["neck", "head"])
    after = student.state_dict()
    body = "backbone.features." if name.startswith("ssd") else "backbone.body."
    assert {tensor.name for tensor in report.tensors} == {key for key in after if not key.startswith(body)}
    rows = {row["tensor"]: row for row in csv.DictReader(io.StringIO(report.table()))}
    for key, value in after.items():
        fits = key in rows and key in given and given[key].shape == value.shape
        assert torch.equal(value, given[key] if fits else before[key]), key
        if key in rows:
            assert rows[key]["how"] == ("taken" if fits else "kept")
            assert bool(rows[key]["told"]) != fits
    assert sum(row["how"] == "taken" for row in rows.values()) == report.num_tensors > 0


@pytest.mark.parametrize("parts", [["neck"], ["head"]])
def test_one_part_leaves_the_other_as_it_was(parts):
    name = "retinanet_resnet10fpn_tiny"
    teacher, student = small_detector(PAIRS[name], seed=1), small_detector(name)
    before = state(student)
    inherit(student, teacher, parts)
    changed = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("backbone.fpn." if parts == ["neck"] else "head.") for key in changed)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet10fpn_tiny", "retinanet_resnet10fpn_tiny"])
def test_class_layers_get_the_rows_of_the_classes_that_both_have(name):
    teacher, template = small_detector(PAIRS[name], seed=1), small_detector(name)
    names = (CLASS_NAMES[2], "zebra")
    student = build_detector(template.config, num_classes=3, class_names=names)
    before = state(student)
    report = inherit(student, teacher, ["head"])
    rows = [tensor for tensor in report.tensors if tensor.how == "rows taken"]
    assert rows
    assert all(tensor.told == f"background, {CLASS_NAMES[2]}" for tensor in rows)
    bias = f"{architecture_of(student).classifier}.bias"
    ours, theirs = (
        detector.state_dict()[bias].reshape(-1, detector.num_classes) for detector in (student, teacher)
    )
    assert torch.equal(ours[:, :2], theirs[:, [0, 3]])
    assert torch.equal(ours[:, 2], before[bias].reshape(-1, 3)[:, 2])


def test_other_widths_are_kept_with_the_reason():
    name = "retinanet_resnet10fpn_tiny"
    teacher = small_detector(PAIRS[name], seed=1)
    student = small_detector(name, fpn_channels=32)
    with pytest.raises(LSHFMError, match=r"no tensor of neck fits \(the teacher's has the shape"):
        inherit(student, teacher, ["neck"])
    report = inherit(student, teacher, ["head"])  # biases of the last layers
    assert "not taken: head." in str(report)
    assert "(the teacher's has the shape" in str(report)


def test_unknown_part_and_other_family_are_refused():
    student = small_detector("fasterrcnn_resnet10fpn_tiny")
    with pytest.raises(LSHFMError, match=r"student.inherit: expected parts of neck, head, found tail"):
        inherit(student, small_detector("fasterrcnn_resnet18fpn_small"), ["tail"])
    with pytest.raises(LSHFMError, match="no tensor of head fits .the teacher has no tensor of this name"):
        inherit(student, small_detector("retinanet_resnet18fpn_small"), ["head"])


def test_other_anchors_are_found():
    student, teacher = (
        small_detector("retinanet_resnet10fpn_tiny"),
        small_detector("retinanet_resnet18fpn_small"),
    )
    assert differing_anchors(student, teacher) is None
    sizes = [[2 * size for size in level] for level in student.config["anchor_sizes"]]
    assert (
        differing_anchors(small_detector("retinanet_resnet10fpn_tiny", anchor_sizes=sizes), teacher)
        == "anchor_sizes"
    )


@pytest.mark.parametrize(
    ("changes", "fits"),
    [({}, True), ({"fpn_channels": 24}, False), ({"anchor_sizes": [[8], [16], [32], [64], [99]]}, False)],
)
def test_neck_and_head_that_fit_wholly_are_found(changes, fits):
    with torch.device("meta"):
        student = small_detector("retinanet_resnet10fpn_tiny")
        teacher = small_detector("retinanet_resnet10fpn_tiny", **changes)
    assert fits_whole(student, teacher) == fits
    assert not fits_whole(student, small_detector("fasterrcnn_resnet10fpn_tiny"))
