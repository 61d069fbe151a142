import pytest
from coco_files import write_json

from lshfm_pl.data.coco.annotations import read_coco_json
from lshfm_pl.data.faults import FaultLog
from lshfm_pl.errors import LSHFMError

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
        "has a mask, but its bbox is missing",
    ),
    "no bbox": (
        "annotations",
        {"bbox": ..., "segmentation": ...},
        r"entry 2 \(id 2\) of 'annotations': has no 'bbox'",
    ),
    "a line alone": ("annotations", {"bbox": ..., "segmentation": [[1, 2, 3, 4]]}, "has a mask, but its bbox is"),
    "bbox empty, no polygon": ("annotations", {"bbox": [], "segmentation": []}, r"bbox is \[\], expected four"),
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
    "category as text": ("annotations", {"category_id": "cow"}, "category_id is 'cow', expected a whole"),
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
def test_a_defect_is_reported_with_file_and_entry(tmp_path, content, name):
    key, change, message = DEFECTS[name]
    match change:
        case None:
            del content[key]
        case dict():
            changed = {**content[key][1], **change}
            content[key][1] = {field: value for field, value in changed.items() if value is not ...}
        case _:
            content[key][1] = change
    path = write_json(tmp_path, content)
    with pytest.raises(LSHFMError, match=message) as caught:
        read_coco_json(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("box", [..., None, [], [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize(
    "polygons", [[[3, 4, 13, 4, 13, 9]], [[3, 4, 5, 4, 5, 9], [13, 5, 12, 5, 12, 6]], [3, 4, 13, 4, 13, 9]]
)
def test_a_polygon_without_box_is_read_as_its_box(tmp_path, content, box, polygons):
    entry = {**content["annotations"][1], "bbox": box, "segmentation": polygons, "area": 25}
    content["annotations"][1] = {key: value for key, value in entry.items() if value is not ...}
    log = FaultLog()
    file = read_coco_json(write_json(tmp_path, content), log)
    assert file.boxes[1].tolist() == [3, 4, 10, 5]
    assert [fault.kind for fault in log.faults] == ["value-read"]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_category_repeated_without_objects_is_left_out(tmp_path, content, is_first):
    root = {"id": 0 if is_first else 99, "name": "cat", "supercategory": "none"}
    content["categories"].insert(0 if is_first else 3, root)
    log = FaultLog()
    file = read_coco_json(write_json(tmp_path, content), log)
    assert file.categories == {3: "cat", 7: "dog", 18: "hen"}
    assert [fault.kind for fault in log.faults] == ["value-read"]


def test_the_root_that_is_named_like_its_class_is_left_out_of_a_set_without_objects(tmp_path, content):
    content["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
    ]
    content["annotations"] = []
    assert read_coco_json(write_json(tmp_path, content)).categories == {1: "cat"}


def test_a_category_may_be_named_as_a_class_of_a_label_file_may(tmp_path, content):
    content["annotations"][1]["category_id"] = "hen"
    log = FaultLog()
    assert read_coco_json(write_json(tmp_path, content), log).category_ids[1] == 18
    assert [fault.kind for fault in log.faults] == ["value-read"]
