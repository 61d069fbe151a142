"""The published post-processing against an implementation box by box."""

import math

import pytest
import torch
from small_detectors import small_detector

RETINANET = "retinanet_resnet10fpn_tiny"
IMAGE_SHAPE = (96, 128)


def head_outputs(num_anchors=(300, 80), num_classes=4, seed=0):
    """Random logits, deltas and anchors of two levels and two images; some boxes fall outside the image."""
    generator = torch.Generator().manual_seed(seed)
    outputs = {"cls_logits": [], "bbox_regression": []}
    anchors = []
    for count in num_anchors:
        outputs["cls_logits"].append(2 * torch.randn(2, count, num_classes, generator=generator))
        outputs["bbox_regression"].append(torch.randn(2, count, 4, generator=generator) / 2)
        corners = torch.rand(count, 2, generator=generator) * 150 - 10
        anchors.append(
            torch.cat([corners, corners + 5 + 30 * torch.rand(count, 2, generator=generator)], dim=1)
        )
    return outputs, [anchors, anchors]


def decoded(delta, anchor):
    """The box of a delta (dx, dy, log dw, log dh) to an anchor, clipped to the image."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = anchor[0] + width / 2 + delta[0] * width
    y = anchor[1] + height / 2 + delta[1] * height
    width, height = width * math.exp(delta[2]), height * math.exp(delta[3])
    corners = [(x - width / 2, 1), (y - height / 2, 0), (x + width / 2, 1), (y + height / 2, 0)]
    return [min(max(value, 0.0), IMAGE_SHAPE[side]) for value, side in corners]


def overlap(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def published_rule(logits, deltas, anchors, *, score_thresh, nms_thresh, limit):
    detections = []
    boxes = [decoded(delta, anchor) for delta, anchor in zip(deltas, anchors, strict=True)]
    for label in range(len(logits[0])):
        scored = [(1 / (1 + math.exp(-row[label])), box) for row, box in zip(logits, boxes, strict=True)]
        scored = [
            (score, box)
            for score, box in scored
            if score > score_thresh and box[2] - box[0] >= 0.01 and box[3] - box[1] >= 0.01
        ]
        kept = []
        for score, box in sorted(scored, key=lambda item: -item[0]):
            if all(overlap(box, other) <= nms_thresh for _, other in kept):
                kept.append((score, box))
        detections += [(label, score, box) for score, box in kept[:limit]]
    return detections


@pytest.mark.parametrize(("score_thresh", "limit"), [(0.05, 300), (0.3, 300), (0.05, 20), (0.999, 300)])
def test_published_rule_box_by_box(score_thresh, limit):
    settings = {"score_thresh": score_thresh, "detections_per_img": limit, "nms_thresh": 0.5}
    detector = small_detector(RETINANET, postprocess="published", **settings)
    outputs, anchors = head_outputs()
    found = detector.postprocess_detections(outputs, anchors, [IMAGE_SHAPE] * 2)
    for index, detections in enumerate(found):
        expected = published_rule(
            torch.cat(outputs["cls_logits"], dim=1)[index].tolist(),
            torch.cat(outputs["bbox_regression"], dim=1)[index].tolist(),
            torch.cat(anchors[index]).tolist(),
            score_thresh=score_thresh,
            nms_thresh=0.5,
            limit=limit,
        )
        assert detections["labels"].tolist() == [label for label, _, _ in expected]
        assert detections["scores"].tolist() == pytest.approx([score for _, score, _ in expected], rel=1e-5)
        boxes = torch.tensor([box for *_, box in expected]).reshape(-1, 4)
        torch.testing.assert_close(detections["boxes"], boxes, rtol=1e-5, atol=1e-4)
        counts = detections["labels"].bincount(minlength=4)
        assert counts.max() <= limit
        if limit == 20:
            assert (counts == 20).all()


def test_published_rule_keeps_more_boxes_than_torchvisions_where_there_are_many():
    outputs, anchors = head_outputs(num_anchors=(1500, 80))
    counts = {}
    for rule in ("torchvision", "published"):
        detector = small_detector(RETINANET, postprocess=rule, topk_candidates=1000, detections_per_img=300)
        detections = detector.postprocess_detections(outputs, anchors, [IMAGE_SHAPE] * 2)
        counts[rule] = len(detections[0]["scores"])
    assert counts["torchvision"] == 300
    assert counts["published"] > 600


def test_both_rules_agree_but_for_empty_boxes_where_no_limit_is_reached():
    outputs, anchors = head_outputs(num_anchors=(200, 80))
    found = {}
    for rule in ("torchvision", "published"):
        settings = {"topk_candidates": 5000, "detections_per_img": 5000}
        detector = small_detector(RETINANET, postprocess=rule, **settings)
        detections = detector.postprocess_detections(outputs, anchors, [IMAGE_SHAPE] * 2)[1]
        sides = detections["boxes"][:, 2:] - detections["boxes"][:, :2]
        large = torch.where((sides >= 0.01).all(dim=1))[0]
        order = large[detections["scores"][large].argsort(descending=True)]
        found[rule] = {key: value[order] for key, value in detections.items()}
    assert len(found["published"]["scores"]) == len(detections["scores"])
    for key, value in found["torchvision"].items():
        torch.testing.assert_close(value, found["published"][key])


def test_rule_reaches_the_detections_of_a_whole_detector():
    images = [torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))]
    counts = {}
    for rule in ("torchvision", "published"):
        detector = small_detector(RETINANET, postprocess=rule, score_thresh=0.0, detections_per_img=50).eval()
        with torch.no_grad():
            counts[rule] = detector(images)[0]["labels"].bincount(minlength=4)
    assert counts["torchvision"].sum() == 50
    assert counts["published"].tolist() == [50] * 4
