import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from voc_files import (
    BOX,
    SIZE,
    annotation_xml,
    error_text,
    object_xml,
    one_image,
    read,
    set_annotation,
    write_image,
    write_split,
    write_voc,
)

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.images import FORMATS
from lshfm_pl.data.voc.annotations import VOCSource, read_class_names, resolve_source
from lshfm_pl.data.voc.dataset import VOCDetection
from lshfm_pl.errors import LSHFMError


def test_float_coordinates_are_kept(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(1.5, 2.25, 30.75, 40)))
    assert read(folder)[0][1]["boxes"].tolist() == [[0.5, 1.25, 30.75, 40.0]]


def test_a_box_of_one_pixel_has_area(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(5, 6, 5, 6)))
    assert read(folder)[0][1]["boxes"].tolist() == [[4, 5, 5, 6]]


def test_boxes_of_parts_are_not_objects(tmp_path):
    part = object_xml("cat", BOX).replace(
        "</object>",
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        "</object>",
    )
    assert read(one_image(tmp_path, part))[0][1]["boxes"].tolist() == [[10, 20, 30, 40]]


@pytest.mark.parametrize(
    "size_element", ["", "<size><width>0</width><height>0</height></size>", "<size><width>x</width></size>"]
)
def test_size_comes_from_the_image_when_the_annotation_lacks_it(tmp_path, size_element):
    folder = one_image(tmp_path)
    set_annotation(folder, f"<annotation>{size_element}</annotation>")
    record = read(folder).records[0]
    assert (record.width, record.height) == SIZE
    assert read(folder).aspect_ratios == [64 / 48]


def test_size_may_be_written_with_a_decimal_point(tmp_path):
    folder = one_image(tmp_path)
    set_annotation(folder, annotation_xml(size=("64.0", "48.00")))
    log = FaultLog()
    (record,) = read(folder, log=log).records
    assert (record.width, record.height) == SIZE
    assert isinstance(record.width, int)
    assert log.faults == []


@pytest.mark.parametrize("width", ["64.5", "nan", "inf", "1e400", "-64.0"])
def test_a_size_that_is_no_number_of_pixels_is_not_stated(tmp_path, width):
    folder = one_image(tmp_path)
    set_annotation(folder, annotation_xml(size=(width, 48)))
    log = FaultLog()
    assert read(folder, log=log).records[0].width == SIZE[0]
    assert [fault.kind for fault in log.faults] == ["size-unstated"]


def test_second_column_blank_lines_and_byte_order_mark_of_a_split_are_skipped(tmp_path):
    folder = write_voc(tmp_path / "set", "train", {"000005": (SIZE, []), "000007": (SIZE, [])})
    path = write_split(folder, "cat_train", [])
    path.write_bytes("\ufeff000005 -1\r\n\r\n000007  1\r\n".encode())
    assert [record.image_id for record in read(folder, "cat_train").records] == ["set/000005", "set/000007"]


@pytest.mark.parametrize("image_id", ["IMG 001", "IMG 01 2", "1", "holiday (1)"])
@pytest.mark.parametrize("second_column", ["", " 1", "  0", "\t-1"])
def test_image_ids_may_have_spaces(tmp_path, image_id, second_column):
    folder = write_voc(tmp_path / "set", "train", {image_id: (SIZE, [object_xml()])})
    write_split(folder, "train", [f"{image_id}{second_column} "])
    (record,) = read(folder).records
    assert record.image_id == f"set/{image_id}"
    assert record.image_path.stem == image_id


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
    assert "'a' has several pictures" in error_text(folder)


def test_a_filename_that_names_another_picture_is_told(tmp_path):
    folder = one_image(tmp_path)
    write_image(folder / "JPEGImages" / "b.png", SIZE)
    set_annotation(folder, annotation_xml(filename="b.png"))
    log = FaultLog()
    assert read(folder, log=log).records[0].image_path.name == "a.png"
    (told,) = log.faults
    assert (told.kind, told.path.name) == ("image-chosen", "a.xml")
    assert "its <filename> b.png is another picture; a.png is taken" in told.text


