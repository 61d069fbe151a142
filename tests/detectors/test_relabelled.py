import torch
from small_detectors import ALL_LABELS, CLASS_NAMES, as_float, random_batch, small_detector

from lshfm_pl.detectors.relabelled import relabelled

RETINANET = "retinanet_resnet10fpn_tiny"


def test_detections_have_the_labels_of_the_other_names():
    detector = small_detector(RETINANET, **ALL_LABELS).eval()
    images = as_float(random_batch()[0])
    with torch.no_grad():
        before, found = detector(images), relabelled(detector, ("Star", "circle")).eval()(images)
    assert set(torch.cat([each["labels"] for each in before]).tolist()) == {0, 1, 2, 3}
    for one, other in zip(before, found, strict=True):
        expected = [
            (2 if label == 1 else 1, score)
            for label, score in zip(one["labels"], one["scores"], strict=True)
            if label in (1, 3)
        ]
        assert [*zip(other["labels"], other["scores"], strict=True)] == expected
        kept = (one["labels"] == 1) | (one["labels"] == 3)
        assert torch.equal(other["boxes"], one["boxes"][kept])


def test_same_names_are_the_detector_and_missing_ones_none():
    detector = small_detector(RETINANET)
    assert relabelled(detector, CLASS_NAMES) is detector
    assert relabelled(detector, ("circle", "dog")) is None
    assert relabelled(detector, CLASS_NAMES[::-1]).class_names == CLASS_NAMES[::-1]


def test_mode_is_that_of_the_detector():
    detector = small_detector(RETINANET).eval()
    found = relabelled(detector, CLASS_NAMES[::-1])
    found.train(found.training)  # as whoever restores the mode after a measurement
    assert not detector.training
