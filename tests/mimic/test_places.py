"""Features that are read without a forward pass of training."""

import pytest
import torch
from small_detectors import STUDENTS, TEACHER_OF, WITH_PENULTIMATE, as_float, random_batch, small_detector
from torchvision.ops import box_iou

from lshfm_pl.mimic.features import ground_truth_features


def features_at(names, rows, boxless=(), seed=0):
    detectors = [small_detector(name, seed=index).eval() for index, name in enumerate(names)]
    images, targets = random_batch(boxless=boxless)
    return ground_truth_features(
        detectors,
        as_float(images),
        targets,
        rows_per_image=rows,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("name", WITH_PENULTIMATE)
def test_both_detectors_are_read_at_the_same_places(name):
    alone = features_at([name], 8)[0]
    first, second = features_at([name, TEACHER_OF[name]], 8)
    assert torch.equal(alone, first)
    assert first.shape == second.shape == (16, first.shape[1])
    assert not first.requires_grad


@pytest.mark.parametrize("name", WITH_PENULTIMATE)
def test_image_without_boxes_gives_no_features(name):
    with_one = features_at([name], 8, boxless=(1,))[0]
    assert with_one.shape[0] == 8
    nothing = features_at([name], 8, boxless=(0, 1))[0]
    assert nothing.shape == (0, with_one.shape[1])


def test_faster_rcnn_places_are_the_boxes_and_jittered_copies_near_them():
    student = small_detector(STUDENTS[0]).eval()
    seen = []
    student.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    images, targets = random_batch()
    generator = torch.Generator().manual_seed(0)
    ground_truth_features([student], as_float(images), targets, rows_per_image=100, generator=generator)
    # The boxes are pooled image by image.
    for (boxes,), target in zip(seen, targets, strict=True):
        assert 3 < len(boxes) <= 15
        best = box_iou(target["boxes"], boxes)
        assert (best.max(dim=1).values > 0.999).all()
        assert best.max(dim=0).values.mean() > 0.3
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= 128).all()
