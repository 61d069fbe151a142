import unicodedata

import pytest
from voc_files import (
    BOX,
    SIZE,
    annotation_xml,
    error_text,
    object_xml,
    one_image,
    read,
    set_annotation,
    write_split,
    write_voc,
)

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.voc.dataset import VOCDetection
from lshfm_pl.data.voc.layout import VOCSource
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


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("False", False), ("1.0", True)])
def test_difficult_in_words_is_read_and_reported(tmp_path, text, expected):
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


# Bad data: each message names the file and says what is wrong.


def test_missing_split_lists_those_that_exist(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "val", ["a"])
    with pytest.raises(LSHFMError, match=r"test\.txt: no such split file; its folder has: train, val"):
        read(folder, "test")


def test_empty_split_is_refused(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "train", ["", "  "])
    assert "train.txt: is empty" in error_text(folder)


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
        (("<ymax>40</ymax>", "<ymax>5</ymax>"), "has its corners swapped"),
        (("<difficult>0</difficult>", "<difficult>maybe</difficult>"), "'maybe': expected 0 or 1"),
    ],
)
def test_bad_object_is_named(tmp_path, change, reason):
    folder = one_image(tmp_path)
    set_annotation(folder, annotation_xml([object_xml().replace(*change)]))
    text = error_text(folder)
    assert reason in text
    assert str(folder / "Annotations" / "a.xml") in text
