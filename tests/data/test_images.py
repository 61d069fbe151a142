import numpy as np
import pytest
import torch
from PIL import Image

from lshfm_pl.data.images import decode_image


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_decoded_as_pillow_does(tmp_path, mode):
    path = tmp_path / "a.jpg"
    pixels = np.random.RandomState(0).randint(0, 256, (24, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=90)
    found = decode_image(path)
    assert found.shape == (3, 24, 36)
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    assert (found.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1"])
def test_png_of_any_mode_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(tmp_path / "a.png")
    image = decode_image(tmp_path / "a.png")
    assert image.shape == (3, 6, 8)
    assert image.dtype == torch.uint8
    assert image.unique().tolist() == [255]
