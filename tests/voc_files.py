"""Writes small folders in VOC layout for the tests, and reads them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lshfm_pl.data.voc.dataset import VOCDetection
from lshfm_pl.data.voc.layout import VOCSource
from lshfm_pl.errors import LSHFMError

BOX = (11, 21, 30, 40)
SIZE = (64, 48)


def object_xml(name="cat", box=BOX, difficult=0):
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def annotation_xml(objects=(), size=SIZE, filename=""):
    width, height = size
    return (
        f"<annotation><filename>{filename}</filename>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        f"{''.join(objects)}</annotation>"
    )


def write_image(path, size=SIZE, seed=0):
    width, height = size
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_split(folder, split, lines):
    path = Path(folder) / "ImageSets" / "Main" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_voc(folder, split, images, suffix=".png"):
    """`images`: {id: (size, [object_xml, ...])}. PNG by default, so that pixels can be compared exactly."""
    folder = Path(folder)
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (image_id, (size, objects)) in enumerate(images.items()):
        write_image(folder / "JPEGImages" / f"{image_id}{suffix}", size, number)
        text = annotation_xml(objects, size, f"{image_id}{suffix}")
        (folder / "Annotations" / f"{image_id}.xml").write_text(text)
    write_split(folder, split, images)
    return folder


def write_many(folder, split, number, first=0):
    """Images of several aspect ratios, each with one box that encodes its number: xmin = number % 20 + 1."""
    sizes = [(64, 48), (48, 64), (60, 60), (90, 40), (40, 90)]
    images = {
        f"{index:06d}": (
            sizes[index % 5],
            [object_xml(("cat", "dog")[index % 2], (index % 20 + 1, 3, 38, 33))],
        )
        for index in range(first, first + number)
    }
    return write_voc(folder, split, images)


def one_image(tmp_path, *objects, size=SIZE):
    return write_voc(tmp_path / "set", "train", {"a": (size, list(objects))})


def set_annotation(folder, text, image_id="a"):
    (folder / "Annotations" / f"{image_id}.xml").write_text(text)


def read(folder, split="train", **settings):
    return VOCDetection([VOCSource(folder, split)], ("cat", "dog"), **settings)


def error_text(folder, **settings):
    with pytest.raises(LSHFMError) as caught:
        read(folder, **settings)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    return text
