"""Values in COCO's JSON that deviate from the format are read if their meaning is unambiguous."""

import json

import pytest
from coco_files import annotation, coco_content

from lshfm_pl.data.coco.annotations import read_coco_json
from lshfm_pl.data.coco.values import (
    EntryError,
    Notes,
    read_box,
    read_crowd,
    read_id,
    read_whole_number,
    short_repr,
)
from lshfm_pl.data.faults import FaultError, FaultLog
from lshfm_pl.errors import LSHFMError

IMAGES = {1: (64, 48), 2: (64, 48), 10: (64, 48)}


@pytest.fixture
def content():
    return coco_content(IMAGES, [annotation(1, 3), annotation(2, 7), annotation(10, 18)])


def read(tmp_path, content, on_error="error"):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    log = FaultLog(on_error)
    return read_coco_json(path, log), [(fault.kind, fault.text) for fault in log.faults]


def no_notes():
    return Notes()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), (-7, -7), (7.0, 7), ("7", 7), (" 7 ", 7), ("0", 0), ("-3", -3), ("clip_1", "clip_1"), ("007", "007"),
     ("7.5", "7.5"), ("Ä 1", "Ä 1"), (2**80, 2**80), ("9" * 60, "9" * 60)],
)  # fmt: skip
def test_ids_are_whole_numbers_or_text(value, expected):
    found = read_id({"id": value}, "id", no_notes())
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    "value",
    [None, True, 7.5, float("nan"), 1e300, 2.0**53, "", " ", [], {}, "a\0", "a\nb", "\ud800", "x" * 300],
)
def test_other_ids_are_refused(value):
    with pytest.raises(EntryError, match="^id "):
        read_id({"id": value}, "id", no_notes())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (128, 128),
        (128.0, 128),
        ("128", 128),
        ("128.0", 128),
        (" 1.28e2", 128),
        (None, None),
        ("", None),
        ("-1", -1),
    ],
)
def test_sizes_may_be_text_or_not_given(value, expected):
    assert read_whole_number({"width": value}, "width", no_notes()) == expected


@pytest.mark.parametrize("value", ["wide", 1.5, "1.5", True, "1_000", "0x10", "nan", 10**400, [5], 2.0**60])
def test_other_sizes_are_refused(value):
    with pytest.raises(EntryError, match="expected a whole number"):
        read_whole_number({"width": value}, "width", no_notes())


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, False), (1, True), (False, False), (1.0, True), ("0", False), ("1", True), ("true", True), (None, False),
     ("", False), ("0.0", False)],
)  # fmt: skip
def test_crowd_may_be_text_or_not_given(value, expected):
    assert read_crowd({"iscrowd": value}, no_notes()) is expected


@pytest.mark.parametrize("value", [2, "2", "maybe", [], -1, 0.5])
def test_other_crowds_are_refused(value):
    with pytest.raises(EntryError, match="expected 0 or 1"):
        read_crowd({"iscrowd": value}, no_notes())


def test_boxes_may_be_of_number_texts():
    assert read_box({"bbox": ["1", "2.5", 3, "4e0"]}, no_notes()) == (1, 2.5, 3, 4)
    for box in (
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        "1 2 3 4",
        [1, 2, 3, "1e999"],
        [1, 2, None, 4],
        [1, 2, True, 4],
        {},
        5,
    ):
        with pytest.raises(EntryError, match="expected four finite numbers"):
            read_box({"bbox": box}, no_notes())


@pytest.mark.parametrize(
    "box",
    [
        {"x": 1, "y": 2, "width": 3, "height": 4},
        "[1, 2, 3.0, 4]",
        {"width": 3, "height": "4", "y": 2, "x": 1},
    ],
)
def test_boxes_may_be_an_object_or_the_text_of_a_list(tmp_path, content, box):
    content["annotations"][0]["bbox"] = box
    content["annotations"][0]["area"] = 12
    file, faults = read(tmp_path, content)
    assert file.boxes[0].tolist() == [1, 2, 3, 4]
    ((kind, text),) = faults
    assert kind == "value-read"
    assert "entry 1 of 'annotations': bbox is " in text


@pytest.mark.parametrize("box", ["[1, 2, 3", "[" * 200, "[1, 2, 3]", {"x": 1, "y": 2}, "1, 2, 3, 4", 5, True])
def test_other_boxes_are_refused(box):
    with pytest.raises(EntryError, match="expected four finite numbers"):
        read_box({"bbox": box}, no_notes())


def test_values_are_shown_on_one_line():
    assert [short_repr(value) for value in (None, True, 5, "a\nb", 10**5000)] == [
        "null", "true", "5", r"'a\nb'", "a whole number of 16,610 bits",
    ]  # fmt: skip
    assert len(short_repr("x" * 6000)) < 50


