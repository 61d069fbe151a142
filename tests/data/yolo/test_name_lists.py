"""YOLO data without `data.yaml`: darknet's files, lists of class names, sets by lists and folders."""

import pytest
from yolo_files import write_yolo

from lshfm_pl.data.auto import AutoDataModule
from lshfm_pl.errors import LSHFMError

CLASSES = "cat\ndog\n"
OBJ_DATA = (
    "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
)


def write(root, files, sets=None):
    write_yolo(root, sets, description=None)
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def sizes(root, **settings):
    module = AutoDataModule(root=root, num_workers=0, **settings)
    module.setup()
    assert module.class_names == ("cat", "dog")
    return {name: counts["images"] for name, counts in module.describe().items()}


LISTS = {
    "train.txt": "data/images/train/a.png\ndata/images/train/b.png\n",
    "valid.txt": "data/images/val/c.png\n",
}


@pytest.mark.parametrize(
    "files",
    [
        {"obj.data": OBJ_DATA, "obj.names": CLASSES, **LISTS},
        {"cells.data": OBJ_DATA.replace("obj", "cells"), "cells.names": CLASSES, **LISTS},
        {"obj.names": CLASSES, **LISTS},
        {"classes.txt": CLASSES},
        {"labels/classes.txt": CLASSES},
    ],
    ids=["darknet", "darknet of another name", "lists beside names", "folders of sets", "names in labels/"],
)
def test_sets_are_found_and_never_divided_anew(tmp_path, files):
    root = write(tmp_path, files)
    assert sizes(root) == {"train": 2, "val": 1, "test": 1}
    with pytest.raises(LSHFMError, match="expected data without a validation set"):
        sizes(root, split="0.8/0.2")


def test_settings_of_a_training_are_no_description(tmp_path):
    root = write(tmp_path, {"hyp.yaml": "lr0: 0.01\n", "classes.txt": CLASSES})
    assert sizes(root) == {"train": 2, "val": 1, "test": 1}
    (root / "cells.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    assert sizes(root) == {"train": 2, "val": 1, "test": 1}


def test_several_descriptions_stop(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    with pytest.raises(LSHFMError, match=r"a\.yaml, b\.yaml\. Choose one by data\.file"):
        sizes(write(tmp_path, {}))
