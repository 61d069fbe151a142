"""The table of data faults: how a sound data set is changed, and what the outcome is.

`tests/data/test_check.py` applies each of them to a small data set, checks it with `check_data`, and trains on it.
"""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from coco_files import annotation, coco_content, write_coco
from PIL import Image
from voc_files import annotation_xml, object_xml, write_split, write_voc
from yolo_files import DESCRIPTION, write_yolo

SIZE = (64, 48)
XML = "Annotations/a.xml"
JPG = "JPEGImages/a.jpg"
JSON = "annotations/instances_train.json"
COCO_JPG = "train/000000000001.jpg"

Outcome = Literal["stop", "fatal", "pass"]


@dataclass(frozen=True)
class Case:
    """`change` gets the folder.

    Outcomes in training: `stop` (with on_bad_sample=skip: continue without the image), `fatal` (always stop),
    `pass` (continue). `place` occurs in the text of the finding; `settings` are those of the data module.
    """

    change: Callable[[Path], None]
    kinds: str
    outcome: Outcome
    place: str
    settings: tuple[tuple[str, object], ...] = ()


def write_sound_voc(folder):
    images = {
        name: (SIZE, [object_xml(label, (11 + number, 21, 30, 40))])
        for number, (name, label) in enumerate([("a", "cat"), ("b", "dog")])
    }
    images["c"] = (SIZE, [object_xml("cat", (13, 21, 30, 40)), object_xml("dog", (3, 5, 20, 30))])
    write_voc(folder, "train", images, suffix=".jpg")
    validation = write_voc(folder / "other", "val", {"d": (SIZE, [object_xml("dog")])}, suffix=".jpg")
    noise = np.random.RandomState(9).randint(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(validation / "JPEGImages" / "d.jpg")
    for name in ("Annotations/d.xml", "JPEGImages/d.jpg", "ImageSets/Main/val.txt"):
        shutil.move(validation / name, folder / name)
    shutil.rmtree(validation)


def write_sound_coco(folder):
    training = coco_content(
        dict.fromkeys((1, 2, 3), SIZE),
        [
            annotation(1, 3),
            *(annotation(image_id, label, (label, 5, 20, 15)) for image_id in (2, 3) for label in (3, 7, 18)),
        ],
    )
    write_coco(folder, "train", training)
    write_coco(folder, "val", coco_content({4: SIZE}, [annotation(4, 7)]))


def write_sound_yolo(folder):
    labels = {name: f"{number} 0.5 0.5 0.{number + 2} 0.5\n" for number, name in enumerate("ab")}
    labels["c"] = "0 0.5 0.25 0.5 0.25\n1 0.25 0.5 0.25 0.5\n"
    write_yolo(folder, {"train": labels, "val": {"d": "1 0.5 0.5 0.25 0.25\n"}})


# Changes


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def replaced_by_pipe(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def linked_to(target, name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def cut(name, keep):
    def change(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(keep * len(data))])

    return change


def save(mode, name=JPG, size=SIZE, image_format="JPEG", **options):
    def change(folder):
        pixels = np.random.RandomState(77).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / name, format=image_format, **options)

    return change


def save_as(suffix, mode="RGB", image_format="PNG", then=lambda data: data, **options):
    """The image `a` with another suffix, whose bytes are changed by `then`."""

    def change(folder):
        (folder / JPG).unlink()
        path = folder / f"JPEGImages/a{suffix}"
        save(mode, path, image_format=image_format, **options)(folder)
        path.write_bytes(then(path.read_bytes()))

    return change


def png_of_16_bits(colour_type, stated_size=SIZE):
    channels = {0: 1, 2: 3}[colour_type]
    rows = b"".join(b"\0" + struct.pack(">H", 5000) * (SIZE[0] * channels) for _ in range(SIZE[1]))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *stated_size, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def other_png(content):
    def change(folder):
        (folder / JPG).unlink()
        (folder / "JPEGImages/a.png").write_bytes(content)

    return change


def huge_jpeg(folder):
    """A frame of 30,000 × 30,000 pixels in a few kilobytes."""
    data = (folder / JPG).read_bytes()
    frame = data.index(b"\xff\xc0")
    (folder / JPG).write_bytes(data[: frame + 5] + struct.pack(">HH", 30_000, 30_000) + data[frame + 9 :])


def annotated_as_large(folder, name, label):
    size, corners = (320, 240), (10.5, 20.25, 60.75, 80.5)
    pixels = np.random.RandomState(ord(name)).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"JPEGImages/{name}.jpg")
    write(f"Annotations/{name}.xml", annotation_xml([object_xml(label, corners)], size))(folder)


