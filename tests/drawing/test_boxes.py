import pytest
import torch
from drawn_pictures import NAMES, box, has_color

from lshfm_pl.drawing.boxes import draw_detections
from lshfm_pl.errors import LSHFMError


@pytest.fixture
def image():
    return torch.full((3, 120, 160), 90, dtype=torch.uint8)


def test_a_box_is_drawn_at_its_corners_in_the_color_of_its_class(image):
    before = image.clone()
    drawn = draw_detections(image, box(40, 50, 100, 90), torch.tensor([2]), NAMES)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == image.shape
    colored = has_color(drawn, 2)
    assert colored[50, 40:101].all()
    assert colored[90, 40:101].all()
    assert colored[50:91, 40].all()
    assert colored[50:91, 100].all()
    inside = torch.zeros(120, 160, dtype=torch.bool)
    inside[50:91, 40:101] = True
    assert torch.equal(drawn[:, ~inside], image[:, ~inside])
    assert torch.equal(image, before)


def test_difficult_boxes_are_dashed(image):
    corners, label = box(40, 50, 100, 90), torch.tensor([2])
    drawn = draw_detections(image, corners, label, NAMES, difficult=torch.tensor([True]))
    bottom = has_color(drawn, 2)[90, 40:101]
    assert 0.3 < bottom.float().mean() < 0.8
    plain = draw_detections(image, corners, label, NAMES)
    assert torch.equal(draw_detections(image, corners, label, NAMES, difficult=torch.tensor([False])), plain)
    assert not torch.equal(drawn, plain)


def test_scores_are_written(image):
    corners, label = box(10, 10, 150, 110), torch.tensor([1])
    pictures = [
        draw_detections(image, corners, label, NAMES, scores=scores)
        for scores in (None, torch.tensor([0.25]), torch.tensor([0.75]))
    ]
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[1], pictures[2])


def test_no_box_leaves_the_image_as_it_is(image):
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert torch.equal(draw_detections(image, *nothing, NAMES), image)
    gray = draw_detections(image[:1], *nothing, NAMES)
    assert torch.equal(gray, image[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([4])}, r"labels: expected 1\.\.3 .* found 4"),
        ({"labels": torch.tensor([0])}, "found 0"),
        ({"scores": torch.tensor([0.1, 0.2])}, "scores: expected 1, one per label, found 2"),
        ({"image": torch.zeros(3, 9, 9)}, r"image: expected uint8 .*float32"),
    ],
)
def test_unusable_input_is_refused(image, change, message):
    arguments = {"image": image, "boxes": box(1, 1, 5, 5), "labels": torch.tensor([1]), "class_names": NAMES}
    with pytest.raises(LSHFMError, match=message):
        draw_detections(**(arguments | change))
