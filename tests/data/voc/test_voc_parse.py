import re

import pytest
from voc_files import (
    annotation_xml,
    error_text,
    object_xml,
    one_image,
    read,
    set_annotation,
)

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.voc.dataset import VOCDetection
from lshfm_pl.data.voc.layout import VOCSource


def test_blanks_before_the_declaration_of_xml_keep_the_numbers_of_lines(tmp_path):
    folder = one_image(tmp_path)
    text = f'\n\n<?xml version="1.0"?>\n{annotation_xml([object_xml(box=(9, 9, 3, 12))])}'
    set_annotation(folder, text)
    assert "a.xml:4: the box of object 1" in error_text(folder)
    set_annotation(folder, text.replace("<xmax>3<", "<xmax>30<"))
    assert len(read(folder).records[0].boxes) == 1


@pytest.mark.parametrize("encoding", ["gbk", "big5", "shift_jis", "windows-1252"])
def test_encodings_that_are_declared_are_read_and_reported(tmp_path, encoding):
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
def test_xml_that_cannot_be_parsed_is_reported_with_what_to_do(tmp_path, content, advice):
    folder = one_image(tmp_path)
    (folder / "Annotations" / "a.xml").write_bytes(content)
    assert advice in error_text(folder)


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
    "change",
    [
        lambda text: text.replace("<annotation>", '<annotation xmlns="http://example.org/voc">'),
        lambda text: text.replace("<annotation>", '<v:annotation xmlns:v="x">').replace("</ann", "</v:ann"),
        lambda text: text.replace("annotation>", "Annotation>").replace("object>", "OBJECT>"),
        lambda text: text.replace("xmin>", "XMin>").replace("bndbox>", "BndBox>"),
        lambda text: (
            re.sub(r"<(xm..|ym..)>(\d+)</\1>", r' \1="\2"', text)
            .replace("<bndbox>", "<bndbox")
            .replace("</bndbox>", "/>")
        ),
    ],
    ids=["namespace", "prefix", "upper case", "upper case of corners", "attributes"],
)
def test_elements_of_another_spelling_are_read_and_reported(tmp_path, change):
    folder = one_image(tmp_path)
    text = annotation_xml([object_xml(box=(3, 4, 30, 40))])
    set_annotation(folder, text)
    expected = read(folder).records[0].boxes.tolist()
    set_annotation(folder, change(text))
    log = FaultLog()
    dataset = VOCDetection([VOCSource(folder, "train")], log=log)
    assert dataset.records[0].boxes.tolist() == expected != []
    assert [fault.kind for fault in log.faults] == ["value-read"]


def test_boxes_outside_of_objects_are_not_lost(tmp_path):
    folder = one_image(tmp_path)
    item = object_xml().replace("object>", "item>")
    set_annotation(folder, annotation_xml([object_xml(), item]))
    assert "1 <bndbox> not in an <object> would be lost" in error_text(folder)


def test_a_part_of_an_object_is_not_an_object(tmp_path):
    folder = one_image(tmp_path)
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    set_annotation(folder, annotation_xml([object_xml().replace("</object>", f"{part}</object>")]))
    assert len(read(folder).records[0].boxes) == 1