def damaged_jpeg(folder):
    """Replaces half of the compressed data with other bytes."""
    data = bytearray((folder / JPG).read_bytes())
    start = data.index(b"\xff\xda") + 40
    for position in range(start, len(data) - 100, 7):
        data[position] = 0x55 if data[position] != 0xFF and data[position - 1] != 0xFF else data[position]
    (folder / JPG).write_bytes(bytes(data))


def padded_jpeg(folder):
    """Inserts zeros between the compressed data and the end marker."""
    data = (folder / JPG).read_bytes()
    (folder / JPG).write_bytes(data[:-2] + bytes(90) + data[-2:])


def with_orientation(value, size=SIZE):
    exif = Image.Exif()
    exif[0x0112] = value
    return save("RGB", size=size, exif=exif)


def image_folder(folder):
    (folder / JPG).unlink()
    (folder / JPG).mkdir()


def xml(*objects, **fields):
    return write(XML, annotation_xml(objects, fields.pop("size", SIZE), **fields))


def object_with(old, new):
    text = object_xml("cat", (11, 21, 30, 40))
    assert old in text
    return xml(text.replace(old, new))


def box(*corners):
    return xml(object_xml("cat", corners))


def encoded(encoding, declared):
    text = f"<?xml version='1.0' encoding='{declared}'?>" + annotation_xml([object_xml("cat")], SIZE, "café")
    return write(XML, text.encode(encoding))


def doctype(declarations, content="cat"):
    return write(XML, f"<!DOCTYPE annotation [{declarations}]>" + annotation_xml([object_xml(content)], SIZE))


LAUGHS = "".join(
    f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' if level else '<!ENTITY l0 "ha">' for level in range(10)
)


def split(*lines, name="train"):
    return lambda folder: write_split(folder, name, lines)


def split_bytes(content):
    return write("ImageSets/Main/train.txt", content)


def copy_image(source, target):
    return lambda folder: shutil.copy(folder / source, folder / target)


def misspelt_once(folder):
    """40 cats, and one `cats`."""
    xml(*[object_xml("cat", (1 + number, 1, 2 + number, 9)) for number in range(40)], object_xml("cats"))(
        folder
    )


def moved(name):
    return lambda folder: (folder / name).rename(folder / "elsewhere")


def without_folder(name):
    return lambda folder: shutil.rmtree(folder / name)