def test_a_picture_that_filename_alone_names_is_told(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").rename(folder / "JPEGImages" / "a.jpg.png")
    set_annotation(folder, annotation_xml(filename="a.jpg"))
    log = FaultLog()
    assert read(folder, log=log).records[0].image_path.name == "a.jpg.png"
    assert [fault.kind for fault in log.faults] == ["image-chosen"]


def test_blanks_before_the_declaration_of_xml_keep_the_numbers_of_lines(tmp_path):
    folder = one_image(tmp_path)
    text = f'\n\n<?xml version="1.0"?>\n{annotation_xml([object_xml(box=(9, 9, 3, 12))])}'
    set_annotation(folder, text)
    assert "a.xml:4: the box of object 1" in error_text(folder)
    set_annotation(folder, text.replace("<xmax>3<", "<xmax>30<"))
    assert len(read(folder).records[0].boxes) == 1


@pytest.mark.parametrize("encoding", ["gbk", "big5", "shift_jis", "windows-1252"])
def test_encodings_that_are_declared_are_read_and_told(tmp_path, encoding):
    folder = one_image(tmp_path)
    name = "café" if encoding == "windows-1252" else "中"
    text = f'<?xml version="1.0" encoding="{encoding}"?>{annotation_xml([object_xml(name)])}'
    (folder / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    log = FaultLog()
    assert VOCDetection([VOCSource(folder, "train")], log=log).class_names == (name,)
    assert [fault.kind for fault in log.faults] == ["encoding"]


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (annotation_xml([object_xml("a&b")]).encode(), "Write & as &amp;."),
        (annotation_xml([object_xml("Größe")]).encode("latin-1"), "Its text is not UTF-8: store it as UTF-8"),
    ],
)
def test_xml_that_cannot_be_parsed_is_told_with_what_to_do(tmp_path, content, advice):
    folder = one_image(tmp_path)
    (folder / "Annotations" / "a.xml").write_bytes(content)
    assert advice in error_text(folder)


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("False", False), ("1.0", True)])
def test_difficult_in_words_is_read_and_told(tmp_path, text, expected):
    folder = one_image(tmp_path, object_xml(difficult=text))
    log = FaultLog()
    assert read(folder, log=log).records[0].difficult.tolist() == [expected]
    assert [(fault.kind, fault.line) for fault in log.faults] == [("value-read", 1)]


def test_a_number_with_an_underscore_is_none(tmp_path):
    assert "<xmin> of object 1 (cat) is '1_0'" in error_text(
        one_image(tmp_path, object_xml(box=("1_0", 2, 30, 40)))
    )


