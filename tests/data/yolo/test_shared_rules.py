"""The rules of reading that all formats share, in YOLO's layout."""

import pytest
from PIL import Image
from yolo_files import make_yolo, write_yolo

from lshfm_pl.data import YOLODataModule
from lshfm_pl.data.faults import FaultLog
from lshfm_pl.errors import LSHFMError

CAT, DOG = "0 0.5 0.5 0.25 0.5\n", "1 0.5 0.5 0.5 0.5\n"


def described(names):
    return f"train: images/train\nval: images/val\nnames: {names}\n"


def read(root, split="train", on_error="error"):
    log = FaultLog(on_error)
    dataset = YOLODataModule(root=root, num_workers=0).read_set(split, log)
    return dataset, [fault.kind for fault in log.faults]


def test_pictures_in_sub_folders_have_their_labels_in_the_same_ones(tmp_path):
    root = write_yolo(tmp_path, {"train/day": {"a": CAT}, "train/night": {"a": DOG}, "val": {"v": CAT}})
    dataset, _ = read(root)
    assert [record.labels.tolist() for record in dataset.records] == [[1], [2]]


def test_a_class_without_objects_is_told(tmp_path):
    root = write_yolo(
        tmp_path, {"train": {"a": CAT, "b": DOG}, "val": {"v": CAT}}, described("[cat, dog, bird]")
    )
    assert "class-without-objects" in read(root)[1]


@pytest.mark.parametrize("other", ["Cat", "CAT", "c_at", "cat "])
def test_classes_that_are_equal_but_for_case_dash_or_space_are_told(tmp_path, other):
    sets = {"train": {"a": CAT, "b": DOG}, "val": {"v": CAT}}
    assert "class-lookalike" in read(write_yolo(tmp_path, sets, described(f"[cat, '{other}']")))[1]


def test_one_picture_that_is_listed_twice_is_told_once(tmp_path):
    root = write_yolo(tmp_path, {"train": {"a": CAT, "b": DOG}, "val": {"v": CAT}}, described("[cat, dog]"))
    (root / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n./images/train/a.png\n")
    (root / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    dataset, kinds = read(root, on_error="skip")
    assert len(dataset) == 2
    assert kinds.count("entry-repeated") == 1


def test_a_validation_set_without_objects_measures_nothing(tmp_path):
    root = write_yolo(tmp_path, {"train": {"a": CAT, "b": DOG}, "val": {"v": ""}})
    with pytest.raises(LSHFMError, match="no image has an object"):
        make_yolo(root)


def test_a_damaged_picture_is_named(tmp_path):
    root = write_yolo(tmp_path, {"train": {"a": CAT, "b": DOG}, "val": {"v": CAT}})
    path = root / "images" / "train" / "a.png"
    path.write_bytes(path.read_bytes()[:200])
    dataset, _ = read(root)
    with pytest.raises(LSHFMError, match="a.png"):
        dataset[0]


@pytest.mark.parametrize("suffix", [".JPG", ".Png", ".webp", ".bmp"])
def test_pictures_of_any_known_suffix_are_found(tmp_path, suffix):
    root = write_yolo(tmp_path, {"train": {"a": CAT, "b": DOG}, "val": {"v": CAT}})
    path = root / "images" / "train" / "a.png"
    Image.open(path).convert("RGB").save(path.with_suffix(suffix))
    path.unlink()
    assert sorted(record.image_path.suffix for record in read(root)[0].records) == sorted([suffix, ".png"])


def test_a_folder_with_a_test_set_alone_is_evaluated(tmp_path):
    root = write_yolo(tmp_path, {"test": {"a": CAT, "b": DOG}}, "test: images/test\nnames: [cat, dog]\n")
    module = YOLODataModule(root=root, num_workers=0)
    module.use_class_names(("cat", "dog"))
    module.setup("test")
    assert len(module.test_set) == 2
