import json

import numpy as np
import pytest
from coco_files import CATEGORIES, annotation, coco_content, write_coco

from lshfm_pl.data.coco.annotations import read_coco_json
from lshfm_pl.data.coco.images import find_images
from lshfm_pl.errors import LSHFMError

IMAGES = {8: (64, 48), 2: (48, 64)}


@pytest.fixture
def content():
    return coco_content(
        IMAGES,
        [
            annotation(8, 18, (1.5, 2.25, 10, 20), area=77.5),
            annotation(2, 3, (0, 0, 5, 6), iscrowd=1),
            annotation(8, 7),
        ],
    )


def write(tmp_path, content):
    path = tmp_path / "objects.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def error_text(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(LSHFMError) as caught:
        read_coco_json(path)
    text = str(caught.value)
    assert str(path) in text
    assert len(text.splitlines()) <= 2
    return text


def test_columns_have_the_content_of_the_file(tmp_path, content):
    file = read_coco_json(write(tmp_path, content))
    assert file.categories == CATEGORIES
    assert [(image.id, image.width, image.height) for image in file.images] == [(2, 48, 64), (8, 64, 48)]
    assert file.image_index.tolist() == [1, 0, 1]
    assert file.category_ids.tolist() == [18, 3, 7]
    assert file.boxes.tolist() == [[1.5, 2.25, 10, 20], [0, 0, 5, 6], [10, 5, 20, 15]]
    assert file.area.tolist() == [77.5, 30, 300]
    assert file.crowd.tolist() == [False, True, False]
    assert (file.boxes.dtype, file.area.dtype, file.crowd.dtype) == (np.float64, np.float64, np.bool_)


def test_categories_are_ordered_by_id(tmp_path, content):
    content["categories"].reverse()
    assert list(read_coco_json(write(tmp_path, content)).categories) == [3, 7, 18]


def test_what_the_file_may_leave_out(tmp_path, content):
    for entry in content["annotations"]:
        del entry["area"], entry["segmentation"], entry["iscrowd"]
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    for image in content["images"]:
        del image["width"]
        image["height"] = None
    file = read_coco_json(write(tmp_path, content))
    assert file.area.tolist() == [0, 30, 300]
    assert not file.crowd.any()
    assert {(image.width, image.height) for image in file.images} == {(0, 0)}


def test_a_file_without_annotations_in_it_has_empty_columns(tmp_path):
    file = read_coco_json(write(tmp_path, coco_content(IMAGES, [])))
    assert file.boxes.shape == (0, 4)
    assert file.image_index.shape == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "can't be read: .* Expected a JSON file"),
        ('{"images": [', "can't be read"),
        ("[" * 100_000, "can't be read"),
        ("\ud800", "can't be read"),
        ("[1, 2]", "holds a list: expected an object"),
        ("{}", "has no list 'categories': .* found none of these"),
        ('{"images": [], "annotations": {}, "categories": [{"id": 1, "name": "a"}]}', "'images' is empty"),
        ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty: there are no classes"),
    ],
)  # fmt: skip
def test_what_is_no_coco_file_is_told(tmp_path, text, message):
    path = tmp_path / "objects.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if text != "\ud800" else b"\xff\xfe\xfa")
    with pytest.raises(LSHFMError, match=message) as caught:
        read_coco_json(path)
    assert "objects.json" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


