import pytest
import torch
from drawn_pictures import NAMES, box, has_color
from PIL import Image

from lshfm_pl.drawing.grid import detection_grid, detection_picture
from lshfm_pl.errors import LSHFMError


@pytest.fixture
def image():
    return torch.full((3, 120, 160), 90, dtype=torch.uint8)


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
