import pytest
import torch
from PIL import Image

from lshfm_pl.drawing.boxes import class_color, detection_errors, detection_picture
from lshfm_pl.errors import LSHFMError
from lshfm_pl.reporting import detection_grid, draw_detections

NAMES = ["circle", "square", "ring"]


@pytest.fixture
def image():
    return torch.full((3, 120, 160), 90, dtype=torch.uint8)


def box(*corners: float) -> torch.Tensor:
    return torch.tensor([corners])


def has_color(picture: torch.Tensor, label: int) -> torch.Tensor:
    """[H, W] bool: the pixels in the colour of the class."""
    return (picture == torch.tensor(class_color(label), dtype=torch.uint8)[:, None, None]).all(dim=0)


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


def seen_by(matrix, colors: torch.Tensor) -> torch.Tensor:
    """sRGB [N, 3] as a dichromat sees it: the matrix is of linear RGB."""
    linear = (colors / 255) ** 2.2
    return 255 * (linear @ torch.tensor(matrix).T).clamp(0, 1) ** (1 / 2.2)


@pytest.mark.parametrize(
    "matrix",
    [  # Machado, Oliveira, Fernandes 2009, severity 1: protanopia, deuteranopia, tritanopia
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
)
def test_colors_of_the_first_classes_are_told_apart_with_any_colour_vision(matrix):
    colors = torch.tensor([class_color(label) for label in range(1, 8)]).float()
    assert torch.pdist(seen_by(matrix, colors)).min() > 25


def test_class_colors_are_distinct():
    colors = [class_color(label) for label in range(1, 92)]
    assert len(set(colors)) == len(colors)
    of_voc = torch.tensor(colors[:20]).float()
    assert torch.pdist(of_voc).min() > 30


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


def make_grid(path, num_images=4, **settings):
    """Four columns on smooth images with some noise, 128 pixels wide; the student's second box scores 0.3."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(40, 200, 128)
    images = []
    for _ in range(num_images):
        base = ramp[None, :, None] * torch.rand(3, 1, 1, generator=generator) + ramp[None, None, :] / 4
        images.append((base + 4 * torch.randn(3, 128, 128, generator=generator)).clamp(0, 255).byte())
    truth = {
        "boxes": torch.tensor([[10.0, 12, 60, 70], [70, 60, 120, 120]]),
        "labels": torch.tensor([1, 2]),
        "difficult": torch.tensor([False, True]),
    }
    found = {
        "boxes": truth["boxes"] + 2,
        "labels": torch.tensor([1, 3]),
        "scores": torch.tensor([0.9, 0.3]),
    }
    columns = {"ground truth": [truth] * num_images}
    columns |= {title: [found] * num_images for title in ("teacher", "student", "LSHL2 student")}
    return detection_grid(images, columns, NAMES, path=path, **settings)


def read(path) -> torch.Tensor:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        width, height = picture.size
        return (
            torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
            .reshape(height, width, 3)
            .permute(2, 0, 1)
        )


def test_grid_enlarges_small_images_and_stays_small_on_disk(tmp_path):
    path = make_grid(tmp_path / "new" / "grid.png")
    picture = read(path)
    assert picture.shape[1] > 4 * 256
    assert picture.shape[2] > 4 * 256
    assert path.stat().st_size < 600_000


def test_grid_hides_detections_below_the_threshold(tmp_path):
    assert not has_color(read(make_grid(tmp_path / "high.png", 1)), 3).any()
    shown = read(make_grid(tmp_path / "low.png", 1, score_threshold=0.2))
    assert has_color(shown, 3).any()


def test_legend_explains_the_colors_that_occur(tmp_path):
    picture = read(make_grid(tmp_path / "grid.png", 1, scale=2))
    below_images = picture[:, -28:]
    assert has_color(below_images, 1).sum() > 200
    assert has_color(below_images, 2).sum() > 200
    assert not has_color(below_images, 3).any()


def test_columns_have_a_title(tmp_path):
    picture = read(make_grid(tmp_path / "grid.png", 1, scale=2))
    is_text = (picture[:, :28] < 128).all(dim=0).any(dim=0)
    for column in range(4):
        assert is_text[column * 262 : (column + 1) * 262].sum() > 20


def test_images_of_different_sizes_fit(tmp_path):
    images = [torch.zeros(3, 375, 500, dtype=torch.uint8), torch.zeros(3, 500, 333, dtype=torch.uint8)]
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    picture = read(
        detection_grid(images, {"a": [nothing] * 2, "b": [nothing] * 2}, NAMES, path=tmp_path / "grid.png")
    )
    assert picture.shape[1] >= 875
    assert picture.shape[2] >= 1000


def test_a_single_column_is_laid_out_in_a_square(tmp_path):
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    picture = detection_picture([image] * 5, {"a": [nothing] * 5}, NAMES)
    is_black = (picture == 0).all(dim=0)
    assert is_black[150, [150, 456, 762]].all()
    assert is_black[460, [150, 456]].all()
    assert not is_black[460, 762]
    assert picture.shape[2] == 3 * 306 + 6


def test_captions_name_the_images():
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    columns = {"a": [nothing], "b": [nothing]}
    with_caption = detection_picture([image], columns, NAMES, captions=["VOC2007/000123"])
    assert with_caption.shape[1] == detection_picture([image], columns, NAMES).shape[1] + 18
    text = (with_caption[:, 28:46] < 128).all(dim=0)
    assert text[:, :200].any()
    assert not text[:, 310:].any()


def test_errors_follow_the_voc_rule():
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]),
        "labels": torch.tensor([1, 1, 2, 3]),
        "difficult": torch.tensor([False, False, True, False]),
    }
    found = {
        "boxes": torch.tensor(
            [
                [0.0, 0, 10, 9],
                [0, 0, 10, 10],
                [21, 0, 30, 10],
                [40, 0, 50, 10],
                [40, 0, 50, 9],
                [66, 0, 76, 10],
            ]
        ),
        "labels": torch.tensor([1, 1, 2, 2, 2, 3]),
        "scores": torch.tensor([0.6, 0.9, 0.8, 0.7, 0.6, 0.5]),
    }
    false, missed = detection_errors(found, target)
    # A second box of one object, one of another class, and one that overlaps too little; a difficult object
    # counts neither way.
    assert false.tolist() == [True, False, True, False, False, True]
    assert missed.tolist() == [False, True, False, True]
    crowd = detection_errors(found, {**target, "crowd": torch.tensor([True, True, False, True])})
    assert crowd[0].tolist() == [False, False, True, False, False, True]
    assert not crowd[1].any()
    nothing = {key: value[:0] for key, value in found.items()}
    assert detection_errors(nothing, target)[1].tolist() == [True, True, False, True]


def test_false_positives_are_crossed_out_and_misses_dashed_on_black(image):
    target = {"boxes": box(80, 50, 140, 110), "labels": torch.tensor([2])}
    found = {"boxes": box(10, 20, 70, 80), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    picture = detection_picture([image], {"student": [found]}, NAMES, scale=1, targets=[target])
    drawn = picture[:, 28:148, 6:166]
    assert has_color(drawn, 1)[50, 40]  # the centre of the false positive's diagonals
    bottom = drawn[:, 110, 80:141]
    is_black, is_dash = (bottom == 0).all(dim=0), has_color(drawn, 2)[110, 80:141]
    assert 0.2 < is_dash.float().mean() < 0.8
    assert (is_black | is_dash).all()
    right = detection_picture([image], {"student": [found]}, NAMES, scale=1, targets=[found])
    assert not has_color(right[:, 28:148, 6:166], 1)[50, 40]


def test_a_grid_that_does_not_fit_together_is_refused(tmp_path, image):
    with pytest.raises(LSHFMError, match=r"'teacher': expected one entry for each of the 1 images, found 0"):
        detection_grid([image], {"teacher": []}, NAMES, path=tmp_path / "grid.png")
    with pytest.raises(LSHFMError, match="at least one image"):
        detection_grid([], {"teacher": []}, NAMES, path=tmp_path / "grid.png")
