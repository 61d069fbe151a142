"""Finding out the format of a folder: `data=auto data.root=<folder>`."""

import shutil

import pytest
from coco_files import drawn_content, write_coco
from voc_files import write_image, write_many
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


OTHERS = {
    "via.json": ('{"_via_settings": {}, "_via_img_metadata": {}}', "via.json, a project of VIA: export"),
    "via_region_data.json": (
        '{"a.jpg12": {"filename": "a.jpg", "regions": []}}',
        "annotations of VIA: export",
    ),
    "a.json": ('{"version": "5", "shapes": [], "imagePath": "a.jpg"}', "a.json, an annotation of LabelMe"),
    "create.json": ('[{"image": "a.jpg", "annotations": []}]', "annotations of CreateML or Label Studio"),
    "coco.json": ('{"images": [], "annotations": []}', "a file like COCO's without categories"),
    "annotations.xml": ("<?xml version='1.0'?><annotations><image/></annotations>", "seems to be of CVAT"),
    "labels.csv": (
        "filename,class,xmin\na.jpg,cat,3\n",
        "labels.csv, which may have the annotations: export",
    ),
    "a.txt": (
        "0 0.5 0.5 0.2 0.2\n",
        r"label files of YOLO \(a\.txt\), but neither data\.yaml nor classes\.txt",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_annotations_of_another_format_are_named(tmp_path, name):
    text, expected = OTHERS[name]
    write_image(tmp_path / "a.jpg", (64, 48), 1)
    (tmp_path / name).write_text(text)
    with pytest.raises(LSHFMError, match=expected) as caught:
        AutoDataModule(root=tmp_path).setup()
    assert "by a teacher" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("write", [write_yolo, write_coco_set])
def test_the_folder_of_the_data_is_named(tmp_path, write):
    (tmp_path / "cells" / "cells-v2").mkdir(parents=True)
    write(tmp_path / "cells" / "cells-v2")
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(LSHFMError, match=r"has a data set in cells/.*: set data\.root="):
        AutoDataModule(root=tmp_path).setup()


def test_text_files_are_no_label_files(tmp_path):
    write_voc_set(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "notes.txt").write_text("drawn by hand\n")
    AutoDataModule(root=tmp_path, num_workers=0).setup()
