"""Reading data sets in YOLO's layout: what is read, what leaves an image out, what stops."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from yolo_files import (
    BOX,
    DESCRIPTION,
    ONE,
    boxes_of,
    kinds,
    make_yolo,
    make_yolo_module,
    read_yolo,
    train_of,
    write_yolo,
)

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.errors import LSHFMError


def make_yolo_read(root, shares):
    log = FaultLog()
    make_yolo_module(root, split=shares).read_set("train", log)
    return log


def test_boxes_are_corners_in_pixels_and_labels_follow_the_names(tmp_path):
    module = make_yolo(write_yolo(tmp_path), None)
    assert module.class_names == ("cat", "dog")
    target = module.train_set.target(0)
    assert target["boxes"].tolist() == [BOX, [12.0, 9.0, 20.0, 15.0]]
    assert target["labels"].tolist() == [1, 2]
    assert module.test_set is module.val_set
    images, targets = next(iter(module.train_dataloader()))
    assert len(images) == len(targets) == 2


@pytest.mark.parametrize(
    "description",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n",
        "path: /not/here\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n",
        "train: ../images/train\nval: ../images/val\nnc: 2\nnames: ['cat', 'dog']\n",
        "train: [images/train]\nval: val.txt\nnames: [cat, dog]\n",
        "train: ./images/train/\nval: ABSOLUTE/images/val\nnames: [cat, dog]\n",
        "train: /content/my set/images/train\nval: [/content/my set/images/val]\nnames: [cat, dog]\n",
        "path: C:\\me\\set\ntrain: C:\\me\\set\\images\\train\nval: D:/set/images/val\nnames: [cat, dog]\n",
        "path: /content/set-1\ntrain: set-1/images/train\nval: set-1/images/val\nnames: {cat: 0, dog: 1}\n",
        "train: Images/Train\nval: IMAGES/val\nnames: [cat, dog]\n",
        "Train: Train.txt\nValidation: val.txt\nnames:\n  0: cat\n  1: dog\npath: .\n",
    ],
    ids=[
        "mapping",
        "path of another machine",
        "Roboflow",
        "lists",
        "absolute",
        "absolute of another machine",
        "of Windows",
        "relative, with a folder of another machine",
        "another case",
        "CVAT",
    ],
)
def test_descriptions_of_all_tools_are_read(tmp_path, description):
    write_yolo(tmp_path, description=description.replace("ABSOLUTE", str(tmp_path)))
    (tmp_path / "val.txt").write_text("./images/val/c.png\n")
    (tmp_path / "Train.txt").write_text("data/images/train/a.png\ndata/images/train/b.png\n")
    module = make_yolo(tmp_path)
    assert (len(module.train_set), len(module.val_set)) == (2, 1)
    assert module.class_names == ("cat", "dog")


def test_lists_may_name_files_by_the_paths_of_another_machine(tmp_path):
    write_yolo(tmp_path, description="train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_text("/home/x/set/images/train/a.png\n# comment\nimages\\train\\b.png\n")
    dataset, log = read_yolo(tmp_path)
    assert len(dataset) == 2
    assert {"file-name-read", "split-line-read"} <= set(kinds(log))
    (tmp_path / "train.txt").write_text("images/train/a.png\nimages/train/z.png\n")
    with pytest.raises(LSHFMError, match=r"z\.png: no such image"):
        read_yolo(tmp_path)
    dataset, log = read_yolo(tmp_path, on_error="skip")
    assert (len(dataset), kinds(log).count("image-missing")) == (1, 1)


def test_a_description_in_utf_16_is_read(tmp_path):
    write_yolo(tmp_path, description=None)
    (tmp_path / "data.yaml").write_bytes(DESCRIPTION.encode("utf-16"))
    assert len(read_yolo(tmp_path)[0]) == 2


@pytest.mark.parametrize("val", ["images/train", "images/gone"])
def test_a_validation_set_that_is_train_or_missing_may_be_divided(tmp_path, val):
    description = f"train: images/train\nval: {val}\ntest: images/gone\nnames: [cat, dog]\n"
    root = train_of(tmp_path, dict.fromkeys("abcde", ONE), description)
    module = make_yolo(root, None, split="0.6/0.2/0.2")
    assert (len(module.train_set), len(module.val_set)) == (3, 1)
    assert "set-missing" in kinds(make_yolo_read(root, "0.6/0.2/0.2"))
    if val == "images/gone":
        with pytest.raises(LSHFMError, match=r"'val: images/gone' names no folder.*or give data\.split"):
            make_yolo(root)


def test_images_without_objects_are_background_and_counted(tmp_path):
    dataset, log = read_yolo(train_of(tmp_path, {"a": ONE, "b": "", "c": "\n", "d": None}))
    assert boxes_of(dataset) == {"a.png": [BOX], "b.png": [], "c.png": [], "d.png": []}
    assert kinds(log).count("label-missing") == 1
    assert kinds(log).count("no-objects") == 3
    assert len(read_yolo(tmp_path, keep_empty_images=False)[0]) == 1


def test_a_set_without_any_label_file_stops(tmp_path):
    with pytest.raises(LSHFMError, match="labels/train/a.txt"):
        read_yolo(train_of(tmp_path, {"a": None, "b": None}), on_error="skip")


def test_label_files_beside_the_pictures_are_read(tmp_path):
    root = train_of(tmp_path, {"a": ONE, "b": ONE})
    for path in (root / "labels" / "train").iterdir():
        path.rename(root / "images" / "train" / path.name)
    assert boxes_of(read_yolo(root)[0]) == {"a.png": [BOX], "b.png": [BOX]}


@pytest.mark.parametrize(
    "line",
    [
        "0,0.5,0.5,0.25,0.5",
        "0.0 0.5 0.5 0.25 0.5",
        "cat 0.5 0.5 0.25 0.5",
        "0 0.375 0.25 0.625 0.25 0.625 0.75 0.375 0.75",
        "0 5e-1 .5 +0.25 0.50000",
        "0 0,5 0,5 0,25 0,5",
        "# class x y width height\n0 0.5 0.5 0.25 0.5",
    ],
    ids=["commas", "class as a fraction", "class by name", "polygon", "numbers", "decimal commas", "comment"],
)
def test_lines_with_one_meaning_are_read(tmp_path, line):
    assert boxes_of(read_yolo(train_of(tmp_path, {"a": line}))[0]) == {"a.png": [BOX]}


def test_one_line_tells_of_all_values_that_were_read_so(tmp_path):
    labels = dict.fromkeys("abc", "0.0 0.5 0.5 0.25 0.5\n" * 3)
    faults = [
        fault for fault in read_yolo(train_of(tmp_path, labels))[1].faults if fault.kind == "value-read"
    ]
    assert len(faults) == 1
    assert faults[0].text.startswith("9 values")


def test_key_points_follow_the_box_if_the_description_says_so(tmp_path):
    line = "0 0.5 0.5 0.25 0.5 0.1 0.2 2 0.3 0.4 2\n"
    root = train_of(tmp_path, {"a": line}, DESCRIPTION + "kpt_shape: [2, 3]\n")
    (root / "labels" / "val" / "v.txt").write_text(line)
    assert boxes_of(read_yolo(root)[0]) == {"a.png": [BOX]}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0 nan 0.5 0.25 0.5", "box-not-a-number"),
        ("0 0.5 inf 0.25 0.5", "box-not-a-number"),
        ("0 0.5 0.5 x 0.5", "box-not-a-number"),
        ("0 0.5 0.5 0.25", "annotation-incomplete"),
        ("0 0.5 0.5 0.25 0.5 0.9", "annotation-incomplete"),
        ("0", "annotation-incomplete"),
        ("2 0.5 0.5 0.25 0.5", "class-unknown"),
        ("-1 0.5 0.5 0.25 0.5", "class-unknown"),
        ("hen 0.5 0.5 0.25 0.5", "class-unknown"),
        ("0.5 0.5 0.5 0.25 0.5", "class-unknown"),
        ("0 0.5 0.5 -0.25 0.5", "box-reversed"),
        ("0 1.5 0.5 0.25 0.5", "box-not-relative"),
        ("0 30 20 16 24", "box-not-relative"),
    ],
)
def test_a_line_without_a_clear_meaning_leaves_the_image_out(tmp_path, line, kind):
    root = train_of(tmp_path, {"a": ONE + line + "\n", "b": ONE})
    with pytest.raises(LSHFMError, match=r"labels/train/a\.txt:2: ") as caught:
        read_yolo(root)
    assert len(str(caught.value).splitlines()) <= 2
    dataset, log = read_yolo(root, on_error="skip")
    assert list(boxes_of(dataset)) == ["b.png"]
    assert [fault.kind for fault in log.errors] == [kind]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("0 30 20 16 24\n1 10 10 5 5\n", "Are they pixels"),
        ("0 0.5 0.5 0.7 0.6\n1 0.2 0.2 0.9 0.9\n0 0.1 0.6 0.3 0.8\n", "x1, y1, x2, y2"),
        ("0 0.05 0.1 0.4 0.6\n1 0 0.2 0.3 0.3\n0 0.1 0.1 0.8 0.5\n", "upper left corner"),
    ],
    ids=["pixels", "corners", "upper left corner"],
)
def test_other_conventions_stop_whatever_is_skipped(tmp_path, lines, expected):
    with pytest.raises(LSHFMError, match=expected):
        read_yolo(train_of(tmp_path, {"a": lines}), on_error="skip")


def test_boxes_over_the_border_are_told_and_clipped_for_training_alone(tmp_path):
    root = train_of(tmp_path, {"a": "0 0.9 0.5 0.25 0.5\n" + 3 * ONE})
    (root / "labels" / "val" / "v.txt").write_text("0 0.9 0.5 0.25 0.5\n")
    dataset, log = read_yolo(root)
    assert "box-partly-outside" in kinds(log)
    assert boxes_of(dataset)["a.png"][0] == [49.599998474121094, 12.0, 64.0, 36.0]
    validation = boxes_of(read_yolo(root, "val")[0])["v.png"][0]
    np.testing.assert_allclose(validation, [49.6, 12, 65.6, 36], rtol=1e-6)


def test_a_label_file_without_picture_is_not_lost(tmp_path):
    root = train_of(tmp_path, {"a": ONE})
    (root / "labels" / "train" / "gone.txt").write_text(ONE)
    (root / "labels" / "train" / "empty.txt").write_text("")
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(LSHFMError, match=r"gone\.txt: has objects"):
        read_yolo(root)
    dataset, log = read_yolo(root, on_error="skip")
    assert len(dataset) == len(log.errors) == 1


def test_a_label_file_that_cannot_be_read_is_not_background(tmp_path):
    root = train_of(tmp_path, {"a": ONE, "b": ONE, "c": ONE, "d": ONE})
    labels = root / "labels" / "train"
    for name in "abc":
        (labels / f"{name}.txt").unlink()
    (labels / "a.txt").symlink_to("gone.txt")
    os.mkfifo(labels / "b.txt")
    (labels / "c.txt").write_bytes(b"\xff\xfe\xfd" + ONE.encode())
    dataset, log = read_yolo(root, on_error="skip")
    assert list(boxes_of(dataset)) == ["d.png"]
    assert [fault.path.name for fault in log.errors] == ["a.txt", "b.txt", "c.txt"]


def test_two_pictures_with_one_label_file_are_left_out(tmp_path):
    root = train_of(tmp_path, {"a": ONE, "b": ONE})
    (root / "images" / "train" / "a.bmp").write_bytes((root / "images" / "train" / "a.png").read_bytes())
    with pytest.raises(LSHFMError, match=r"several pictures: images/train/a\.bmp, images/train/a\.png"):
        read_yolo(root)
    assert list(boxes_of(read_yolo(root, on_error="skip")[0])) == ["b.png"]


def test_labels_belong_to_the_upright_picture(tmp_path):
    root = train_of(tmp_path, {"a": ONE})
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "images" / "train" / "a.png") as image:
        image.save(root / "images" / "train" / "a.png", exif=exif)
    dataset, _ = read_yolo(root)
    assert dataset[0][0].shape == (3, 64, 48)
    assert dataset.records[0].boxes.tolist() == [[18.0, 16.0, 30.0, 48.0]]


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("train: images/train\nval: images/val\n", "names is null: expected a list"),
        ("train: images/train\nval: images/val\nnames: [cat]\nnc: 2\n", "nc is 2, but names has 1"),
        ("train: images/train\nval: images/val\nnames: [cat, cat]\n", "'cat' more than once"),
        ("train: images/train\nval: images/val\nnames: [cat, no]\n", "class 1 is false.*Quote it"),
        ("train: images/other\nval: images/val\nnames: [cat, dog]\n", "images/other' names no folder"),
        ("train: /there/other\nval: images/val\nnames: [cat, dog]\n", "/there/other' names no folder"),
        ("train: images/train\ntest: images/val\nnames: [cat, dog]\n", "no val set. Give data.split=0.9/0.1"),
        ("train: 5\nval: images/val\nnames: [cat, dog]\n", "train is 5: expected a folder"),
        ("train: images/train\nval: images/val\nnames: {a: cat}\n", "key 'a': expected the number"),
        ("[" * 5000, "not valid YAML|levels"),
        ("a: &a [1]\nb: *a\n", "expected no aliases"),
        ("cat\n", "expected the keys"),
    ],
)
def test_unclear_descriptions_stop_in_one_message(tmp_path, description, expected):
    with pytest.raises(LSHFMError, match=expected) as caught:
        make_yolo(write_yolo(tmp_path, description=description))
    assert len(str(caught.value).splitlines()) <= 2


def test_classes_of_a_checkpoint_are_matched_by_name(tmp_path):
    module = make_yolo_module(write_yolo(tmp_path))
    module.use_class_names(["hen", "dog", "cat"])
    module.setup("test")
    assert module.test_set.records[0].labels.tolist() == [3]


def test_a_missing_test_set_is_told_and_replaced_by_the_validation_set(tmp_path):
    module = make_yolo_module(write_yolo(tmp_path, description=DESCRIPTION + "test: ../test/images\n"))
    log = FaultLog()
    module.read_set("test", log)
    assert "set-missing" in kinds(log)
    module.setup()
    assert module.test_is_validation


def test_a_list_of_names_alone_needs_a_split(tmp_path):
    labels = {f"{number:02d}": ONE for number in range(20)}
    root = write_yolo(tmp_path, {".": labels}, description=None)
    (root / "classes.txt").write_text("cat\ndog\n\n")
    with pytest.raises(LSHFMError, match=r"data\.split=0\.8/0\.1/0\.1"):
        make_yolo(root)
    module = make_yolo(root, None, split="0.8/0.1/0.1")
    assert [
        len(module.describe()[name]) and module.describe()[name]["images"]
        for name in ("train", "val", "test")
    ] == [
        16,
        2,
        2,
    ]
    assert not module.test_is_validation
    with pytest.raises(LSHFMError, match="found 'val: images/val' of"):
        make_yolo(write_yolo(tmp_path / "other"), split="0.8/0.2")


def test_a_bad_training_image_can_be_skipped_in_a_split(tmp_path):
    labels = {f"{number:02d}": ONE for number in range(20)}
    root = write_yolo(tmp_path, {".": labels}, description="names: [cat]\n")
    good = make_yolo(root, split="0.8/0.2", on_bad_sample="skip")
    name = good.train_set.records[0].image_path.stem
    (root / "labels" / f"{name}.txt").write_text("0 0.5\n")
    module = make_yolo(root, split="0.8/0.2", on_bad_sample="skip")
    assert (len(module.train_set), len(module.val_set)) == (15, 4)


def test_names_with_gaps_get_labels_in_order(tmp_path):
    description = "train: images/train\nval: images/val\nnames: {0: cat, 7: dog}\n"
    root = write_yolo(tmp_path, {"train": {"a": "7 0.5 0.5 0.25 0.5\n"}, "val": {"v": ONE}}, description)
    module = make_yolo(root)
    assert module.class_names == ("cat", "dog")
    assert module.train_set.records[0].labels.tolist() == [2]
    assert json.dumps(module.describe()["train"]["classes"]) == '{"cat": 0, "dog": 1}'


def test_an_own_test_set_stays_the_test_set(tmp_path):
    sets = {"train": {str(index): ONE for index in range(8)}, "test": {"x": ONE, "y": ONE, "z": ONE}}
    root = write_yolo(tmp_path, sets, "train: images/train\ntest: images/test\nnames: [cat]\n")
    counts = {
        name: count["images"] for name, count in make_yolo(root, None, split="0.75/0.25").describe().items()
    }
    assert counts == {"train": 6, "val": 2, "test": 3}
    with pytest.raises(LSHFMError, match="Give two shares"):
        make_yolo(root, split="0.8/0.1/0.1")


def test_a_key_of_the_description_that_occurs_twice_stops(tmp_path):
    with pytest.raises(LSHFMError, match="the key 'train' occurs more than once"):
        make_yolo(write_yolo(tmp_path, description="train: images/val\n" + DESCRIPTION))
