import struct

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from lshfm_pl import pictures
from lshfm_pl.data import images
from lshfm_pl.data.faults import FaultError
from lshfm_pl.data.images import decode_image, image_size, inspect_image


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


def test_of_16_bits_the_upper_8_are_used(tmp_path):
    grey = (np.arange(8 * 6) * 1300).astype(np.uint16).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    image = decode_image(tmp_path / "a.png")
    assert all(np.array_equal(channel.numpy(), grey // 256) for channel in image)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_exif_rotation_is_not_followed(tmp_path, name):
    pixels = np.random.RandomState(0).randint(0, 256, (24, 36, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path, options in ((tmp_path / name, {"exif": exif}), (tmp_path / f"plain_{name}", {})):
        Image.fromarray(pixels).save(path, **options)
    assert torch.equal(decode_image(tmp_path / name), decode_image(tmp_path / f"plain_{name}"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(9000)}])
@pytest.mark.parametrize("limit", [48 * 64, 48 * 64 - 1])
def test_the_pixels_of_a_jpeg_are_counted_before_decoding(tmp_path, monkeypatch, options, limit):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", comment=b"\xff\xc0 no frame", **options)
    monkeypatch.setattr(pictures, "MAX_PIXELS", limit)
    if limit == 48 * 64:
        assert decode_image(tmp_path / "a.jpg").shape == (3, 48, 64)
        return
    monkeypatch.setattr(images, "decode_jpeg", None)
    for read in (decode_image, image_size, inspect_image):
        with pytest.raises(FaultError, match=r"a\.jpg: has 64 x 48 pixels, above the limit of 3,071"):
            read(tmp_path / "a.jpg")


def test_what_is_between_the_segments_of_a_jpeg_is_passed_over(tmp_path):
    Image.new("RGB", (64, 48), (200, 10, 10)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    table = data.index(b"\xff\xdb")
    (tmp_path / "b.jpg").write_bytes(data[:table] + b"\0\0\xff" + data[table:])
    assert torch.equal(decode_image(tmp_path / "b.jpg"), decode_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize(("suffix", "kinds"), [(".jpg", []), (".png", ["image-suffix"])])
def test_a_jpeg_of_several_pictures_is_a_jpeg(tmp_path, suffix, kinds):
    path = tmp_path / f"a{suffix}"
    first, second = (Image.new("RGB", (36, 24), colour) for colour in ((200, 10, 10), (10, 10, 200)))
    first.save(path, format="MPO", save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert image.format == "MPO"
    faults = inspect_image(path)
    assert [fault.kind for fault in faults] == kinds
    assert all("contains JPEG, whose suffix is .jpg" in fault.text for fault in faults)
    assert image_size(path) == (36, 24)
    assert decode_image(path)[0].float().mean() > 190


def with_exif_block(path, block, **options):
    """A JPEG with a block that Pillow would not write."""
    Image.new("RGB", (36, 24)).save(path, **options)
    data = path.read_bytes()
    segment = b"Exif\0\0" + block
    start = data.index(b"\xff\xdb")  # after the JFIF header, which contains the resolution
    path.write_bytes(
        data[:start] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[start:]
    )


def with_png_text(path, key, text):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(key, text)
    Image.new("RGB", (36, 24)).save(path, pnginfo=chunks)


UNREADABLE_EXIF = {
    "no header": ("a.jpg", lambda path: with_exif_block(path, b"no TIFF at all", dpi=(72, 72))),
    "cut in its header": ("a.jpg", lambda path: with_exif_block(path, b"II*\0", dpi=(72, 72))),
    "no hexadecimal digits": (
        "a.png",
        lambda path: with_png_text(path, "Raw profile type exif", "\nexif\n 4\nno digits"),
    ),
    "text for bytes": ("a.png", lambda path: with_png_text(path, "exif", "a note")),
}


@pytest.mark.parametrize("case", UNREADABLE_EXIF)
def test_exif_that_cannot_be_read_is_no_fault_of_the_image(tmp_path, case):
    name, write = UNREADABLE_EXIF[case]
    write(tmp_path / name)
    assert decode_image(tmp_path / name).shape == (3, 24, 36)
    assert inspect_image(tmp_path / name) == []


@pytest.mark.parametrize(
    ("orientation", "is_told"), [(0, False), (1, False), (2, True), (8, True), (9, False)]
)
def test_only_orientations_that_turn_or_mirror_are_reported(tmp_path, orientation, is_told):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (36, 24)).save(tmp_path / "a.jpg", exif=exif)
    kinds = [fault.kind for fault in inspect_image(tmp_path / "a.jpg")]
    assert kinds == (["image-exif-rotated"] if is_told else [])
