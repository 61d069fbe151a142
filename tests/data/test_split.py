"""Dividing images into training, validation and test images by their content."""

import shutil
from fractions import Fraction

import pytest

from lshfm_pl.data.split import read_split_setting
from lshfm_pl.errors import LSHFMError


def write_files(folder, number=20):
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(number)]
    for index, path in enumerate(paths):
        path.write_bytes(f"picture {index}".encode())
    return paths


def test_parts_depend_on_content_and_seed_alone(tmp_path):
    paths = write_files(tmp_path / "a")
    parts = read_split_setting("0.7/0.2/0.1", 0).parts(paths)
    assert [parts.count(name) for name in ("train", "val", "test")] == [14, 4, 2]
    moved = [tmp_path / f"renamed{99 - index}.jpg" for index in range(len(paths))]
    for path, copy in zip(paths, moved, strict=True):
        shutil.copy(path, copy)
    assert read_split_setting("70/20/10", 0).parts(moved[::-1]) == parts[::-1]
    assert read_split_setting("0.7/0.2/0.1", 1).parts(paths) != parts
    # Of these contents, whatever the machine.
    assert parts[:6] == ["train", "val", "train", "train", "val", "train"]


def test_equal_files_are_in_the_same_part(tmp_path):
    paths = write_files(tmp_path / "a")
    copies = [shutil.copy(path, path.with_suffix(".jpg")) for path in paths]
    split = read_split_setting("0.5/0.5", 0)
    parts = split.parts([*paths, *copies])
    assert parts[:20] == parts[20:]
    assert split.part_of_set("test") == "val"


def test_every_part_has_an_image(tmp_path):
    paths = write_files(tmp_path / "a", 3)
    assert sorted(read_split_setting("0.98/0.01/0.01", 0).parts(paths)) == ["test", "train", "val"]
    assert sorted(read_split_setting("0.01/0.01/0.98", 0).parts(paths)) == ["test", "train", "val"]
    with pytest.raises(LSHFMError, match="2 different images can't be divided into 3 parts"):
        read_split_setting("0.8/0.1/0.1", 0).parts([*paths[:2], paths[0]])


def test_missing_files_count_as_training_images(tmp_path):
    paths = write_files(tmp_path / "a")
    assert read_split_setting("0.5/0.5", 0).parts([None, tmp_path / "no.png", *paths])[:2] == [
        "train",
        "train",
    ]


@pytest.mark.parametrize(
    "value", ["0.8", "0.8/0.1", "a/b", "1/0", "0.8/0.1/0.05/0.05", "", "-0.5/1.5", 0.8, [1]]
)
def test_wrong_shares_are_refused(value):
    with pytest.raises(LSHFMError, match="data.split: expected shares with the sum 1"):
        read_split_setting(value, 0)


def test_shares_are_exact():
    assert read_split_setting("0.8/0.1/0.1", 0).shares["train"] == Fraction(4, 5)
    assert read_split_setting(None, 0) is None
    with pytest.raises(LSHFMError, match="split_seed"):
        read_split_setting("0.8/0.2", -1)
