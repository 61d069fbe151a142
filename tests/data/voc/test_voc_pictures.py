from pathlib import Path

import pytest
from PIL import Image
from voc_files import (
    SIZE,
    annotation_xml,
    error_text,
    one_image,
    read,
    set_annotation,
    write_image,
)

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.images import FORMATS


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.PNG", "a.Jpg", "a.jfif", "a.bmp", "a.WebP", "a.dib"])
def test_pictures_of_all_formats_that_are_read_are_found(tmp_path, name):
    folder = one_image(tmp_path)
    picture = Image.open(folder / "JPEGImages" / "a.png")
    (folder / "JPEGImages" / "a.png").unlink()
    suffix = Path(name).suffix.lower()
    image_format = next(kind for kind, suffixes in FORMATS.items() if suffix in suffixes)
    picture.save(folder / "JPEGImages" / name, format=image_format)
    dataset = read(folder)
    assert dataset.records[0].image_path.name == name
    assert dataset[0][0].shape == (3, 48, 64)


@pytest.mark.parametrize("other", ["a.jpg", "a.PNG", "a.jpeg"])
def test_of_several_pictures_the_annotation_names_the_right_one(tmp_path, other):
    folder = one_image(tmp_path)
    write_image(folder / "JPEGImages" / "b.png", SIZE)
    (folder / "JPEGImages" / "b.png").rename(folder / "JPEGImages" / other)
    for chosen in ("a.png", other):
        set_annotation(folder, annotation_xml(filename=chosen))
        log = FaultLog()
        assert read(folder, log=log).records[0].image_path.name == chosen
        assert [fault.kind for fault in log.faults] == ["image-chosen"]
    set_annotation(folder, annotation_xml(filename="picture"))
    assert "'a' has several images" in error_text(folder)


def test_a_filename_that_names_another_picture_is_reported(tmp_path):
    folder = one_image(tmp_path)
    write_image(folder / "JPEGImages" / "b.png", SIZE)
    set_annotation(folder, annotation_xml(filename="b.png"))
    log = FaultLog()
    assert read(folder, log=log).records[0].image_path.name == "a.png"
    (told,) = log.faults
    assert (told.kind, told.path.name) == ("image-chosen", "a.xml")
    assert "its <filename> b.png is another image; a.png is used" in told.text


def test_a_picture_that_filename_alone_names_is_reported(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").rename(folder / "JPEGImages" / "a.jpg.png")
    set_annotation(folder, annotation_xml(filename="a.jpg"))
    log = FaultLog()
    assert read(folder, log=log).records[0].image_path.name == "a.jpg.png"
    assert [fault.kind for fault in log.faults] == ["image-chosen"]


def test_a_picture_of_another_format_is_named(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").rename(folder / "JPEGImages" / "a.tif")
    assert "There is a.tif: convert it" in error_text(folder)


def test_image_is_found_by_the_filename_of_its_annotation(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").rename(folder / "JPEGImages" / "photo.png")
    set_annotation(folder, annotation_xml(filename="photo.png"))
    assert read(folder).records[0].image_path.name == "photo.png"


def test_missing_image_is_found_before_the_first_epoch(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").unlink()
    text = error_text(folder)
    assert "train.txt:1: 'a' has no image" in text
