import math

import pytest
import torch

from lshfm_pl.exporting.check import compare_detections, compare_raw, faults_of, total
from lshfm_pl.exporting.format import Limits

LIMITS = Limits(pixels=0.5, score=0.01)


def detections(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


def compared(expected, found):
    return compare_detections(
        expected,
        found,
        least_score=0.05,
        score_slack=0.001,
        score_thresh=0.05,
        nms_thresh=0.5,
        most=3,
    )


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
    # The score threshold.
    difference = compared(detections(*TWO, (50, 50, 80, 80, 0.0505, 1)), detections(*TWO))
    assert (difference.unpaired, difference.undecided) == (0, 1)
    assert faults_of(difference, LIMITS) == []


def test_rounding_may_decide_on_a_few_boxes_only():
    ties = [(x, 50, x + 20, 80, 0.0505, 1) for x in (0, 100, 200)]
    difference = compared(detections(*TWO, *ties[:2]), detections(*TWO))
    assert (difference.boxes, difference.undecided) == (4, 2)
    assert faults_of(difference, LIMITS) == [
        "2 boxes without partner where rounding decided, expected at most 1"
    ]
    many = total([compared(detections(*TWO), detections(*TWO))] * 49 + [difference])
    assert (many.boxes, math.ceil(LIMITS.undecided * many.boxes)) == (102, 3)
    assert faults_of(many, LIMITS) == []


def test_which_boxes_of_the_lowest_score_are_kept_does_not_matter():
    """A detector that is hardly trained gives many boxes the same score, of which it keeps some."""
    sure = [(0, 0, 10, 10, 0.9, 1), (50, 50, 80, 80, 0.5, 2)]
    first, second = (0, 50, 9, 90, 0.3, 1), (100, 50, 120, 90, 0.3, 1)
    difference = compared(detections(*sure, first), detections(*sure, second))
    assert (difference.unpaired, difference.undecided, difference.tied) == (0, 0, 2)
    assert (
        faults_of(total([difference, difference + compared(detections(*sure), detections(*sure))]), LIMITS)
        == []
    )
    # Above the lowest score it does, and with fewer boxes than can be kept.
    assert compared(detections(*sure, first), detections(*sure, (*second[:4], 0.4, 1))).unpaired == 1
    assert compared(detections(first), detections(second)).unpaired == 2


def test_boxes_of_one_score_alone_show_nothing():
    rows = [[(x, y, x + 9, y + 9, 0.3, 1) for x in (0, 100, 200)] for y in (0, 100)]
    (fault,) = faults_of(compared(detections(*rows[0]), detections(*rows[1])), LIMITS)
    assert "6 boxes without partner whose score equals the lowest one" in fault


def test_a_box_that_only_the_file_is_sure_of_is_compared():
    difference = compared(detections(*TWO, (0, 50, 9, 90, 0.02, 1)), detections(*TWO, (0, 50, 9, 90, 0.9, 1)))
    assert difference.scores.max() > 0.8


def test_a_share_of_the_boxes_may_differ_by_more():
    limits = Limits(pixels=None, iou=0.6, score=0.2, unpaired=0.1)
    boxes = [(20 * i, 0, 20 * i + 10, 10, 0.9, 1) for i in range(20)]
    # An IoU of 0.67, which is allowed, one of 0.54, and a score that is lower by 0.3.
    changed = [(2, 0, 12, 10, 0.9, 1), (20 + 3, 0, 20 + 13, 10, 0.9, 1), (40, 0, 50, 10, 0.6, 1), *boxes[3:]]
    difference = compared(detections(*boxes), detections(*changed))
    assert len(difference.ious) == 20
    assert faults_of(difference, limits) == []
    missing = compared(detections(*boxes), detections(*changed[:-1]))
    (fault,) = faults_of(missing, limits)
    assert fault == (
        "3 of 20 boxes have no partner within an IoU of 0.6 and 0.2 of a score, expected at most 2"
    )


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
