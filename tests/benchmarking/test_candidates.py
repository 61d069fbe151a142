"""Random detectors whose post-processing has as much to do as one likes."""

import pytest
import torch
import torchvision
from small_detectors import EVERY_STUDENT, random_batch, small_detector

from lshfm_pl.benchmarking.candidates import settle_norms, threshold_for, with_evaluation
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.inference.detect import detect

IMAGES = random_batch()[0]


@pytest.fixture
def boxes_in_nms(monkeypatch):
    """The number of boxes in each call of torchvision's NMS over classes."""
    counts, nms = [], torchvision.ops.boxes.batched_nms

    def counting(boxes, *args):
        counts.append(len(boxes))
        return nms(boxes, *args)

    monkeypatch.setattr(torchvision.ops.boxes, "batched_nms", counting)
    return counts


@pytest.mark.parametrize("size", [None, (224, 96)])
@pytest.mark.parametrize("name", EVERY_STUDENT)
def test_as_many_boxes_reach_the_nms_as_asked(name, size, boxes_in_nms):
    detector = small_detector(name).eval()
    detector.transform.fixed_size = size or detector.transform.fixed_size
    settle_norms(detector, IMAGES)
    threshold, count = threshold_for(40, detector, IMAGES)
    assert count == 40
    changed = with_evaluation(detector, {"score_thresh": threshold})
    boxes_in_nms.clear()
    detect(changed, IMAGES)
    assert sum(boxes_in_nms[-len(IMAGES) :]) == 40 * len(IMAGES)  # the RPN has its own NMS before


def test_all_boxes_count_if_there_are_fewer():
    detector = small_detector(EVERY_STUDENT[0]).eval()
    threshold, count = threshold_for(100_000, detector, IMAGES[:1])
    assert threshold == 0
    assert count == detector.config["rpn_post_nms_top_n_test"] * 3  # a box of each class for each proposal


def test_published_rule_gets_the_same_boxes():
    ours, published = (
        small_detector("retinanet_resnet10fpn_tiny", postprocess=rule).eval()
        for rule in ("torchvision", "published")
    )
    assert threshold_for(30, ours, IMAGES) == threshold_for(30, published, IMAGES)


def test_other_evaluation_settings_leave_the_weights():
    detector = small_detector(EVERY_STUDENT[1]).eval()
    changed = with_evaluation(detector, {"score_thresh": 0.25})
    assert changed.config["score_thresh"] == 0.25
    assert not changed.training
    for name, tensor in changed.state_dict().items():
        assert torch.equal(tensor, detector.state_dict()[name])


def test_family_without_thresholds_keeps_its_own(monkeypatch):
    detector = small_detector(EVERY_STUDENT[1]).eval()
    monkeypatch.setitem(architecture_of(detector).evaluation, "score_thresh", None)
    monkeypatch.delitem(architecture_of(detector).evaluation, "score_thresh")
    assert threshold_for(30, detector, IMAGES) is None


@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
def test_norms_get_the_statistics_of_the_images(norm):
    detector = small_detector("retinanet_resnet10fpn_tiny", norm=norm).eval()
    settle_norms(detector, IMAGES)
    outputs = {}
    norms = {name: part for name, part in detector.named_modules() if hasattr(part, "running_var")}
    for name, part in norms.items():
        part.register_forward_hook(
            lambda part, inputs, output, name=name: outputs.update({name: output.clone()})
        )
    detect(detector, IMAGES)
    assert len(outputs) == len(norms) > 10
    for output in outputs.values():
        assert output.mean(dim=(0, 2, 3)).abs().max() < 1e-3
        assert output.var(dim=(0, 2, 3)).median() == pytest.approx(1, abs=0.2)
