"""`file_name` entries that are not the exact name of a file."""

import json
import unicodedata
from pathlib import Path

import pytest
from coco_files import annotation, coco_content, write_coco

from lshfm_pl.data.coco.dataset import COCODetection
from lshfm_pl.data.coco.entries import COCOImage
from lshfm_pl.data.coco.images import find_images
from lshfm_pl.data.faults import FaultError, FaultLog
from lshfm_pl.errors import LSHFMError

JSON = Path("own.json")


def make_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def find(folder, *names, on_error="error"):
    log = FaultLog(on_error)
    images = [COCOImage(number, name, 0, 0) for number, name in enumerate(names, start=1)]
    return find_images(folder, images, JSON, log, "data.train_images"), log.faults


def found(folder, *names):
    paths, faults = find(folder, *names)
    told = [(fault.kind, fault.text) for fault in faults]
    return [path.relative_to(folder).as_posix() for path in paths], told


@pytest.mark.parametrize(
    ("name", "file"),
    [("train/a.jpg", "a.jpg"),
     ("./a.jpg", "a.jpg"),
     ("data\\train\\a.jpg", "a.jpg"),
     ("..\\media\\upload\\a.jpg", "a.jpg"),
     ("../../a.jpg", "a.jpg"),
     ("/home/me/a.jpg", "a.jpg"),
     ("C:\\Users\\me\\a.jpg", "a.jpg"),
     ("~/pictures/a.jpg", "a.jpg"),
     ("https://example.org/x/a.jpg?token=1", "a.jpg"),
     ("https://example.org/x/my%20a.jpg", "my a.jpg"),
     ("my%20a.jpg", "my a.jpg"),
     ("/data/upload/1/K%C3%A4fer.jpg", "Käfer.jpg"),
     ("/data/local-files/?d=train/a.jpg", "a.jpg"),
     ("s3://bucket/train/a.jpg", "a.jpg"),
     ("file:///x/train/a.jpg", "a.jpg"),
     ("A.JPG", "a.jpg"),
     ("a.JPEG", "a.jpeg"),
     ("a", "a.png"),
     ("train\\A", "a.webp"),
     ("x/../a.jpg", "a.jpg"),
     ("Sub\\a.jpg", "sub/a.jpg"),
     ("/elsewhere/sub/a.jpg", "sub/a.jpg"),
     ("a.jpg", "deep/down/a.jpg"),
     (unicodedata.normalize("NFD", "Käfer.jpg"), unicodedata.normalize("NFC", "Käfer.jpg")),
     (unicodedata.normalize("NFC", "Käfer.jpg"), unicodedata.normalize("NFD", "Käfer.jpg"))],
)  # fmt: skip
def test_a_name_that_fits_one_file_is_that_file_with_one_warning(tmp_path, name, file):
    folder = make_files(tmp_path / "train", file, "b.jpg")
    paths, told = found(folder, name, "b.jpg")
    assert paths == [file, "b.jpg"]
    kinds = [kind for kind, _ in told]
    assert kinds == ([] if name == "./a.jpg" else ["file-name-read"])
    if told:
        assert told[0][1].startswith("1 file_names match a file of")


def test_a_file_with_another_suffix_is_named(tmp_path):
    folder = make_files(tmp_path / "train", "a.jpg", "b.jpg")
    _, faults = find(folder, "a.png", "b.jpg", on_error="skip")
    assert "There is a.jpg: correct the suffix if it is this one." in faults[0].text
    with pytest.raises(LSHFMError, match=r"none of the 2 images.*\nThere is a.jpg: correct the suffix"):
        find(folder, "a.png", "b.png")


def test_a_file_that_is_named_as_it_is_wins(tmp_path):
    folder = make_files(tmp_path / "train", "x\\a.jpg", "a.jpg", "A.jpg", "my%20a.jpg")
    assert found(folder, "x\\a.jpg", "a.jpg", "A.jpg", "my%20a.jpg")[1] == []


@pytest.mark.parametrize(
    ("name", "files", "text"),
    [("A.JPG", ("a.jpg", "a.JPG"), "it could be train/a.(jpg|JPG) or train/a.(jpg|JPG)"),
     ("a", ("a.jpg", "a.png"), "it could be train/a.jpg or train/a.png"),
     ("a.jpg", ("x/a.jpg", "y/a.jpg"), "it could be train/[xy]/a.jpg or train/[xy]/a.jpg"),
     ("x/a.jpg", ("y/a.jpg",), "no such image"),
     ("a.jpg", ("a.png",), "no such image"),
     ("a.jpg", ("a.jpg.txt",), "no such image")],
)  # fmt: skip
def test_a_name_that_fits_none_or_several_is_a_fault_of_its_image(tmp_path, name, files, text):
    folder = make_files(tmp_path / "train", *files, "b.jpg")
    paths, faults = find(folder, name, "b.jpg", on_error="skip")
    assert paths == [None, folder / "b.jpg"]
    assert [fault.kind for fault in faults] == ["image-missing"]
    assert faults[0].image_id == "1"
    with pytest.raises(FaultError, match=text):
        find(folder, name, "b.jpg")


