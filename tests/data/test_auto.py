"""Finding out the format of a folder: `data=auto data.root=<folder>`."""

import shutil

import pytest
from coco_files import drawn_content, write_coco
from voc_files import write_many
from yolo_files import write_yolo

from lshfm_pl.data.auto import AutoDataModule
from lshfm_pl.data.check import find_faults
from lshfm_pl.errors import LSHFMError


def write_voc_set(root):
    write_many(root, "train", 4)
    write_many(root, "val", 2, first=4)


def write_voc_images(root):
    write_many(root, "train", 6)
    shutil.rmtree(root / "ImageSets")


def write_coco_set(root):
    write_coco(root, "train", drawn_content(0, 6))
    write_coco(root, "val", drawn_content(1, 3, first_id=50))


FORMATS = {
    "yolo": (write_yolo, {}, "YOLODataModule"),
    "coco": (write_coco_set, {}, "COCODataModule"),
    "voc": (write_voc_set, {}, "VOCDataModule"),
    "voc without lists": (write_voc_images, {"split": "0.5/0.5"}, "VOCDataModule"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_found(tmp_path, name, caplog):
    write, settings, kind = FORMATS[name]
    write(tmp_path)
    caplog.set_level("INFO")
    module = AutoDataModule(root=tmp_path, num_workers=0, **settings)
    module.setup()
    assert type(module.found).__name__ == kind
    assert "is read as data=" in caplog.text
    assert module.class_names == module.found.class_names
    assert len(module.train_set) >= 2
    again = AutoDataModule(root=tmp_path, num_workers=0, **settings)
    again.use_class_names(["yak", *module.class_names])
    again.setup("test")
    assert again.class_names[0] == "yak"
    assert all((record.labels > 1).all() for record in again.test_set.records)


def test_the_check_tells_that_there_is_no_validation_set(tmp_path):
    write_voc_images(tmp_path)
    assert find_faults(AutoDataModule(root=tmp_path, split="0.5/0.5")).num_errors == 0
    ((split, fault),) = find_faults(AutoDataModule(root=tmp_path)).faults[-1:]
    assert split == "val"
    assert "data.split=0.8/0.1/0.1" in fault.text


def test_unknown_and_ambiguous_folders_stop_in_one_message(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(LSHFMError, match=r"has notes\.txt: no known format\. Looked for data\.yaml"):
        AutoDataModule(root=tmp_path).setup()
    with pytest.raises(LSHFMError, match="no such folder"):
        AutoDataModule(root=tmp_path / "other").setup()
    write_yolo(tmp_path)
    write_coco_set(tmp_path)
    with pytest.raises(LSHFMError, match=r"data=yolo \(data\.yaml\) and data=coco_json"):
        AutoDataModule(root=tmp_path).setup()