def test_classes_in_two_forms_of_unicode_are_one(tmp_path):
    names = [unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD")]
    folder = one_image(tmp_path, *[object_xml(name, (1, 2, 3 + n, 9)) for n, name in enumerate(names)])
    for classes in (None, names[:1], names[1:]):
        dataset = VOCDetection([VOCSource(folder, "train")], classes)
        assert dataset.records[0].labels.tolist() == [1, 1]


def test_a_picture_of_another_format_is_named(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").rename(folder / "JPEGImages" / "a.tif")
    assert "There is a.tif: convert it" in error_text(folder)


def test_an_id_with_a_folder_has_its_files_there(tmp_path):
    images = {"a": (SIZE, [object_xml("cat")]), "seq1/a": (SIZE, [object_xml("dog", (1, 2, 3, 4))])}
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / "set" / name / "seq1").mkdir(parents=True)
    folder = write_voc(tmp_path / "set", "train", images)
    records = read(folder).records
    assert [record.image_path.relative_to(folder).as_posix() for record in records] == [
        "JPEGImages/a.png",
        "JPEGImages/seq1/a.png",
    ]
    assert [record.image_id for record in records] == ["set/a", "set/seq1/a"]
    assert records[1].boxes.tolist() == [[0, 1, 3, 4]]
    for name in ("Annotations/a.xml", "JPEGImages/a.png"):
        (folder / name).unlink()
    write_split(folder, "train", ["seq1/a"])
    assert read(folder).records[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("old", "new", "element"),
    [
        ("</bndbox>", "</bndbox><bndbox/>", "bndbox"),
        ("<name>cat</name>", "<name>cat</name><name>dog</name>", "name"),
        ("<xmax>", "<xmax>1</xmax><xmax>", "xmax"),
        ("<difficult>", "<difficult>1</difficult><difficult>", "difficult"),
        ("<size>", "<size/><size>", "size"),
        ("<width>", "<width>9</width><width>", "width"),
        ("<filename>", "<filename>b</filename><filename>", "filename"),
    ],
)
def test_an_element_that_comes_again_is_an_error(tmp_path, old, new, element):
    folder = one_image(tmp_path)
    set_annotation(folder, annotation_xml([object_xml()]).replace(old, new))
    text = error_text(folder)
    assert f"<{element}>" in text
    assert "more than once" in text


def test_objects_at_another_place_are_not_lost(tmp_path):
    folder = one_image(tmp_path)
    set_annotation(folder, annotation_xml([f"<objects>{object_xml()}</objects>"]))
    assert "1 <object> not directly in <annotation>" in error_text(folder)


def test_image_is_found_by_the_filename_of_its_annotation(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").rename(folder / "JPEGImages" / "photo.png")
    set_annotation(folder, annotation_xml(filename="photo.png"))
    assert read(folder).records[0].image_path.name == "photo.png"


def test_class_names_are_read_sorted_from_all_annotations(tmp_path):
    folder = write_voc(
        tmp_path / "set",
        "train",
        {"a": (SIZE, [object_xml("zebra"), object_xml("ant")]), "b": (SIZE, [object_xml("cow", BOX, 1)])},
    )
    sources = [VOCSource(folder, "train")]
    assert read_class_names(sources) == ("ant", "cow", "zebra")
    assert VOCDetection(sources).class_names == ("ant", "cow", "zebra")
    assert VOCDetection(sources)[0][1]["labels"].tolist() == [3, 1]


def test_folder_of_a_split_is_found_below_root_or_vocdevkit(tmp_path):
    below = write_voc(tmp_path / "VOCdevkit" / "VOC2007", "trainval", {"a": (SIZE, [])})
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        source = resolve_source(root, "VOC2007/trainval")
        assert source.folder.samefile(below)
        assert source.split == "trainval"
    assert resolve_source(below, "trainval") == VOCSource(below, "trainval")


# Bad data: each message names the file and says what is wrong.


def test_missing_voc_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(LSHFMError, match=r"(?s)VOC2007.*not found.*data\.root.*data\.download=true"):
        resolve_source(tmp_path, "VOC2007/trainval")
    with pytest.raises(LSHFMError, match=r"(?s)nowhere: not found.*data\.root"):
        resolve_source(tmp_path / "nowhere", "train")


def test_missing_split_lists_those_that_exist(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "val", ["a"])
    with pytest.raises(LSHFMError, match=r"test\.txt: no such split file; its folder has: train, val"):
        read(folder, "test")


def test_missing_folder_of_images_is_named(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages").rename(folder / "images")
    assert "JPEGImages" in error_text(folder)


def test_empty_split_is_refused(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "train", ["", "  "])
    assert "train.txt: is empty" in error_text(folder)


def test_missing_image_is_found_before_the_first_epoch(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").unlink()
    text = error_text(folder)
    assert "train.txt:1: 'a' has no image" in text


def test_missing_annotation_is_named(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "train", ["a", "b"])
    text = error_text(folder)
    assert "train.txt:2: " in text
    assert str(folder / "Annotations" / "b.xml") in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><object></annotation>", "mismatched tag"),
        ("", "no element found"),
        ("<html></html>", "found <html>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "encoding"),
    ],
)
def test_broken_xml_is_named(tmp_path, content, reason):
    folder = one_image(tmp_path)
    set_annotation(folder, content)
    text = error_text(folder)
    assert str(folder / "Annotations" / "a.xml") in text
    assert reason in text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_type_and_entities_are_refused_unread(tmp_path, encoding):
    folder = one_image(tmp_path)
    bomb = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE annotation [<!ENTITY a "cat">]>'
        f"<annotation>{object_xml('&a;')}</annotation>"
    )
    (folder / "Annotations" / "a.xml").write_bytes(bomb.encode(encoding))
    text = error_text(folder)
    assert "<!DOCTYPE annotation" in text
    assert "a.xml" in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("<name>cat</name>", ""), "<name> of object 1 (no name) is missing"),
        (("<name>cat</name>", "<name> </name>"), "<name> of object 1 (no name) is missing"),
        (("bndbox", "box"), "<bndbox> of object 1 (cat) is missing"),
        (("<xmin>11</xmin>", ""), "<xmin> of object 1"),
        (("<xmin>11</xmin>", "<xmin>left</xmin>"), "<xmin> of object 1"),
        (("<xmax>30</xmax>", "<xmax>nan</xmax>"), "'nan': expected a number"),
        (("<xmax>30</xmax>", "<xmax>inf</xmax>"), "'inf': expected a number"),
        (("<xmax>30</xmax>", "<xmax>10</xmax>"), "the box of object 1 (cat) has no area"),
        (("<ymax>40</ymax>", "<ymax>5</ymax>"), "has its corners changed over"),
        (("<difficult>0</difficult>", "<difficult>maybe</difficult>"), "'maybe': expected 0 or 1"),
    ],
)
def test_bad_object_is_named(tmp_path, change, reason):
    folder = one_image(tmp_path)
    set_annotation(folder, annotation_xml([object_xml().replace(*change)]))
    text = error_text(folder)
    assert reason in text
    assert str(folder / "Annotations" / "a.xml") in text
