"""Exported ONNX files detect the same as the detectors in torch."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_detectors import detected, detector_with_boxes, pictures, worst
from small_detectors import CLASS_NAMES, EVERY_STUDENT, small_detector

from lshfm_pl import runtime
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.tracing import RAW, graph_of
from lshfm_pl.errors import LSHFMError
from lshfm_pl.exporting.check import compare_detections, compare_raw
from lshfm_pl.exporting.format import Export
from lshfm_pl.exporting.formats.onnx import FORMAT

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [EVERY_STUDENT[0], *(pytest.param(name, marks=SLOW) for name in EVERY_STUDENT[1:])]
)
def test_one_file_detects_the_same_in_pictures_of_all_sizes(name, tmp_path):
    detector = detector_with_boxes(name)
    FORMAT.write(Export(detector=detector), tmp_path / "a.onnx")
    run = FORMAT.read(tmp_path / "a.onnx")
    for picture in pictures():
        difference = compare_detections(
            detected(detector, picture),
            run(picture),
            least_score=0.05,
            score_slack=1e-4,
            score_thresh=None,
            nms_thresh=detector.config[architecture_of(detector).evaluation["nms_thresh"]],
            most=None,
        )
        pixels, scores = worst(difference)
        assert pixels < 0.05
        assert scores < 1e-3


@pytest.mark.parametrize("name", [name for name in EVERY_STUDENT if not name.startswith("fasterrcnn")])
def test_raw_boxes_contain_every_detected_box(name):
    detector = detector_with_boxes(name)
    (picture,) = pictures([(99, 163)])
    expected = detected(detector, picture)
    with torch.no_grad():
        boxes, scores = graph_of(detector, nms=False)(picture[None])
    assert (boxes.shape[:2], scores.shape[2]) == (scores.shape[:2], 4)
    for box, score, label in zip(*(expected[key] for key in ("boxes", "scores", "labels")), strict=True):
        same_score = (scores[0, :, label] - score).abs() < 1e-5
        clipped = torch.minimum(boxes[0].clamp(min=0), torch.tensor([163.0, 99.0, 163.0, 99.0]))
        assert ((clipped - box).abs().amax(dim=1) < 1e-2)[same_score].any()


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet10fpn_tiny",
        *(pytest.param(name, marks=SLOW) for name in EVERY_STUDENT if not name.startswith("retinanet")),
    ],
)
def test_a_picture_without_objects_has_no_boxes(name, tmp_path):
    key = architecture_of(small_detector(name)).evaluation["score_thresh"]
    detector = small_detector(name, **{key: 0.999}).eval()
    FORMAT.write(Export(detector=detector), tmp_path / "a.onnx")
    found = runtime.Detector(tmp_path / "a.onnx", threads=1)(np.zeros((60, 50, 3), np.uint8))
    assert (found.boxes.shape, found.scores.shape, found.labels.shape, found.names) == (
        (0, 4),
        (0,),
        (0,),
        [],
    )


def test_a_file_without_nms_takes_batches_and_float16_halves_it(tmp_path):
    detector = detector_with_boxes("retinanet_resnet10fpn_tiny")
    full, half = tmp_path / "full.onnx", tmp_path / "half.onnx"
    FORMAT.write(Export(detector=detector, nms=False), full)
    FORMAT.write(Export(detector=detector, nms=False, half=True), half)
    assert half.stat().st_size < 0.62 * full.stat().st_size
    batch = torch.rand(3, 3, 77, 130)
    with torch.no_grad():
        expected = dict(zip(RAW, graph_of(detector, nms=False)(batch), strict=True))
    for path, limit in ((full, 0.05), (half, 5.0)):
        outputs = runtime.Detector(path).session.run(None, {"images": batch.numpy()})
        found = {name: torch.from_numpy(output) for name, output in zip(RAW, outputs, strict=True)}
        assert worst(compare_raw(expected, found, least_score=0.05))[0] < limit
    with pytest.raises(LSHFMError, match="exported with nms=false"):
        runtime.Detector(full)(np.zeros((9, 9, 3), np.uint8))


def test_a_file_holds_the_student_alone_and_says_what_it_is(tmp_path):
    detector = small_detector("ssdlite_mobilenetv3_tiny").eval()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    FORMAT.write(Export(detector=detector, size=(96, 160)), tmp_path / "a.onnx")
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    model = onnx.load(tmp_path / "a.onnx")
    elements = sum(np.prod(tensor.dims) for tensor in model.graph.initializer)
    assert elements < 1.1 * sum(value.numel() for value in before.values())
    described = json.loads({entry.key: entry.value for entry in model.metadata_props}[runtime.FORMAT])
    assert described["class_names"] == list(CLASS_NAMES)
    assert described["size"] == [96, 160]
    assert [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 96, 160]
    # Norms are parts of the convolutions.
    assert not {"BatchNormalization"} & {node.op_type for node in model.graph.node}


def test_a_family_whose_proposals_need_nms_says_so():
    detector = small_detector("fasterrcnn_resnet10fpn_tiny").eval()
    with pytest.raises(LSHFMError, match="nms: expected true, as a Faster R-CNN"):
        FORMAT.write(Export(detector=detector, nms=False), Path("never.onnx"))