def test_a_file_of_such_values_is_read_with_one_warning(tmp_path, content):
    plain, _ = read(tmp_path, content)
    for image in content["images"]:
        image |= {"id": str(image["id"]), "width": "64", "height": 48.0}
    for entry in content["annotations"]:
        entry |= {
            "image_id": float(entry["image_id"]),
            "category_id": str(entry["category_id"]),
            "iscrowd": None,
        }
        entry |= {"area": "300", "bbox": [str(value) for value in entry["bbox"]]}
    for category in content["categories"]:
        category["id"] = f" {category['id']} "
    file, told = read(tmp_path, content)
    assert [kind for kind, _ in told] == ["value-read"]
    assert told[0][1].startswith("27 values are in the wrong format")
    assert "the first: entry 1 of 'categories': id is ' 3 ', read as 3" in told[0][1]
    assert file.images == plain.images
    assert file.categories == plain.categories
    for name in ("image_index", "category_ids", "boxes", "area", "crowd"):
        assert (getattr(file, name) == getattr(plain, name)).all()


def test_ids_of_text_stay_text(tmp_path, content):
    names = {1: "clip_b", 2: "clip_a", 10: "7"}
    for image in content["images"]:
        image["id"] = names[image["id"]]
    for entry in content["annotations"]:
        entry["image_id"] = names[entry["image_id"]]
    file, told = read(tmp_path, content)
    assert [image.id for image in file.images] == [7, "clip_a", "clip_b"]
    assert file.image_index.tolist() == [2, 1, 0]
    assert [kind for kind, _ in told] == ["value-read"]


def test_a_number_finds_the_text_with_zeros_that_only_it_can_mean(tmp_path, content):
    for image in content["images"]:
        image["id"] = f"{image['id']:06d}"
    file, told = read(tmp_path, content)
    assert [image.id for image in file.images] == ["000001", "000002", "000010"]
    assert file.image_index.tolist() == [0, 1, 2]
    assert "image_id is 1, read as '000001'" in told[0][1]
    content["images"].append({**content["images"][0], "id": "01", "file_name": "other.jpg"})
    with pytest.raises(LSHFMError, match="image_id 1 is not the id of any entry of 'images'"):
        read(tmp_path, content)


@pytest.mark.parametrize("value", [..., None, 1.5, [1], {}, True, ""])
@pytest.mark.parametrize("on_error", ["error", "skip"])
def test_an_object_whose_image_is_unknown_stops_even_if_faults_are_skipped(
    tmp_path, content, value, on_error
):
    content["annotations"][1]["image_id"] = value
    if value is ...:
        del content["annotations"][1]["image_id"]
    with pytest.raises(
        FaultError, match=r"entry 2 \(id 2\) of 'annotations'.*image_id.* skipping would not help"
    ):
        read(tmp_path, content, on_error)


def test_a_faulty_object_leaves_its_whole_image_out(tmp_path, content):
    content["annotations"].append(annotation("2", 7, id=9, area=300, bbox=[1, 2, 3, "x"]))
    _, told = read(tmp_path, content, "skip")
    log = FaultLog("skip")
    read_coco_json(tmp_path / "own.json", log)
    assert log.bad_images() == {"2"}
    assert ["entry 4 (id 9)" in text for kind, text in told if kind == "box-not-a-number"] == [True]


def test_objects_of_an_image_that_is_left_out_are_no_faults_of_their_own(tmp_path, content):
    content["images"][1]["width"] = "wide"
    file, told = read(tmp_path, content, "skip")
    assert [kind for kind, _ in told] == ["annotation-incomplete"]
    assert [image.id for image in file.images] == [1, 10]
    assert len(file.boxes) == 2


@pytest.mark.parametrize("key", ["path", "filename", "coco_url"])
def test_other_keys_name_the_file_where_file_name_is_missing(tmp_path, content, key):
    for entry in content["images"]:
        entry[key] = f"http://images.example.org/{entry.pop('file_name')}"
    file, faults = read(tmp_path, content)
    assert all(image.file_name.startswith("http://images.example.org/0") for image in file.images)
    ((kind, text),) = faults
    assert kind == "value-read"
    assert f"entry 1 of 'images': {key} is " in text


def test_a_line_break_after_a_file_name_is_left_out(tmp_path, content):
    content["images"][0]["file_name"] += "\r\n"
    file, faults = read(tmp_path, content)
    assert not any("\n" in image.file_name for image in file.images)
    assert [kind for kind, _ in faults] == ["value-read"]


def test_names_of_categories_may_be_whole_numbers(tmp_path, content):
    content["categories"][0]["name"] = 5
    file, faults = read(tmp_path, content)
    assert "5" in file.categories.values()
    assert [kind for kind, _ in faults] == ["value-read"]


@pytest.mark.parametrize("value", [None, {}, []])
def test_a_value_that_is_no_list_is_reported(tmp_path, content, value):
    content["annotations"] = value
    if value == []:
        assert len(read(tmp_path, content)[0].boxes) == 0
        return
    kind = "null" if value is None else "an object"
    with pytest.raises(FaultError, match=f"has no list 'annotations': it is {kind}\\.$"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "entry", ["null", '{"image_id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2, 3, 4]}']
)
def test_an_object_of_whichever_image_stops(tmp_path, content, entry):
    text = json.dumps(content).replace('"annotations": [', f'"annotations": [{entry}, ')
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(FaultError, match="The image of these objects is unknown"):
        read_coco_json(path, FaultLog("skip"))


