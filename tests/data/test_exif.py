"""What training reports about photos with an EXIF rotation."""

import pytest
from PIL import Image
from voc_files import SIZE, object_xml, read, write_voc

from lshfm_pl.data import exif
from lshfm_pl.data.exif import orientation_faults


@pytest.fixture
def folder(tmp_path):
    images = {name: (SIZE, [object_xml()]) for name in "abcd"}
    return write_voc(tmp_path / "set", "train", images, suffix=".jpg")


def turn(folder, name, orientation, size=SIZE):
    block = Image.Exif()
    block[0x0112] = orientation
    Image.new("RGB", size).save(folder / "JPEGImages" / f"{name}.jpg", exif=block)


def told(folder):
    return [fault.text for fault in orientation_faults(read(folder).records)]


def test_upright_photos_are_not_reported(folder):
    turn(folder, "a", 1)
    (folder / "JPEGImages" / "b.jpg").write_bytes(b"no picture")
    assert told(folder) == []


@pytest.mark.parametrize("orientation", range(5, 9))
def test_photos_that_are_annotated_as_they_are_shown_are_turned(folder, orientation):
    turn(folder, "b", orientation, SIZE[::-1])
    assert told(folder) == [
        "EXIF rotates or mirrors 1 images: 1 are rotated, as their annotated sizes require."
    ]
    assert read(folder)[1][0].shape[-2:] == SIZE[::-1]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photos_whose_size_does_not_require_a_rotation_are_read_as_stored(folder, orientation):
    turn(folder, "b", orientation)
    turn(folder, "c", 6, SIZE[::-1])
    (text,) = told(folder)
    assert text.startswith(
        "EXIF rotates or mirrors 2 images: 1 are rotated, as their annotated sizes require; 1 are read as stored"
    )
    assert text.endswith("the first is b.jpg.")


def test_of_large_sets_some_are_looked_at(folder, monkeypatch):
    monkeypatch.setattr(exif, "_MOST", 2)
    turn(folder, "c", 3)
    (text,) = told(folder)
    assert text.startswith("EXIF rotates or mirrors 1 images of 2 that were checked: 1 are read")