def coco(change, name=JSON):
    """Change the content of an annotation file."""

    def apply(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def entry(key, file=JSON, /, **fields):
    """Set fields of the first entry of a list; `...` deletes one."""

    def change(content):
        for field, value in fields.items():
            if value is ...:
                del content[key][0][field]
            else:
                content[key][0][field] = value

    return coco(change, file)


def without(key):
    return coco(lambda content: content.pop(key))


def emptied(key):
    return coco(lambda content: content[key].clear())


def repeated(key, **fields):
    return coco(lambda content: content[key].append({**content[key][0], **fields}))


def all_crowd(content):
    for item in content["annotations"]:
        item["iscrowd"] = 1


def corners(content):
    for item in content["annotations"]:
        item |= {"bbox": [40, 20, 60, 45], "area": 500}


def relative(content):
    for item in content["annotations"]:
        item |= {"bbox": [0.1, 0.2, 0.3, 0.5], "area": 0.15}


def from_zero(content):
    """The first category gets the id 0."""
    first = content["categories"][0]["id"]
    content["categories"][0]["id"] = 0
    for item in content["annotations"]:
        item["category_id"] = 0 if item["category_id"] == first else item["category_id"]


def many_of_one(content):
    for number in range(300):
        item = {**content["annotations"][0], "id": 100 + number, "bbox": [number / 8, 1, 9, 9], "area": 81}
        content["annotations"].append(item)


def per_cent(folder):
    boxes = [(10, 20, 30, 40), (50, 50, 50, 50), (0, 0, 99, 5)]
    annotations = [annotation(1, label, box) for label, box in zip((3, 7, 18), boxes, strict=True)]
    annotations += [annotation(2, 3, boxes[0])]
    write_coco(folder, "train", coco_content(dict.fromkeys((1, 2), (300, 200)), annotations))


def renumbered(content):
    """Only the category dog, with another id."""
    content["categories"] = [{"id": 1, "name": "dog"}]
    for item in content["annotations"]:
        item["category_id"] = 1


KEEP = (("category_ids", "keep"),)
OWN_CLASSES = (("class_names", None),)

VOC_CASES = {
    "class name with a line break": Case(
        object_with("<name>cat", "<name>a&#10;b"),
        "class-control",
        "pass",
        r"'a\nb'",
        (("class_names", ["a\nb", "cat", "dog"]),),
    ),
    "image is a pipe": Case(replaced_by_pipe(JPG), "image-missing", "stop", "found a named pipe"),
    "annotation is a pipe": Case(replaced_by_pipe(XML), "annotation-broken", "stop", "found a named pipe"),
    "split is a pipe": Case(
        replaced_by_pipe("ImageSets/Main/train.txt"), "file-missing", "fatal", "train.txt"
    ),
    "image links to a device": Case(linked_to("/dev/zero", JPG), "image-missing", "stop", "found a device"),
    "annotation links to a device": Case(
        linked_to("/dev/zero", XML), "annotation-broken", "stop", "found a device"
    ),
    "annotation links to itself": Case(linked_to("a.xml", XML), "annotation-broken", "stop", "a.xml"),
    # Images
    "image missing": Case(remove(JPG), "image-missing", "stop", "train.txt:1"),
    "image a folder": Case(image_folder, "image-missing", "stop", "a.jpg"),
    "image empty": Case(write(JPG, b""), "image-empty", "stop", "a.jpg"),
    "jpeg cut in half": Case(cut(JPG, 0.5), "image-truncated", "stop", "a.jpg"),
    "jpeg without its last bytes": Case(cut(JPG, 0.999), "image-truncated", "stop", "a.jpg"),
    "jpeg cut in its header": Case(cut(JPG, 0.01), "image-truncated", "stop", "a.jpg"),
    "jpeg without pixels": Case(write(JPG, b"\xff\xd8\xff\xd9"), "image-broken", "stop", "a.jpg"),
    "png cut": Case(save_as(".png", then=lambda data: data[:-900]), "image-truncated", "stop", "a.png"),
    "png with wrong bytes": Case(
        save_as(".png", then=lambda data: data[:200] + bytes(50) + data[250:]),
        "image-broken",
        "stop",
        "a.png",
    ),
    "text named jpg": Case(write(JPG, "<html>404 not found</html>"), "image-format", "stop", "a.jpg"),
    "gif named jpg": Case(save("P", image_format="GIF"), "image-format", "stop", "a.jpg"),
    "tiff named jpg": Case(save("RGB", image_format="TIFF"), "image-format", "stop", "a.jpg"),
    "postscript named jpg": Case(
        write(JPG, "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n"),
        "image-format",
        "stop",
        "a.jpg",
    ),
    "png named jpg": Case(save("RGB", image_format="PNG"), "image-suffix", "pass", "a.jpg"),
    "huge jpeg": Case(huge_jpeg, "image-huge", "stop", "a.jpg"),
    "huge png": Case(
        other_png(png_of_16_bits(0, (40_000, 40_000))),
        "image-huge",
        "stop",
        "a.png",
    ),
    "a line of pixels": Case(
        save_as(".png", then=lambda data: png_of_16_bits(0, (6500, 100))), "image-narrow", "stop", "a.png"
    ),
    "cmyk": Case(save("CMYK"), "image-cmyk", "pass", "a.jpg"),
    "greyscale jpeg": Case(save("L"), "image-greyscale", "pass", "a.jpg"),
    "greyscale png": Case(save_as(".png", "L"), "image-greyscale", "pass", "a.png"),
    "black and white png": Case(save_as(".png", "1"), "image-greyscale", "pass", "a.png"),
    "16 bits of grey": Case(other_png(png_of_16_bits(0)), "image-16-bit image-greyscale", "pass", "a.png"),
    "16 bits a colour": Case(other_png(png_of_16_bits(2)), "image-16-bit", "pass", "a.png"),
    "rotated by EXIF": Case(with_orientation(6), "image-exif-rotated", "pass", "a.jpg"),
    "annotated as EXIF rotates": Case(with_orientation(6, (48, 64)), "image-exif-rotated", "pass", "a.jpg"),
    "annotated on its side without EXIF": Case(save("RGB", size=(48, 64)), "size-mismatch", "stop", "a.jpg"),
    "jpeg damaged inside": Case(damaged_jpeg, "image-damaged", "stop", "a.jpg"),
    "jpeg with padding": Case(padded_jpeg, "image-extra-bytes", "pass", "a.jpg"),
    "several pictures": Case(
        lambda folder: (copy_image(JPG, "JPEGImages/a.jpeg")(folder), xml(object_xml("cat"))(folder)),
        "image-ambiguous",
        "stop",
        "train.txt:1",
    ),
    "several pictures and a filename": Case(
        copy_image(JPG, "JPEGImages/a.jpeg"), "image-chosen", "pass", "a.xml"
    ),
    "other size than annotated": Case(save("RGB", size=(32, 24)), "size-mismatch", "stop", "a.jpg"),
    "same pixels twice": Case(copy_image("JPEGImages/b.jpg", JPG), "image-repeated", "pass", "b.jpg"),
    # XML
    "annotation missing": Case(remove(XML), "file-missing", "stop", "train.txt:1"),
    "annotation empty": Case(write(XML, ""), "annotation-broken", "stop", "a.xml:1"),
    "element not closed": Case(
        write(XML, "<annotation>\n<object>\n</annotation>"), "annotation-broken", "stop", "a.xml:3"
    ),
    "annotation cut": Case(cut(XML, 0.7), "annotation-broken", "stop", "a.xml:1"),
    "other root": Case(write(XML, "<html></html>"), "annotation-broken", "stop", "a.xml"),
    "annotation of bytes": Case(write(XML, bytes(range(256))), "annotation-broken", "stop", "a.xml"),
    "unknown encoding": Case(encoded("utf-8", "klingon"), "annotation-broken", "stop", "a.xml"),
    "latin-1 that says utf-8": Case(encoded("latin-1", "utf-8"), "annotation-broken", "stop", "a.xml"),
    "latin-1 that says so": Case(encoded("latin-1", "iso-8859-1"), "encoding", "pass", "a.xml"),
    "utf-16": Case(encoded("utf-16", "utf-16"), "encoding", "pass", "a.xml"),
    "document type": Case(doctype(""), "annotation-doctype", "stop", "a.xml"),
    "entity": Case(doctype('<!ENTITY a "cat">', "&a;"), "annotation-doctype", "stop", "a.xml"),
    "entity of a file": Case(
        doctype('<!ENTITY a SYSTEM "file:///etc/passwd">', "&a;"), "annotation-doctype", "stop", "a.xml"
    ),
    "billion laughs": Case(doctype(LAUGHS, "&l9;"), "annotation-doctype", "stop", "a.xml"),
    "xml of 9 MB": Case(
        write(XML, f"<annotation>{' ' * 9 * 2**20}</annotation>"), "annotation-huge", "stop", "a.xml"
    ),
    "no objects": Case(xml(), "no-objects", "pass", "a.xml"),
    "no size": Case(
        write(XML, f"<annotation>{object_xml('cat')}</annotation>"), "size-unstated", "pass", "a.xml"
    ),
    "size of zero": Case(xml(object_xml("cat"), size=(0, 0)), "size-unstated", "pass", "a.xml"),
    "size of fractions": Case(xml(object_xml("cat"), size=(64.5, 48)), "size-unstated", "pass", "a.xml"),
    "no size and no image": Case(
        lambda folder: (xml(size=(0, 0))(folder), write(JPG, b"")(folder)),
        "size-unstated image-empty",
        "stop",
        "a.jpg",
    ),
    # Objects
    "no class": Case(object_with("<name>cat</name>", ""), "annotation-incomplete", "stop", "a.xml:1"),
    "empty class": Case(object_with("cat", " "), "annotation-incomplete", "stop", "a.xml:1"),
    "no box": Case(object_with("bndbox", "box"), "annotation-incomplete", "stop", "a.xml:1"),
    "difficult maybe": Case(
        object_with("<difficult>0", "<difficult>maybe"), "annotation-incomplete", "stop", "a.xml:1"
    ),
    "corner missing": Case(object_with("<xmin>11</xmin>", ""), "box-not-a-number", "stop", "a.xml:1"),
    "corner in words": Case(box("left", 21, 30, 40), "box-not-a-number", "stop", "a.xml:1"),
    "corner nan": Case(box(11, "nan", 30, 40), "box-not-a-number", "stop", "a.xml:1"),
    "corner infinite": Case(box(11, 21, "-inf", 40), "box-not-a-number", "stop", "a.xml:1"),
    "corner beyond all images": Case(box(11, 21, 1e300, 40), "box-not-a-number", "stop", "a.xml:1"),
    "left and right changed over": Case(box(30, 21, 11, 40), "box-reversed", "stop", "a.xml:1"),
    "top and bottom changed over": Case(box(11, 40, 30, 21), "box-reversed", "stop", "a.xml:1"),
    "no width": Case(box(11, 21, 10, 40), "box-without-area", "stop", "a.xml:1"),
    "no height": Case(box(11, 21, 30, 20), "box-without-area", "stop", "a.xml:1"),
    "right of the image": Case(box(70, 21, 90, 40), "box-outside", "stop", "a.xml:1"),
    "above the image": Case(box(11, -30, 30, -5), "box-outside", "stop", "a.xml:1"),
    "over the border": Case(box(50, 21, 70, 40), "box-partly-outside", "pass", "a.xml:1"),
    "counted from 0": Case(box(0, 0, 30, 40), "counted-from-0", "pass", "a.xml:1"),
    "counted from 0, and said so": Case(box(0, 0, 30, 40), "", "pass", "", (("first_pixel", 0),)),
    "relative corners": Case(box(0.1, 0.2, 0.5, 0.6), "boxes-relative", "stop", "a.xml:1"),
    "relative corners everywhere": Case(
        lambda folder: [
            write(f"Annotations/{name}.xml", annotation_xml([object_xml("cat", (0.1, 0.2, 0.5, 0.6))], SIZE))(
                folder
            )
            for name in "abc"
        ],
        "boxes-relative",
        "fatal",
        "are they relative?",
    ),
    "box twice": Case(
        object_with("</bndbox>", "</bndbox><bndbox></bndbox>"), "element-repeated", "stop", "a.xml:1"
    ),
    "per cent": Case(
        lambda folder: [
            annotated_as_large(folder, name, label)
            for name, label in (("a", "cat"), ("b", "dog"), ("c", "cat"))
        ],
        "boxes-in-percent box-not-integer",
        "pass",
        "are they percentages?",
    ),
    "classes of two spellings": Case(
        xml(object_xml("Dog"), object_xml("cat", (2, 2, 9, 9))),
        "class-lookalike",
        "pass",
        "'Dog'",
        OWN_CLASSES,
    ),
    "fractions of pixels": Case(box(11.5, 21, 30.25, 40), "box-not-integer", "pass", "a.xml:1"),
    "object twice": Case(xml(object_xml("cat"), object_xml("cat")), "box-repeated", "pass", "a.xml:1"),
    "unknown class": Case(xml(object_xml("submarine")), "class-unknown", "stop", "The classes are: cat, dog"),
    "misspelt class": Case(xml(object_xml("catt")), "class-unknown", "stop", "Did you mean 'cat'?"),
    "class in capitals": Case(xml(object_xml("Cat")), "class-unknown", "stop", "Did you mean 'cat'?"),
    "class misspelt once": Case(
        misspelt_once, "class-lookalike", "pass", "'cats' has 1 objects", OWN_CLASSES
    ),
    # Splits
    "split empty": Case(split(), "split-empty", "fatal", "train.txt"),
    "split of blank lines": Case(split("", "  "), "split-empty", "fatal", "train.txt"),
    "split missing": Case(remove("ImageSets/Main/train.txt"), "file-missing", "fatal", "train.txt"),
    "split of bytes": Case(split_bytes(b"\xff\xfe\xfa"), "file-missing", "fatal", "train.txt"),
    "split of file names": Case(split("a.jpg", "b.xml", "c"), "split-line-read", "pass", "train.txt:1"),
    "pictures without annotation": Case(
        remove(XML),
        "image-unannotated test-in-train",
        "pass",
        "a.jpg",
        (("train_split", "0-100%"),),
    ),
    "id twice": Case(split("a", "b", "c", "a"), "entry-repeated", "pass", "train.txt:4"),
    "id without files": Case(split("a", "b", "c", "e"), "file-missing image-missing", "stop", "train.txt:4"),
    "id that goes up": Case(split("a", "b", "c", "../d"), "path-unsafe", "stop", "train.txt:4"),
    "id from the root": Case(split("a", "b", "c", "/etc/passwd"), "path-unsafe", "stop", "train.txt:4"),
    "id from home": Case(split("a", "b", "c", "~/secret"), "path-unsafe", "stop", "train.txt:4"),
    "id on a drive": Case(split("a", "b", "c", "C:\\d"), "path-unsafe", "stop", "train.txt:4"),
    "id that goes up in Windows": Case(
        split("a", "b", "c", "x\\..\\d"), "path-unsafe", "stop", "train.txt:4"
    ),
    "id with a NUL": Case(split_bytes(b"a\nb\nc\nd\0\n"), "path-unsafe", "stop", "train.txt:4"),
    "animated picture": Case(
        save_as(".webp", image_format="WEBP", save_all=True, append_images=[Image.new("RGB", SIZE)]),
        "image-animated",
        "pass",
        "a.webp: has 2 pictures",
    ),
    "transparent picture": Case(
        lambda folder: [
            (folder / JPG).unlink(),
            Image.new("RGBA", SIZE, (9, 8, 7, 100)).save(folder / "JPEGImages/a.png"),
        ],
        "image-transparent",
        "pass",
        "a.png: has transparent",
    ),
    "opaque picture with transparency": Case(save_as(".png", "RGBA"), "", "pass", ""),
    "no folder of images": Case(without_folder("JPEGImages"), "file-missing", "fatal", "JPEGImages"),
    "no folder of annotations": Case(without_folder("Annotations"), "file-missing", "fatal", "Annotations"),
    "test image in train": Case(split("d", "a", name="val"), "test-in-train", "pass", "a.jpg"),
    "test image in train by another name": Case(
        copy_image("JPEGImages/d.jpg", JPG), "test-in-train", "pass", "d.jpg"
    ),
    "nothing annotated": Case(
        lambda folder: [write(f"Annotations/{name}.xml", annotation_xml())(folder) for name in "abc"],
        "split-empty",
        "fatal",
        "train.txt",
        OWN_CLASSES,
    ),
}

COCO_CASES = {
    # Files
    "no file": Case(remove(JSON), "file-missing", "fatal", "instances_train.json"),
    "no folder": Case(moved("train"), "file-missing", "fatal", "train"),
    "empty file": Case(write(JSON, ""), "annotation-broken", "fatal", "instances_train.json:1"),
    "cut file": Case(cut(JSON, 0.5), "annotation-broken", "fatal", "instances_train.json:1"),
    "trailing comma": Case(
        write(JSON, '{\n"images": [],\n}'), "annotation-broken", "fatal", "instances_train.json:3"
    ),
    "file of bytes": Case(write(JSON, b"\xff\xfe\xfa"), "annotation-broken", "fatal", "instances_train.json"),
    "nested too deeply": Case(
        write(JSON, "[" * 100_000), "annotation-broken", "fatal", "instances_train.json"
    ),
    "a list": Case(write(JSON, "[]"), "annotation-broken", "fatal", "contains a list"),
    "no images": Case(without("images"), "annotation-broken", "fatal", "no list 'images'"),
    "no annotations": Case(without("annotations"), "annotation-broken", "fatal", "no list 'annotations'"),
    "no categories": Case(without("categories"), "annotation-broken", "fatal", "no list 'categories'"),
    "images empty": Case(emptied("images"), "split-empty", "fatal", "'images' is empty"),
    "categories empty": Case(emptied("categories"), "split-empty", "fatal", "'categories' is empty"),
    "annotations empty": Case(emptied("annotations"), "split-empty", "fatal", "no image has an object"),
    "all crowd": Case(coco(all_crowd), "crowd split-empty", "fatal", "no image has an object"),
    "packed": Case(write(JSON, b"\x1f\x8b\x08\0"), "annotation-broken", "fatal", "is packed with gzip"),
    "json lines": Case(write(JSON, '{"a": 1}\n{"a": 2}'), "annotation-broken", "fatal", "more than one JSON"),
    "list twice": Case(
        write(JSON, '{"images": [], "images": [1]}'), "annotation-broken", "fatal", "'images' more than once"
    ),
    # Categories
    "category without name": Case(
        entry("categories", name=...), "annotation-incomplete", "fatal", "entry 1 (id 3)"
    ),
    "category id twice": Case(
        repeated("categories", name="cow"), "id-repeated", "fatal", "the id 3 more than once"
    ),
    "category name twice": Case(entry("categories", name="dog"), "id-repeated", "fatal", "the name 'dog'"),
    "category name twice, one without objects": Case(
        repeated("categories", id=99), "value-read", "pass", "99 has no objects"
    ),
    "category id 0 kept": Case(
        coco(from_zero),
        "annotation-incomplete",
        "fatal",
        "category id 0",
        KEEP,
    ),
    "category id of billions kept": Case(
        entry("categories", id=2**40),
        "annotation-incomplete category-unknown",
        "fatal",
        f"category id {2**40}",
        KEEP,
    ),
    "other categories in the test": Case(
        entry("categories", "annotations/instances_val.json", name="cow"),
        "category-unknown",
        "fatal",
        "instances_val.json",
    ),
    # Images
    "image id twice": Case(
        repeated("images", width=32), "id-repeated", "stop", "the id 1 more than once: of '000000000001.jpg'"
    ),
    "image twice": Case(repeated("images"), "entry-repeated", "pass", "the id 1 of 'images'"),
    "no file_name": Case(entry("images", file_name=...), "annotation-incomplete", "stop", "entry 1 (id 1)"),
    "file_name goes up": Case(
        entry("images", file_name="../val/4.jpg"), "path-unsafe", "stop", "image 1: file_name '../val/4.jpg'"
    ),
    "file_name from the root": Case(
        entry("images", file_name="/etc/passwd"), "path-unsafe", "stop", "is an absolute path"
    ),
    "file_name on a drive": Case(entry("images", file_name="C:\\a.jpg"), "path-unsafe", "stop", "image 1"),
    "file_name with a NUL": Case(
        entry("images", file_name="a\0.jpg"), "path-unsafe", "stop", "entry 1 (id 1)"
    ),
    "file_name too long": Case(
        entry("images", file_name="a" * 6000), "path-unsafe", "stop", "has 6,000 bytes: longer than"
    ),
    "file_name of half a character": Case(
        entry("images", file_name="a\ud800.jpg"), "path-unsafe", "stop", "has a character that no file name"
    ),
    "file_name with its folder": Case(
        entry("images", file_name="train/000000000001.jpg"), "file-name-read", "pass", "of image 1 is train/0"
    ),
    "file missing": Case(remove(COCO_JPG), "image-missing", "stop", "000000000001.jpg"),
    "file truncated": Case(cut(COCO_JPG, 0.6), "image-truncated", "stop", "000000000001.jpg"),
    "file of text": Case(write(COCO_JPG, "no image"), "image-format", "stop", "000000000001.jpg"),
    "size of another image": Case(entry("images", width=32), "size-mismatch", "stop", "000000000001.jpg"),
    "width missing": Case(entry("images", width=...), "size-unstated", "pass", "instances_train.json"),
    "width in words": Case(entry("images", width="wide"), "annotation-incomplete", "stop", "width is 'wide'"),
    "width as text": Case(entry("images", width="64.0"), "value-read", "pass", "'64.0', read as 64"),
    "one file for two images": Case(
        entry("images", file_name="./000000000002.jpg"),
        "file-repeated",
        "stop",
        "has several ids, 1 and 2",
    ),
    "test file in train": Case(
        copy_image(COCO_JPG, "val/000000000004.jpg"), "test-in-train", "pass", "000000000004.jpg"
    ),
    # Annotations
    "bbox missing": Case(
        entry("annotations", bbox=..., segmentation=...), "annotation-incomplete", "stop", "entry 1 (id 1)"
    ),
    "bbox of three": Case(
        entry("annotations", bbox=[1, 2, 3]), "box-not-a-number", "stop", "entry 1 (id 1) of 'annotations'"
    ),
    "bbox nan": Case(entry("annotations", bbox=[1, 2, float("nan"), 4]), "box-not-a-number", "stop", "nan"),
    "bbox in words": Case(entry("annotations", bbox=[1, 2, "c", 4]), "box-not-a-number", "stop", "'c'"),
    "unknown image id": Case(
        entry("annotations", image_id=99), "image-unknown images-left-out", "stop", "image_id 99"
    ),
    "image id null": Case(
        entry("annotations", image_id=None), "annotation-incomplete", "fatal", "image_id is null"
    ),
    "image id as text": Case(entry("annotations", image_id="1"), "value-read", "pass", "'1', read as 1"),
    "annotation twice": Case(repeated("annotations"), "entry-repeated", "pass", "the id 1 of 'annotations'"),
    "annotation id twice": Case(
        repeated("annotations", bbox=[5, 5, 20, 15]), "annotation-id-repeated", "pass", "the id 1"
    ),
    "bbox over the border": Case(
        entry("annotations", bbox=[50, 5, 20, 15]),
        "box-partly-outside",
        "pass",
        "[50, 5, 20, 15] extends beyond",
    ),
    "bbox of corners": Case(coco(corners), "boxes-as-corners", "fatal", "looks like x1, y1, x2, y2"),
    "bbox of parts": Case(coco(relative), "boxes-relative", "fatal", "within 0 and 1: are they relative?"),
    "area of the image": Case(
        entry("annotations", area=64 * 48), "area-replaced", "pass", "3072 instead of 300"
    ),
    "image without annotations": Case(
        coco(lambda content: content["annotations"].pop(0)),
        "images-left-out",
        "pass",
        "1 without annotations",
    ),
    "category without objects": Case(
        coco(lambda content: content["categories"].append({"id": 30, "name": "yak"})),
        "class-without-objects category-matched",
        "pass",
        "have no training objects: yak",
    ),
    "category of one object in many": Case(
        coco(many_of_one), "class-rare", "pass", "very few training objects: dog (2), hen (2); cat has 303"
    ),
    "bbox in per cent": Case(per_cent, "boxes-in-percent", "pass", "4 boxes are within 0 and 100"),
    "categories equal but for case": Case(
        coco(lambda content: content["categories"][1].update(name="Cat")),
        "class-lookalike category-unknown",
        "fatal",
        "the classes 'cat' and 'Cat'",
    ),
    "nothing to find": Case(
        coco(all_crowd, "annotations/instances_val.json"),
        "crowd nothing-to-find",
        "fatal",
        "nothing to measure",
    ),
    "other category ids in the test": Case(
        coco(renumbered, "annotations/instances_val.json"),
        "category-matched",
        "pass",
        "matched by name",
    ),
    "unknown category id": Case(
        entry("annotations", category_id=99), "category-unknown", "stop", "category_id 99"
    ),
    "iscrowd 2": Case(entry("annotations", iscrowd=2), "annotation-incomplete", "stop", "iscrowd is 2"),
    "negative area": Case(entry("annotations", area=-1), "area-replaced", "pass", "-1 instead of 300"),
    "crowd": Case(
        coco(lambda content: content["annotations"].append(annotation(2, 3, id=9, area=9, iscrowd=1))),
        "crowd",
        "pass",
        "1 annotations are crowds",
    ),
    "bbox without width": Case(
        repeated("annotations", id=9, area=0, bbox=[5, 5, 0, 9]), "box-left-out", "pass", "5, 5, 0, 9 has no"
    ),
    "bbox outside": Case(
        repeated("annotations", id=9, area=81, bbox=[90, 5, 9, 9]), "box-left-out", "pass", "90, 5, 9, 9 has"
    ),
    "bbox of negative width": Case(
        repeated("annotations", id=9, bbox=[20, 5, -9, 9]), "box-reversed", "stop", "[20, 5, -9, 9]"
    ),
}

TXT = "labels/train/a.txt"

YOLO_CASES = {
    "numbers of pixels in one line": Case(
        write(TXT, "0 0.5 0.5 0.2 0.5\n0 30 20 16 24\n"), "box-not-relative", "stop", "a.txt:2: has 30"
    ),
    "pixels everywhere": Case(
        lambda folder: [
            (folder / "labels/train" / f"{name}.txt").write_text("1 30 20 16 24\n") for name in "abc"
        ],
        "box-not-relative",
        "fatal",
        "Are they pixels? And 2 more",
    ),
    "corners": Case(
        lambda folder: [
            (folder / "labels/train" / f"{name}.txt").write_text("1 0.3 0.3 0.8 0.9\n") for name in "abc"
        ],
        "boxes-as-corners",
        "fatal",
        "look like x1, y1, x2, y2",
    ),
    "nan": Case(write(TXT, "0 nan 0.5 0.2 0.5\n"), "box-not-a-number", "stop", "a.txt:1: has 'nan'"),
    "a score": Case(write(TXT, "0 0.5 0.5 0.2 0.5 0.9\n"), "annotation-incomplete", "stop", "score of a"),
    "class out of range": Case(write(TXT, "2 0.5 0.5 0.2 0.5\n"), "class-unknown", "stop", "class 2: exp"),
    "picture of a format that is not read": Case(
        write("images/train/e.tif", "II*"), "picture-not-read", "pass", "e.tif: is of a format"
    ),
    "no label file": Case(remove(TXT), "label-missing no-objects", "pass", "1 of 3 pictures"),
    "empty label file": Case(write(TXT, ""), "no-objects", "pass", "a.png: has no objects"),
    "no picture": Case(
        remove("images/train/a.png"), "image-missing", "stop", "a.txt: has objects, but there is no picture"
    ),
    "truncated picture": Case(cut("images/train/a.png", 0.5), "image-truncated", "stop", "a.png: is trunc"),
    "missing test set": Case(
        write("data.yaml", DESCRIPTION + "test: images/test\n"), "set-missing", "pass", "does not exist: val"
    ),
    "two names alike": Case(
        write("data.yaml", DESCRIPTION.replace("dog", "cat")), "id-repeated", "fatal", "'cat' more than once"
    ),
}
