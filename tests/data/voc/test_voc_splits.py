import unicodedata

import numpy as np
import pytest
from voc_files import SIZE, error_text, object_xml, read, write_many, write_split, write_voc

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.voc.datamodule import VOCDataModule
from lshfm_pl.errors import LSHFMError


@pytest.fixture
def folder(tmp_path):
    images = {name: (SIZE, [object_xml("cat")]) for name in ("a", "b", "c", "Photo", "Photo 1", "图片 0")}
    return write_voc(tmp_path / "set", "train", images)


def ids(folder, log=None, split="train"):
    return [record.image_id.partition("/")[2] for record in read(folder, split, log=log).records]


@pytest.mark.parametrize("line", ["Photo 1", "图片 0"])
def test_an_id_that_ends_in_a_number_is_not_cut_where_its_files_are_there(folder, line):
    write_split(folder, "train", [line])
    log = FaultLog()
    assert ids(folder, log) == [line]
    assert log.faults == []


@pytest.mark.parametrize("line", ["a 1", "a -1", "a  0", "a 17"])
def test_the_second_column_of_a_list_is_cut_off(folder, line):
    write_split(folder, "train", [line])
    assert ids(folder) == ["a"]


@pytest.mark.parametrize(
    "line",
    [
        "a.jpg",
        "a.xml",
        "a.PNG",
        "a.jpg 1",
        "./JPEGImages/a.jpg",
        "JPEGImages/a.jpg Annotations/a.xml",
        "Annotations\\a.xml",
        "/home/somebody/set/JPEGImages/a.jpg",
        "/home/somebody/pictures/a.jpg",
        "C:\\pictures\\a.jpg",
        "../pictures/a.jpg",
        "data/obj/a.jpg",
        "A",
        "A.JPG",
        "JPEGImages/A.jpg 1",
        "'a.jpg'",
        "a.jpg,a.xml",
        "a # the first",
        "a.jpg,cat,1,2,3,4",
        "a 1 1 1",
    ],
)
def test_lines_that_are_file_names_are_read_and_reported(folder, line):
    write_split(folder, "train", ["# made by a tool", line, "b"])
    log = FaultLog()
    assert ids(folder, log) == ["a", "b"]
    assert [(fault.kind, fault.line) for fault in log.faults] == [
        ("split-line-read", 1),
        ("split-line-read", 2),
    ]


def test_a_file_of_a_folder_of_ids_is_not_one_of_the_same_name_elsewhere(folder):
    (folder / "JPEGImages" / "seq1").mkdir()
    write_split(folder, "train", ["seq1/a.jpg", "b"])
    assert "'seq1/a.jpg' has no annotation" in error_text(folder)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_ids_in_another_form_of_unicode_are_read_and_reported(folder, form):
    name, other = (
        unicodedata.normalize(kind, "Käfer") for kind in (form, {"NFC": "NFD", "NFD": "NFC"}[form])
    )
    for place, suffix, kept in (("Annotations", ".xml", other), ("JPEGImages", ".png", name)):
        (folder / place / f"b{suffix}").rename(folder / place / f"{kept}{suffix}")
    write_split(folder, "train", ["a", name])
    log = FaultLog()
    assert ids(folder, log) == ["a", other]
    assert [fault.kind for fault in log.faults] == ["split-line-read", "image-chosen"]


def test_names_that_differ_in_case_alone_are_each_other_never(folder):
    (folder / "JPEGImages" / "B.png").write_bytes((folder / "JPEGImages" / "c.png").read_bytes())
    text = (folder / "Annotations" / "c.xml").read_text()
    (folder / "Annotations" / "B.xml").write_text(text.replace("c.png", "B.png"))
    write_split(folder, "train", ["b", "B"])
    log = FaultLog()
    assert ids(folder, log) == ["b", "B"]
    assert log.faults == []
    write_split(folder, "train", ["a", "A"])
    assert ids(folder, log) == ["a"]
    assert {fault.kind for fault in log.faults} == {"split-line-read", "entry-repeated"}


def test_a_list_of_paths_of_which_none_is_here_has_one_message(folder):
    write_split(folder, "train", ["/home/me/x.jpg", "/home/me/y.jpg"])
    assert "train.txt:1: none of its 2 lines" in error_text(folder, log=FaultLog("skip"))


def test_files_that_macos_writes_beside_others_are_no_annotations(folder):
    for name in ("Annotations/._a.xml", "JPEGImages/._a.jpg"):
        (folder / name).write_bytes(b"Mac OS X")
    log = FaultLog()
    assert len(ids(folder, log, "0-100%")) == 6
    assert log.faults == []


def test_ids_between_commas_are_read(folder):
    write_split(folder, "train", ["a,b,c"])
    assert ids(folder) == ["a", "b", "c"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_lists_in_other_encodings_are_read(folder, encoding):
    path = folder / "ImageSets" / "Main" / "train.txt"
    path.write_bytes("a\r\nPhoto 1\r\n".encode(encoding))
    log = FaultLog()
    assert ids(folder, log) == ["a", "Photo 1"]
    assert [fault.kind for fault in log.faults] == ["encoding"] * (encoding != "utf-8-sig")


def test_a_list_of_which_no_line_is_there_has_one_message(folder):
    write_split(folder, "train", ["x.jpg", "y.jpg", "z"])
    text = error_text(folder, log=FaultLog("skip"))
    assert "train.txt:1: none of its 3 lines" in text
    assert "Expected ids, such as 'Photo 1'" in text


def test_a_folder_of_annotations_beside_pictures_is_a_split(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_many(tmp_path / "of", split, 3, first=100 if split == "test" else 0)
    for split, first in (("train", 0), ("test", 100)):
        for number in range(first, first + 3):
            for part, suffix in (("Annotations", "xml"), ("JPEGImages", "png")):
                source = tmp_path / "of" / part / f"{number:06d}.{suffix}"
                source.rename(tmp_path / split / source.name)
    beside = {"root": tmp_path, "annotations": ".", "images": ".", "num_workers": 0}
    datamodule = VOCDataModule(train_split="train/", val_split="test/", **beside)
    datamodule.setup()
    assert [record.image_path.parent.name for record in datamodule.train_set.records] == ["train"] * 3
    assert [record.image_path.parent.name for record in datamodule.val_set.records] == ["test"] * 3


def test_shares_are_disjoint_complete_and_always_the_same(tmp_path):
    folder = write_many(tmp_path / "set", "list", 10)
    first, second = ids(folder, split="0-80%"), ids(folder, split="80-100%")
    assert (len(first), len(second)) == (8, 2)
    assert sorted(first + second) == ids(folder, split="0-100%")
    assert ids(folder, split="80-100%") == second
    assert np.unique(first).size == 8


@pytest.mark.parametrize("split", ["80-20%", "0-101%", "a%", "50%"])
def test_a_share_that_cannot_be_is_refused(folder, split):
    with pytest.raises(LSHFMError, match=r"expected for example 0-80%"):
        read(folder, split)
