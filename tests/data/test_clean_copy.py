"""A clean copy has no faults, and the objects of the original in both forms."""

import json
import shlex
import shutil

import numpy as np
import pytest
from data_faults import write_sound_coco, write_sound_voc
from data_modules import make
from PIL import Image
from voc_files import SIZE, object_xml, set_annotation, write_voc
from voc_files import annotation_xml as xml
from yolo_files import write_yolo

from lshfm_pl.data import COCODataModule, VOCDataModule
from lshfm_pl.data.check import find_faults
from lshfm_pl.data.clean_copy import write_clean_copy
from lshfm_pl.errors import LSHFMError


def read_copy(folder, form):
    splits = {"train_split": "train", "val_split": "val"} if form == "voc" else {}
    kind = VOCDataModule if form == "voc" else COCODataModule
    return kind(root=folder, num_workers=0, **splits)


def objects(dataset):
    return {
        record.image_path.stem.lstrip("0"): (
            [dataset.class_names[label - 1] for label in record.labels],
            record.boxes.tolist(),
        )
        for record in dataset.records
    }


@pytest.mark.parametrize("form", ["coco", "voc"])
@pytest.mark.parametrize("write", [write_sound_coco, write_sound_voc])
def test_sound_data_are_copied_unchanged(tmp_path, write, form):
    write(tmp_path / "set")
    module = make(tmp_path / "set")
    lines = write_clean_copy(module, tmp_path / "copy", form)
    assert (
        lines[0].endswith("train 3 images with 7 objects; val 1 images with 1 objects")
        or "train 3" in lines[0]
    )
    assert len(lines) == 2
    copy, original = read_copy(tmp_path / "copy", form), make(tmp_path / "set")
    assert find_faults(copy).num_errors == 0
    for one in (copy, original):
        one.setup("fit")
    for name in ("train_set", "val_set"):
        assert objects(getattr(copy, name)) == objects(getattr(original, name))


def test_the_printed_arguments_can_be_typed(tmp_path):
    write_sound_voc(tmp_path / "set")
    *_, last = write_clean_copy(make(tmp_path / "set"), tmp_path / "a copy", "coco")
    assert shlex.split(last)[-2:] == ["data=coco_json", f"data.root={tmp_path}/a copy"]


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_a_faulty_set_becomes_a_clean_one(tmp_path, form):
    folder = tmp_path / "set"
    boxes = [(11, 21, 30, 40), (50, 21, 80, 40), (11, 21, 30, 40), (1.5, 2, 9.25, 20)]
    images = {name: (SIZE, [object_xml("cat", box, int(box[0] == 1.5)) for box in boxes]) for name in "abc"}
    write_voc(folder, "train", {**images, "my cat": (SIZE, [object_xml("dog")])})
    write_voc(folder, "val", {"v": (SIZE, [object_xml("dog")])})
    set_annotation(folder, xml([object_xml("cat", (40, 21, 30, 40))]), "b")  # corners swapped
    data = (folder / "JPEGImages" / "c.png").read_bytes()
    (folder / "JPEGImages" / "c.png").write_bytes(data[: len(data) // 2])
    with Image.open(folder / "JPEGImages" / "a.png") as image:
        image.save(folder / "JPEGImages" / "a.png", format="JPEG")
    before = sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())

    lines = write_clean_copy(make(folder), tmp_path / "copy", form)

    assert sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file()) == before
    assert [line.strip() for line in lines[1:-1]] == [
        "1 image files got the suffix of their format",
        "1 boxes were clipped to their image",
        "1 repeated boxes were left out",
        "1 images that can't be read were left out",
        "1 images of train with errors in their annotations were left out",
    ]
    copy = read_copy(tmp_path / "copy", form)
    assert find_faults(copy).num_errors == 0
    whole = copy.read_everything("train", copy._train_log)
    found = objects(whole)
    assert found.keys() == {"a", "my_cat"}
    names, corners = found["a"]
    assert names == ["cat"] * 3
    expected = [[10, 20, 30, 40], [49, 20, 64, 40], [0.5, 1, 9.25, 20]]
    np.testing.assert_array_equal(corners, expected)
    (record,) = (record for record in whole.records if record.image_path.stem == "a")
    ignored = record.difficult if form == "voc" else record.crowd
    assert ignored.tolist() == [False, False, True]


def test_crowds_and_images_without_objects_stay(tmp_path):
    write_sound_coco(tmp_path / "set")
    path = tmp_path / "set" / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 3]
    path.write_text(json.dumps(content))
    write_clean_copy(make(tmp_path / "set"), tmp_path / "copy", "coco")
    copied = json.loads((tmp_path / "copy" / "annotations" / "instances_train.json").read_text())
    assert len(copied["images"]) == 3
    assert [entry["iscrowd"] for entry in copied["annotations"]] == [1, 0, 0, 0]


def test_a_used_folder_is_refused_and_nothing_stays_of_a_failure(tmp_path, monkeypatch):
    write_sound_voc(tmp_path / "set")
    with pytest.raises(LSHFMError, match="fix: expected a new folder"):
        write_clean_copy(make(tmp_path / "set"), tmp_path / "set", "coco")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(LSHFMError, match="can't be written .No space"):
        write_clean_copy(make(tmp_path / "set"), tmp_path / "copy", "voc")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("names", "text"),
    [(("cat", "\x07"), r"'\\x07' has no character"), (("a b", "a  b"), "'a b' and 'a  b' differ only")],
)
def test_class_names_that_files_cannot_tell_apart_are_named(tmp_path, names, text):
    quoted = ", ".join(json.dumps(name) for name in names)
    write_yolo(tmp_path / "data", description=f"train: images/train\nval: images/val\nnames: [{quoted}]\n")
    with pytest.raises(LSHFMError, match=text):
        write_clean_copy(make(tmp_path / "data"), tmp_path / "copy", "coco")
    assert not (tmp_path / "copy").exists()
