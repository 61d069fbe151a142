"""Finding the files in the export folders of annotation tools: `data=coco_json data.root=<export>` alone."""

import json

import pytest
from voc_files import write_image

from lshfm_pl.data import COCODataModule
from lshfm_pl.errors import LSHFMError

SIZE = (64, 48)


def write_export(root, name, images, file_names=None):
    """`name`: the JSON file; `images`: the paths of the pictures, which get different pixels."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / image, SIZE, number + sum(name.encode()))
    content = {
        "images": [
            {"id": number, "file_name": file_name, "width": SIZE[0], "height": SIZE[1]}
            for number, file_name in enumerate(file_names or [image.rpartition("/")[2] for image in images])
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [3, 4, 20, 10],
                "area": 200,
                "iscrowd": 0,
            }
            for number in range(len(images))
        ],
        "categories": [{"id": 1, "name": "cat", "supercategory": ""}],
    }
    path.write_text(json.dumps(content))
    return path


def sizes(root, **settings):
    module = COCODataModule(root=root, num_workers=0, **settings)
    module.setup()
    return {name: counts["images"] for name, counts in module.describe().items()}


def test_roboflow(tmp_path):
    for name, number in (("train", 3), ("valid", 2), ("test", 1)):
        images = [f"{name}/{index}_jpg.rf.png" for index in range(number)]
        write_export(tmp_path, f"{name}/_annotations.coco.json", images)
    assert sizes(tmp_path) == {"train": 3, "val": 2, "test": 1}
    with pytest.raises(
        LSHFMError, match=r"data\.split: expected data without a validation set, found .*valid"
    ):
        sizes(tmp_path, split="0.8/0.2")


def test_plain_names_of_coco(tmp_path):
    write_export(tmp_path, "annotations/instances_train2017.json", ["train2017/1.png", "train2017/2.png"])
    write_export(tmp_path, "annotations/instances_val2017.json", ["val2017/3.png"])
    (tmp_path / "annotations" / "captions_train2017.json").write_text(
        '{"images": [], "annotations": [], "categories": []}'
    )
    assert sizes(tmp_path) == {"train": 2, "val": 1, "test": 1}


def test_files_named_after_sets_with_one_folder_of_pictures(tmp_path):
    for name in ("train", "val"):
        write_export(tmp_path, f"{name}.json", [f"images/{name}.png"])
    assert sizes(tmp_path) == {"train": 1, "val": 1, "test": 1}


WHOLE = {
    "CVAT": ("annotations/instances_default.json", "images/default/{}.png", "{}.png"),
    "CVAT without sub-folder": ("annotations/instances_default.json", "images/{}.png", "{}.png"),
    "Label Studio": ("result.json", "images/{}.png", "images\\{}.png"),
    "VIA": ("via_project_coco.json", "{}.png", "{}.png"),
}


@pytest.mark.parametrize("tool", WHOLE)
def test_exports_without_sets_need_a_split(tmp_path, tool):
    name, image, file_name = WHOLE[tool]
    images = [image.format(index) for index in range(10)]
    write_export(tmp_path, name, images, [file_name.format(index) for index in range(10)])
    with pytest.raises(LSHFMError, match=r"data\.split=0\.8/0\.1/0\.1"):
        sizes(tmp_path)
    assert sizes(tmp_path, split="0.6/0.2/0.2") == {"train": 6, "val": 2, "test": 2}


def test_what_is_unclear_stops(tmp_path):
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(LSHFMError, match=r"looked for train/_annotations\.coco\.json"):
        sizes(tmp_path)
    for name in ("one", "two"):
        write_export(tmp_path, f"{name}.json", ["images/1.png"])
    with pytest.raises(LSHFMError, match=r"several annotation files of the data: one\.json, two\.json"):
        sizes(tmp_path)


def test_a_bad_training_entry_can_be_skipped_in_a_split(tmp_path):
    path = write_export(tmp_path, "result.json", [f"images/{index}.png" for index in range(10)])
    module = COCODataModule(root=tmp_path, split="0.8/0.2", num_workers=0)
    module.setup("fit")
    first = int(module.train_set.records[0].image_id)
    content = json.loads(path.read_text())
    content["annotations"][first]["bbox"] = [3, 4, -2, 1]
    path.write_text(json.dumps(content))
    with pytest.raises(LSHFMError, match="negative"):
        sizes(tmp_path, split="0.8/0.2")
    assert sizes(tmp_path, split="0.8/0.2", on_bad_sample="skip") == {"train": 7, "val": 2, "test": 2}


def test_an_own_test_set_stays_the_test_set(tmp_path):
    for name, number in (("train", 8), ("test", 3)):
        write_export(
            tmp_path, f"{name}/_annotations.coco.json", [f"{name}/{index}.png" for index in range(number)]
        )
    assert sizes(tmp_path, split="0.75/0.25") == {"train": 6, "val": 2, "test": 3}
    with pytest.raises(LSHFMError, match=r"the data have a test set, .*test.*Give two shares"):
        sizes(tmp_path, split="0.8/0.1/0.1")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", [".json", ".JSON"])
def test_files_of_any_encoding_and_case_are_found_and_hidden_ones_are_not(tmp_path, encoding, suffix):
    for name, number in (("train", 3), ("val", 2)):
        path = write_export(tmp_path, f"{name}/a.json", [f"{name}/{index}.png" for index in range(number)])
        (tmp_path / f"{name}/.ipynb_checkpoints").mkdir()
        (tmp_path / f"{name}/._a.json").write_bytes(path.read_bytes())
        content = path.read_text().encode(encoding)
        path.unlink()
        path.with_suffix(suffix).write_bytes(content)
    assert sizes(tmp_path) == {"train": 3, "val": 2, "test": 2}


@pytest.mark.parametrize("name", ["_annotations.coco.json", "instances.json"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_set_whose_file_is_cut_does_not_vanish(tmp_path, name, split):
    for each in ("train", "valid"):
        write_export(tmp_path, f"{each}/{name}", [f"{each}/{index}.png" for index in range(8)])
    path = tmp_path / split / name
    path.write_text(path.read_text()[:-90])
    with pytest.raises(LSHFMError, match=rf"{split}/{name}:1: can't be read"):
        sizes(tmp_path)


def test_training_pictures_without_annotation_file_are_not_left_out_without_a_word(tmp_path):
    for each in ("train", "valid"):
        write_export(tmp_path, f"{each}/a.json", [f"{each}/{index}.png" for index in range(3)])
    (tmp_path / "train/a.json").rename(tmp_path / "train/a.json.gz")
    with pytest.raises(
        LSHFMError, match=r"train: has pictures, but no annotation file.*files are a\.json\.gz"
    ):
        sizes(tmp_path)