DEFECTS = {
    "no annotations": ("annotations", None, "has no list 'annotations': .* found images, categories"),
    "annotation is a number": ("annotations", 5, "entry 2 of 'annotations': is 5, expected an object"),
    "annotations in an image": (
        "images",
        {"annotations": [{"bbox": [1, 2, 3, 4]}]},
        r"entry 2 \(id 2\) of 'images': has 'annotations' of its own, which would be lost",
    ),
    "a mask alone": (
        "annotations",
        {"bbox": ..., "segmentation": {"counts": [1, 2, 3], "size": [48, 64]}},
        "has a segmentation, but its bbox is missing",
    ),
    "no bbox": (
        "annotations",
        {"bbox": ..., "segmentation": ...},
        r"entry 2 \(id 2\) of 'annotations': has no 'bbox'",
    ),
    "a segmentation alone": ("annotations", {"bbox": ...}, "has a segmentation, but its bbox is missing"),
    "bbox null": ("annotations", {"bbox": None}, "has a segmentation, but its bbox is null"),
    "bbox empty": ("annotations", {"bbox": []}, r"has a segmentation, but its bbox is \[\]"),
    "three numbers": ("annotations", {"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\], expected four finite"),
    "NaN": ("annotations", {"bbox": [1, 2, float("nan"), 4]}, "expected four finite numbers"),
    "infinity": ("annotations", {"bbox": [1, 2, float("inf"), 4]}, "expected four finite numbers"),
    "integer beyond floats": ("annotations", {"bbox": [1, 2, 10**400, 4]}, "expected four finite numbers"),
    "text": ("annotations", {"bbox": [1, 2, "three", 4]}, "expected four finite numbers"),
    "negative width": ("annotations", {"bbox": [9, 9, -3, 4]}, "its width or height is negative"),
    "no list": ("annotations", {"bbox": "1 2 3 4"}, "expected four finite numbers"),
    "unknown image": ("annotations", {"image_id": 99}, r"\(id 2\).*image_id 99 is not the id"),
    "no image": ("annotations", {"image_id": ...}, "has no 'image_id'"),
    "unknown category": ("annotations", {"category_id": 99}, r"\(id 2\).*category_id 99 is not the id"),
    "category as text": ("annotations", {"category_id": "cat"}, "category_id is 'cat', expected a whole"),
    "no category": ("annotations", {"category_id": ...}, "has no 'category_id'"),
    "area": ("annotations", {"area": "big"}, "area is 'big'"),
    "iscrowd": ("annotations", {"iscrowd": 2}, "iscrowd is 2, expected 0 or 1"),
    "repeated image": ("images", {"id": 8}, "'images' has the id 8 more than once"),
    "no file_name": ("images", {"file_name": ...}, r"entry 2 \(id 2\) of 'images': has no 'file_name'"),
    "image id as a fraction": ("images", {"id": 2.5}, "id is 2.5, expected a whole number or text"),
    "image id null": ("images", {"id": None}, "id is null, expected a whole number or text"),
    "width": ("images", {"width": 1.5}, "width is 1.5, expected a whole number"),
    "repeated category": ("categories", {"id": 3}, "'categories' has the id 3 more than once: of 'cat' and of"),
    "repeated name": ("categories", {"name": "cat"}, "has the name 'cat' more than once"),
    "empty name": ("categories", {"name": ""}, "name is '', expected text"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_told_with_file_and_entry(tmp_path, content, name):
    key, change, message = DEFECTS[name]
    match change:
        case None:
            del content[key]
        case dict():
            changed = {**content[key][1], **change}
            content[key][1] = {field: value for field, value in changed.items() if value is not ...}
        case _:
            content[key][1] = change
    path = write(tmp_path, content)
    with pytest.raises(LSHFMError, match=message) as caught:
        read_coco_json(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_missing_file_is_told_with_what_to_set(tmp_path):
    with pytest.raises(LSHFMError, match=r"own\.json: no such annotation file\.\n.*data\.root"):
        read_coco_json(tmp_path / "own.json")


def test_missing_coco_2017_is_told_with_its_layout_and_source(tmp_path):
    for name in ("instances_train2017.json", "instances_val2017.json"):
        with pytest.raises(LSHFMError) as caught:
            read_coco_json(tmp_path / "annotations" / name)
        assert "http://images.cocodataset.org/zips/train2017.zip" in str(caught.value)
        assert "train2017/*.jpg" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 2
    file = read_coco_json(write_coco(tmp_path, "own", coco_content(IMAGES, [])))
    with pytest.raises(LSHFMError, match=r"val2017: no such folder of images\.\n.*images\.cocodataset\.org"):
        find_images(tmp_path / "val2017", file.images, file.path)


def test_images_are_found_in_subfolders_and_missing_ones_named(tmp_path, content):
    path = write_coco(tmp_path, "own", content)
    (tmp_path / "own" / "sub").mkdir()
    (tmp_path / "own" / "000000000002.jpg").rename(tmp_path / "own" / "sub" / "two.jpg")
    content["images"][1]["file_name"] = "sub/two.jpg"
    file = read_coco_json(write(tmp_path, content))
    found = find_images(tmp_path / "own", file.images, path)
    assert found == [tmp_path / "own" / "sub" / "two.jpg", tmp_path / "own" / "000000000008.jpg"]
    for missing in ("sub/three.jpg", "elsewhere/two.jpg"):
        content["images"][1]["file_name"] = missing
        file = read_coco_json(write(tmp_path, content))
        with pytest.raises(
            LSHFMError, match=rf"own/{missing}: no such image, but .*instances_own\.json lists it"
        ):
            find_images(tmp_path / "own", file.images, path)