def test_a_list_without_one_good_entry_is_one_fault(tmp_path, content):
    for entry in content["annotations"]:
        entry |= {"bbox": [], "segmentation": []}
    with pytest.raises(FaultError, match=r"entry 1 .* bbox is \[\].* And 2 more\. No entry of the list"):
        read(tmp_path, content, "skip")


def test_entries_that_come_again_are_read_once(tmp_path, content):
    plain, _ = read(tmp_path, content)
    content["categories"] *= 3
    content["images"].append({**content["images"][0], "license": 4})
    content["annotations"].append(dict(content["annotations"][0]))
    file, told = read(tmp_path, content)
    assert [kind for kind, _ in told] == ["entry-repeated"]
    assert told[0][1].startswith("8 entries are exact copies of earlier ones")
    assert file.images == plain.images
    assert file.boxes.tolist() == plain.boxes.tolist()


@pytest.mark.parametrize(
    ("key", "change", "text"),
    [("categories", {"name": "cow"}, "'categories' has the id 3 more than once: of 'cat' and of 'cow'"),
     ("categories", {"id": 99}, "'categories' has the name 'cat' more than once: its ids are 3 and 99"),
     ("images", {"file_name": "b.jpg"}, "has the id 1 more than once: of '000000000001.jpg' and of 'b.jpg'"),
     ("images", {"id": "1", "width": 32}, "'images' has the id 1 more than once")],
)  # fmt: skip
def test_one_id_of_two_contents_is_refused(tmp_path, content, key, change, text):
    content[key].append({**content[key][0], **change})
    if change == {"id": 99}:  # without objects it would be left out
        content["annotations"].append({**content["annotations"][0], "id": 99, "category_id": 99})
    with pytest.raises(FaultError, match=text):
        read(tmp_path, content)


@pytest.mark.parametrize("value", [5, True, 1.5, "x", {"a": 1}, None])
def test_a_repeated_category_beside_no_list_of_annotations_is_refused(tmp_path, content, value):
    content["categories"].append({**content["categories"][0], "id": 99})
    content["annotations"] = value
    with pytest.raises(FaultError, match="has no list 'annotations'"):
        read(tmp_path, content)


def test_annotations_of_one_id_are_all_kept(tmp_path, content):
    for entry in content["annotations"]:
        entry["id"] = 0
    file, told = read(tmp_path, content)
    assert len(file.boxes) == 3
    assert [kind for kind, _ in told] == ["annotation-id-repeated"]
    assert told[0][1].startswith("2 annotations")


def test_keys_that_come_twice_are_refused_where_their_values_differ(tmp_path, content):
    path = tmp_path / "own.json"
    text = json.dumps(content)
    path.write_text(text.replace('"category_id": 3,', '"category_id": 3, "category_id": 3,', 1))
    assert len(read_coco_json(path).boxes) == 3
    path.write_text(text.replace('"category_id": 3,', '"category_id": 7, "category_id": 3,', 1))
    with pytest.raises(
        FaultError, match=r"entry 1 \(id 1\) of 'annotations': has 'category_id' more than once"
    ):
        read_coco_json(path)
    path.write_text(text[:-1] + ', "images": []}')
    with pytest.raises(FaultError, match="has the key 'images' more than once"):
        read_coco_json(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_unicode_of_any_kind_is_read(tmp_path, content, encoding):
    path = tmp_path / "own.json"
    content["categories"][0]["name"] = "Käfer"
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert read_coco_json(path).categories[3] == "Käfer"


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"\x1f\x8b\x08\x00", "is packed with gzip: unpack it"),
     (b"PK\x03\x04", "is packed with zip"),
     (b'{"a": 1}\n{"a": 2}\n', "more than one JSON document"),
     ('{"images": [], "name": "Käfer"}'.encode("latin-1"), "its text is not utf-8"),
     (b'{"images": ' + b"[" * 100_000, "nested too deeply"),
     (b'{"images": ' + b"9" * 5000 + b"}", "can't be read"),
     (b'[{"image_id": 1, "score": 0.5}]', "contains a list.*Files of detections look like this"),
     (b'{"images": [], "annotations": [], "info": {}}', "no list 'categories'.*Files with only captions")],
)  # fmt: skip
def test_files_of_another_kind_are_named(tmp_path, data, text):
    path = tmp_path / "own.json"
    path.write_bytes(data)
    with pytest.raises(FaultError, match=text) as caught:
        read_coco_json(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a\0", "\ud800", "x" * 6000, " ", 5.5, None])
def test_names_that_cannot_be_printed_are_no_names_of_categories(tmp_path, content, name):
    content["categories"][0]["name"] = name
    with pytest.raises(FaultError, match=r"entry 1 \(id 3\) of 'categories': name ") as caught:
        read(tmp_path, content)
    assert len(str(caught.value).encode()) < 400
    assert len(str(caught.value).splitlines()) == 1
