"""In mixed precision boxes stay float32: anchors, proposals, matched ground truth, detections."""

import pytest
import torch
from small_detectors import STUDENTS, small_detector

WIDE = (256, 1280)
BOX = [1001.0, 33.0, 1103.0, 201.0]
"""Between the numbers that bfloat16 has there, which are 8 apart."""


def wide_detector(name):
    return small_detector(name, min_size=[WIDE[0]], max_size=WIDE[1])


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def autocast(request):
    return lambda: torch.autocast("cpu", dtype=request.param)


def anchors_of(detector, image):
    seen = []
    generator = getattr(detector, "rpn", detector).anchor_generator
    hook = generator.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    detector.eval()([image])
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", STUDENTS)
def test_anchors_and_detections_are_float32(name, autocast):
    detector, image = wide_detector(name), torch.rand(3, *WIDE)
    with torch.no_grad():
        expected = anchors_of(detector, image)
        with autocast():
            assert torch.equal(anchors_of(detector, image), expected)
            found = detector([image])[0]
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_proposals_and_matched_ground_truth_are_float32(autocast):
    detector = wide_detector(STUDENTS[0]).train()
    seen = []
    detector.roi_heads.box_roi_pool.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[1]))
    target = {"boxes": torch.tensor([BOX]), "labels": torch.tensor([1])}
    with autocast():
        losses = detector([torch.rand(3, *WIDE)], [target])
    (boxes,) = seen
    assert boxes.dtype == torch.float32
    assert (
        (boxes == torch.tensor(BOX)).all(dim=1).any()
    )  # in training the ground truth is added to the proposals
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("name", STUDENTS)
def test_heads_say_the_same_as_torchvisions_in_float32_and_float64(name):
    for dtype in (torch.float32, torch.float64):
        detector = wide_detector(name).eval().to(dtype)
        with torch.no_grad():
            found = detector([torch.rand(3, *WIDE, dtype=dtype)])[0]
        assert found["boxes"].dtype == dtype
