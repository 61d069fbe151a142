"""Pictures and boxes of mosaic, mixup and copy-paste, against values computed by hand."""

import pytest
import torch
from torchvision import tv_tensors

from lshfm_pl.data.augment import CopyPaste, MixUp, Mosaic
from lshfm_pl.errors import LSHFMError


def picture(height, width, value, *boxes, label=1):
    """A picture of one colour with its target."""
    image = tv_tensors.Image(torch.full((3, height, width), value, dtype=torch.uint8))
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            format="XYXY",
            canvas_size=(height, width),
        ),
        "labels": torch.full((len(boxes),), label),
        "area": torch.ones(len(boxes)),
        "image_id": torch.tensor(value),
    }
    return image, target


def others(*samples):
    rest = iter(samples)
    return lambda: next(rest)


def test_mosaic_puts_four_pictures_with_a_corner_on_the_point():
    first = picture(100, 200, 10, (0, 0, 40, 20), label=1)
    # Fits into 200 x 100 by a factor of 2, and then by 0.5: as it is, 100 x 50 pixels. So are the other two.
    second = picture(50, 100, 20, (10, 20, 30, 40), label=2)
    third = picture(50, 50, 30, (10, 10, 20, 30), label=3)
    fourth = picture(200, 400, 40, label=4)
    mosaic = Mosaic(centre=(0.4, 0.4), scale=(0.5, 0.5), fill=99)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = mosaic.mix(first, others(second, third, fourth))
        assert image.shape == (3, 100, 200)
        torch.manual_seed(seed)
        torch.rand(2)  # of the point
        place = {index: place for place, index in enumerate(torch.randperm(4).tolist())}
        # The point is (80, 40). Sizes: 100 x 50, 100 x 50, 50 x 50, 100 x 50.
        lefts = [80 - (width if place[index] % 2 == 0 else 0) for index, width in enumerate((100, 100, 50))]
        tops = [40 - (50 if place[index] < 2 else 0) for index in range(3)]
        inside = [[0, 0, 20, 10], [10, 20, 30, 40], [10, 10, 20, 30]]
        expected = [
            [x1 + left, y1 + top, x2 + left, y2 + top]
            for (x1, y1, x2, y2), left, top in zip(inside, lefts, tops, strict=True)
        ]
        assert target["boxes"].tolist() == expected
        assert target["labels"].tolist() == [1, 2, 3]
        assert target["area"].tolist() == [0.25, 1, 1]
        assert target["image_id"] == 10
        quarters = (image[0, 39, 79], image[0, 39, 80], image[0, 40, 79], image[0, 40, 80])
        assert [int(pixel) for pixel in quarters] == [
            10 + 10 * index for index in sorted(place, key=place.get)
        ]
        seen.add(tuple(place[index] for index in range(4)))
    assert len(seen) > 3
    assert first[1]["boxes"].tolist() == [[0, 0, 40, 20]]


def test_mosaic_fills_what_no_picture_covers():
    parts = [picture(100, 100, 10 * (1 + index)) for index in range(4)]
    image, target = Mosaic(centre=(0.5, 0.5), scale=(0.25, 0.25), fill=7).mix(parts[0], others(*parts[1:]))
    assert (image[0] == 7).float().mean() == 0.75  # each is 25 x 25
    assert (image[:, :25] == 7).all()
    assert target["boxes"].shape == (0, 4)


def test_mixup_blends_where_the_other_picture_is_and_keeps_both_boxes():
    first = picture(60, 100, 200, (5, 5, 20, 20), label=1)
    second = picture(30, 30, 100, (3, 6, 12, 15), label=2)  # fits by a factor of 2: 60 x 60
    torch.manual_seed(0)
    image, target = MixUp(alpha=1e6).mix(first, others(second))  # a share of nearly 0.5
    left = int(target["boxes"][1, 0]) - 6
    assert 0 <= left <= 40
    assert target["boxes"].tolist() == [[5, 5, 20, 20], [left + 6, 12, left + 24, 30]]
    assert target["labels"].tolist() == [1, 2]
    assert target["area"].tolist() == [1, 4]
    assert (image[:, :, left : left + 60] == 150).all()
    assert (image[:, :, :left] == 200).all()
    assert (image[:, :, left + 60 :] == 200).all()
    assert (first[0] == 200).all()


def test_copy_paste_pastes_whole_boxes_beside_the_objects():
    first = picture(60, 100, 0, (0, 0, 50, 60), label=1)
    second = picture(30, 50, 9, (10, 5, 20, 20), (0, 0, 1, 1), label=2)  # fits by a factor of 2
    second[0][:, 5:20, 10:20] = 77
    places = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = CopyPaste(objects=5, scale=(1, 1), most_covered=0).mix(first, others(second))
        if target is first[1]:
            continue  # ten places covered the object
        x1, y1, x2, y2 = target["boxes"][1].tolist()
        assert (x2 - x1, y2 - y1) == (20, 30)
        assert x1 >= 50
        assert target["area"].tolist()[1] == 4
        assert (image[:, int(y1) : int(y2), int(x1) : int(x2)] == 77).all()
        assert target["labels"].tolist() == [1, 2]
        assert (image[:, :, :50] == 0).all()
        places.add((x1, y1))
    assert len(places) > 4


def test_copy_paste_leaves_out_what_has_no_place():
    first = picture(60, 100, 0, (0, 0, 100, 60))
    second = picture(60, 100, 9, (10, 5, 80, 50))
    for _ in range(5):
        assert CopyPaste(scale=(1, 1), most_covered=0.3).mix(first, others(second)) is first
    image, target = CopyPaste(scale=(1, 1), most_covered=0.6).mix(first, others(second))
    assert len(target["boxes"]) == 2  # it covers 0.525 of the first
    assert (image == 9).sum() == 3 * 70 * 45


@pytest.mark.parametrize("kind", [Mosaic, MixUp, CopyPaste])
def test_probability_is_that_of_the_argument(kind):
    sample = picture(40, 50, 1, (5, 5, 20, 20))
    applied = [
        kind(p=0.3)(sample, lambda: picture(40, 50, 2, (5, 5, 20, 20)))[0] is not sample[0] for _ in range(80)
    ]
    assert 0.1 < sum(applied) / len(applied) < 0.4


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        (Mosaic, {"p": 2}, "p: expected a number between 0 and 1, found 2"),
        (Mosaic, {"centre": 0.5}, r"centre: expected two numbers such as \[0, 1\], found 0.5"),
        (Mosaic, {"scale": [1, 0.5]}, "scale: expected a smaller and a larger number within 0.05 and 4"),
        (Mosaic, {"fill": 300}, "fill: expected a smaller and a larger number within 0 and 255"),
        (MixUp, {"alpha": 0}, "alpha: expected a number above 0, found 0"),
        (CopyPaste, {"objects": 0}, "objects: expected a whole number of at least 1, found 0"),
    ],
)
def test_wrong_arguments_are_refused(kind, arguments, told):
    with pytest.raises(LSHFMError, match=told):
        kind(**arguments)
