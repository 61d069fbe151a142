import numpy as np
import pytest
from coco_files import CATEGORIES, TWO_IMAGES, coco_content, write_coco, write_json

from lshfm_pl.data.coco.annotations import read_coco_json
from lshfm_pl.data.coco.images import find_images
from lshfm_pl.errors import LSHFMError


def error_text(tmp_path, content):
    path = write_json(tmp_path, content)
    with pytest.raises(LSHFMError) as caught:
        read_coco_json(path)
    text = str(caught.value)
    assert str(path) in text
    assert len(text.splitlines()) <= 2
    return text


def test_columns_have_the_content_of_the_file(tmp_path, content):
    file = read_coco_json(write_json(tmp_path, content))
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
    assert list(read_coco_json(write_json(tmp_path, content)).categories) == [3, 7, 18]


def test_what_the_file_may_leave_out(tmp_path, content):
    for entry in content["annotations"]:
        del entry["area"], entry["segmentation"], entry["iscrowd"]
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    for image in content["images"]:
        del image["width"]
        image["height"] = None
    file = read_coco_json(write_json(tmp_path, content))
    assert file.area.tolist() == [0, 30, 300]
    assert not file.crowd.any()
    assert {(image.width, image.height) for image in file.images} == {(0, 0)}


def test_a_file_without_annotations_in_it_has_empty_columns(tmp_path):
    file = read_coco_json(write_json(tmp_path, coco_content(TWO_IMAGES, [])))
    assert file.boxes.shape == (0, 4)
    assert file.image_index.shape == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "can't be read: .* Expected a JSON file"),
        ('{"images": [', "can't be read"),
        ("[" * 100_000, "can't be read"),
        ("\ud800", "can't be read"),
        ("[1, 2]", "contains a list: expected an object"),
        ("{}", "has no list 'categories': .* found none of these"),
        ('{"images": [], "annotations": {}, "categories": [{"id": 1, "name": "a"}]}', "'images' is empty"),
        ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty: there are no classes"),
    ],
)  # fmt: skip
def test_files_that_are_not_coco_are_reported(tmp_path, text, message):
    path = tmp_path / "objects.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if text != "\ud800" else b"\xff\xfe\xfa")
    with pytest.raises(LSHFMError, match=message) as caught:
        read_coco_json(path)
    assert "objects.json" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_missing_file_is_reported_with_what_to_set(tmp_path):
    with pytest.raises(LSHFMError, match=r"own\.json: no such annotation file\.\n.*data\.root"):
        read_coco_json(tmp_path / "own.json")


def test_missing_coco_2017_is_reported_with_its_layout_and_source(tmp_path):
    for name in ("instances_train2017.json", "instances_val2017.json"):
        with pytest.raises(LSHFMError) as caught:
            read_coco_json(tmp_path / "annotations" / name)
        assert "http://images.cocodataset.org/zips/train2017.zip" in str(caught.value)
        assert "train2017/*.jpg" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 2
    file = read_coco_json(write_coco(tmp_path, "own", coco_content(TWO_IMAGES, [])))
    with pytest.raises(LSHFMError, match=r"val2017: no such folder of images\.\n.*images\.cocodataset\.org"):
        find_images(tmp_path / "val2017", file.images, file.path)


def test_images_are_found_in_subfolders_and_missing_ones_named(tmp_path, content):
    path = write_coco(tmp_path, "own", content)
    (tmp_path / "own" / "sub").mkdir()
    (tmp_path / "own" / "000000000002.jpg").rename(tmp_path / "own" / "sub" / "two.jpg")
    content["images"][1]["file_name"] = "sub/two.jpg"
    file = read_coco_json(write_json(tmp_path, content))
    found = find_images(tmp_path / "own", file.images, path)
    assert found == [tmp_path / "own" / "sub" / "two.jpg", tmp_path / "own" / "000000000008.jpg"]
    for missing in ("sub/three.jpg", "elsewhere/two.jpg"):
        content["images"][1]["file_name"] = missing
        file = read_coco_json(write_json(tmp_path, content))
        with pytest.raises(
            LSHFMError, match=rf"own/{missing}: no such image, but .*instances_own\.json lists it"
        ):
            find_images(tmp_path / "own", file.images, path)