def test_no_name_leads_out_of_the_folder(tmp_path):
    make_files(tmp_path, "secret.jpg", "other/a.jpg")
    folder = make_files(tmp_path / "train", "b.jpg")
    names = [
        "../secret.jpg",
        "..\\secret.jpg",
        str(tmp_path / "secret.jpg"),
        "x/../../secret.jpg",
        "../other/a.jpg",
    ]
    names += [f"file://{tmp_path}/secret.jpg", "https://example.org/..%2F..%2Fsecret.jpg"]
    paths, faults = find(folder, *names, "b.jpg", on_error="skip")
    assert paths == [None] * len(names) + [folder / "b.jpg"]
    assert {fault.kind for fault in faults} <= {"path-unsafe", "image-missing"}
    assert len(faults) == len(names)


@pytest.mark.parametrize(
    "name",
    ["http://[bad", "http://x/%ff", "http://x/%00", "http://x/?d=", "/data/local-files/?d=%2e%2e/secret.jpg",
     "///", "~", "..", "a/..", "\\\\", "C:", "C:\\", "a:secret.jpg", "http://x/" + "%2e%2e/" * 9 + "secret.jpg",
     "x" * 255, "a/" * 2000],
)  # fmt: skip
def test_odd_names_are_faults_of_their_image(tmp_path, name):
    make_files(tmp_path, "secret.jpg")
    folder = make_files(tmp_path / "train", "b.jpg")
    paths, faults = find(folder, name, "b.jpg", on_error="skip")
    assert paths == [None, folder / "b.jpg"]
    assert [fault.image_id for fault in faults] == ["1"]
    assert len(str(faults[0]).splitlines()) == 1


def test_a_colon_is_part_of_a_name(tmp_path):
    folder = make_files(tmp_path / "train", "a:b.jpg", "b.jpg")
    assert found(folder, "a:b.jpg", "b.jpg")[0] == ["a:b.jpg", "b.jpg"]


def test_a_folder_beside_may_be_the_one_that_is_meant(tmp_path):
    make_files(tmp_path / "images", "a.jpg")
    folder = make_files(tmp_path / "train", "a.jpg", "b.jpg")
    with pytest.raises(FaultError, match=r"images/ is next to this folder.*Set the folder of images to"):
        find(folder, "images/a.jpg", "b.jpg")


def test_where_none_is_found_one_line_says_what_to_set(tmp_path):
    make_files(tmp_path / "images", "a.jpg", "b.jpg")
    folder = make_files(tmp_path / "train", "c.jpg")
    for on_error in ("error", "skip"):
        with pytest.raises(FaultError) as caught:
            find(folder, "images/a.jpg", "images/b.jpg", on_error=on_error)
        text = str(caught.value)
        assert "none of the 2 images of own.json is in this folder, such as 'images/a.jpg'.\n" in text
        assert f"They are below {tmp_path}: set data.train_images to it" in text
        assert len(text.splitlines()) == 2


@pytest.mark.parametrize("spelling", ["1.jpg", "./1.jpg", "x//..//1.jpg", "link.jpg", "one/1.jpg", "1.JPG"])
def test_one_file_under_two_ids_is_an_error_that_names_both(tmp_path, spelling):
    folder = make_files(tmp_path / "train", "1.jpg", "2.jpg")
    (folder / "link.jpg").symlink_to("1.jpg")
    (folder / "one").symlink_to(folder, target_is_directory=True)
    _, faults = find(folder, "1.jpg", "2.jpg", spelling, on_error="skip")
    faults = [fault for fault in faults if fault.kind == "file-repeated"]
    assert {fault.image_id for fault in faults} == {"1", "3"}
    with pytest.raises(FaultError, match=r"file train/1\.jpg has several ids, 1 and 3"):
        find(folder, "1.jpg", "2.jpg", spelling)


def test_equal_files_are_two_files(tmp_path):
    folder = make_files(tmp_path / "train", "1.jpg")
    (folder / "2.jpg").hardlink_to(folder / "1.jpg")
    assert find(folder, "1.jpg", "2.jpg")[1] == []


def test_a_data_set_is_read_through_such_names(tmp_path):
    content = coco_content({1: (64, 48), 2: (64, 48)}, [annotation(1), annotation(2)])
    path = write_coco(tmp_path, "own", content)
    for image in content["images"]:
        image["file_name"] = f"images\\{image['file_name'].upper()}"
    path.write_text(json.dumps(content))
    dataset = COCODetection(path, tmp_path / "own", training=True)
    assert [record.image_path.name for record in dataset.records] == ["000000000001.jpg", "000000000002.jpg"]
    assert dataset[0][0].shape == (3, 48, 64)
