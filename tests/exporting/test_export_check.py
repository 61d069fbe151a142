import pytest
import torch

from lshfm_pl.exporting.check import compare_detections, compare_raw, faults_of
from lshfm_pl.exporting.format import Limits

LIMITS = Limits(pixels=0.5, score=0.01)


def detections(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


def compared(expected, found):
    return compare_detections(expected, found, least_score=0.05, score_slack=0.001, nms_thresh=0.5, most=3)


TWO = [(0, 0, 10, 10, 0.9, 1), (50, 50, 80, 80, 0.5, 2)]


def test_the_order_of_boxes_does_not_matter():
    difference = compared(detections(*TWO), detections(*TWO[::-1]))
    assert (difference.boxes, difference.unpaired, difference.pixels.max()) == (2, 0, 0)
    assert faults_of(difference, LIMITS) == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ((50, 50, 80.6, 80, 0.5, 2), "largest difference 0.6 px"),
        ((50, 50, 80, 80, 0.52, 2), "largest difference 0.02 of a score"),
        ((50, 50, 80, 80, 0.5, 1), "2 boxes without partner"),
        ((20, 20, 30, 30, 0.5, 2), "2 boxes without partner"),
    ],
)
def test_a_wrong_box_fails(changed, fault):
    (found,) = faults_of(compared(detections(*TWO), detections(TWO[0], changed)), LIMITS)
    assert fault in found


def test_a_missing_box_fails_and_an_additional_one_too():
    two = detections(*TWO)
    assert compared(two, detections()).unpaired == 2
    assert compared(detections(TWO[0]), two).unpaired == 1


def test_rounding_may_decide_at_the_limits():
    # An IoU of 0.5 with a box that is there.
    difference = compared(detections(*TWO, (0, 0, 10, 5.0, 0.6, 1)), detections(*TWO))
    assert (difference.unpaired, difference.undecided) == (0, 1)
    # The last of the boxes that are kept.
    three = (20, 20, 30, 30, 0.4, 1), (5, 50, 9, 80, 0.3995, 1)
    difference = compared(detections(*TWO, three[0]), detections(*TWO, three[1]))
    assert (difference.unpaired, difference.undecided) == (0, 2)
    # The score of interest.
    assert compared(detections(*TWO, (50, 50, 80, 80, 0.0505, 1)), detections(*TWO)).unpaired == 0


def test_nothing_to_compare_and_not_a_number_are_faults():
    assert "no boxes" in faults_of(compared(detections(), detections()), LIMITS)[0]
    wrong = detections((0, 0, 10, 10, 0.9, 1))
    wrong["boxes"][0, 0] = torch.nan
    assert faults_of(compared(detections(TWO[0]), wrong), LIMITS)


def test_raw_outputs_are_compared_where_a_score_counts():
    expected = {"boxes": torch.zeros(1, 3, 4), "scores": torch.tensor([[[0.9, 0.01], [0, 0.5], [0, 0.4]]])}
    found = {key: value.clone() for key, value in expected.items()}
    found["boxes"][0, 0] += 9  # background
    found["boxes"][0, 1] += 0.25
    difference = compare_raw(expected, found, least_score=0.05)
    assert (difference.boxes, difference.pixels.max(), difference.unpaired) == (2, 0.25, 0)
    fewer = {key: value[:, :2] for key, value in found.items()}
    assert compare_raw(expected, fewer, least_score=0.05).unpaired == 3
