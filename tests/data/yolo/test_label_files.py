"""Label files and lists in YOLO's layout: spellings, key points, oriented boxes, lines of lists."""

import numpy as np
import pytest
from yolo_files import BOX, DESCRIPTION, ONE, boxes_of, kinds, read_yolo, train_of, write_yolo

from lshfm_pl.errors import LSHFMError


@pytest.mark.parametrize(
    "line",
    [
        '"images/train/a.png"',
        "images/train/a.png  # good",
        "images/train/a.png labels/train/a.txt",
        "a.png",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_lines_of_lists_with_one_meaning_are_read(tmp_path, line, encoding):
    write_yolo(tmp_path, description="train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_bytes(f"# list\r\n\r\n{line}\r\n".encode(encoding))
    dataset, log = read_yolo(tmp_path)
    assert list(boxes_of(dataset)) == ["a.png"]
    assert "split-line-read" in kinds(log)


@pytest.mark.parametrize("line", ["images/train", "labels/train/a.txt"])
def test_a_list_names_pictures_alone(tmp_path, line):
    write_yolo(tmp_path, description="train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_text(f"{line}\n")
    with pytest.raises(LSHFMError, match=rf"the line {line} names no picture"):
        read_yolo(tmp_path)


@pytest.mark.parametrize("name", ["a\u0308.TXT", "\u00c4.txt", "\u00e4.png.txt", "\u00e4.Txt"])
@pytest.mark.parametrize("is_list", [False, True])
def test_label_files_of_another_spelling_are_read(tmp_path, name, is_list):
    root = train_of(tmp_path, {"\u00e4": None, "b": ONE})
    (root / "labels" / "train" / name).write_text(ONE)
    if is_list:
        (root / "train.txt").write_text("images/train/\u00e4.png\nimages/train/b.png\n")
        (root / "data.yaml").write_text(DESCRIPTION.replace("images/train", "train.txt"))
    dataset, log = read_yolo(root)
    assert boxes_of(dataset) == {"\u00e4.png": [BOX], "b.png": [BOX]}
    assert kinds(log).count("file-name-read") == 1


def test_a_label_file_that_several_names_fit_is_not_chosen(tmp_path):
    root = train_of(tmp_path, {"a": None, "b": ONE})
    for name in ("A.txt", "a.png.txt"):
        (root / "labels" / "train" / name).write_text(ONE)
    with pytest.raises(LSHFMError, match=r"could be A\.txt, a\.png\.txt"):
        read_yolo(root)


def test_folders_of_labels_may_be_upper_case(tmp_path):
    root = train_of(tmp_path, {"a": ONE}, DESCRIPTION.replace("images", "Images"))
    for name in ("images", "labels"):
        (root / name).rename(root / name.title())
    assert boxes_of(read_yolo(root)[0]) == {"a.png": [BOX]}


def test_a_label_file_of_a_picture_that_is_not_read_says_so(tmp_path):
    root = train_of(tmp_path, {"a": ONE, "b": ONE})
    (root / "images" / "train" / "b.png").rename(root / "images" / "train" / "b.tif")
    with pytest.raises(LSHFMError, match=r"b\.txt: has objects.*There is b\.tif: convert it"):
        read_yolo(root)


@pytest.mark.parametrize(
    "points", ["0.5 0.6", "0.5 0.6 0.45 0.3", "0.5 0.6 1 0.45 0.3 1", "0 0 0 0.45 0.3 1"]
)
def test_key_points_are_not_read_as_polygons(tmp_path, points):
    root = train_of(
        tmp_path, {"a": f"0 0.5 0.5 0.25 0.5 {points}\n" * 2, "b": f"1 0.5 0.5 0.3 0.6 {points}\n"}
    )
    with pytest.raises(LSHFMError, match=r"3 lines have \d+ numbers, which look like a box.*Give kpt_shape"):
        read_yolo(root, on_error="skip")


def test_visible_key_points_are_named(tmp_path):
    with pytest.raises(LSHFMError, match="Key points need kpt_shape in data.yaml"):
        read_yolo(train_of(tmp_path, {"a": "0 0.5 0.5 0.25 0.5 0.5 0.6 2 0.45 0.3 2\n"}))


def test_oriented_boxes_are_read_as_their_boxes(tmp_path):
    corners = [(0.45, 0.45, 0.55, 0.46, 0.54, 0.56, 0.44, 0.55), (0.5, 0.5, 0.6, 0.5, 0.6, 0.55, 0.5, 0.55)]
    lines = "".join(f"0 {' '.join(map(str, line))}\n" for line in corners * 3)
    dataset, _ = read_yolo(train_of(tmp_path, {"a": lines}))
    np.testing.assert_allclose(boxes_of(dataset)["a.png"][1], [32, 24, 38.4, 26.4], rtol=1e-5)
