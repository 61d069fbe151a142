import pytest
from voc_files import (
    BOX,
    SIZE,
    error_text,
    object_xml,
    one_image,
    read,
    write_split,
    write_voc,
)

from lshfm_pl.data.voc.dataset import VOCDetection
from lshfm_pl.data.voc.layout import VOCSource
from lshfm_pl.data.voc.sources import read_class_names, resolve_source
from lshfm_pl.errors import LSHFMError


def test_class_names_are_read_sorted_from_all_annotations(tmp_path):
    folder = write_voc(
        tmp_path / "set",
        "train",
        {"a": (SIZE, [object_xml("zebra"), object_xml("ant")]), "b": (SIZE, [object_xml("cow", BOX, 1)])},
    )
    sources = [VOCSource(folder, "train")]
    assert read_class_names(sources) == ("ant", "cow", "zebra")
    assert VOCDetection(sources).class_names == ("ant", "cow", "zebra")
    assert VOCDetection(sources)[0][1]["labels"].tolist() == [3, 1]


def test_folder_of_a_split_is_found_below_root_or_vocdevkit(tmp_path):
    below = write_voc(tmp_path / "VOCdevkit" / "VOC2007", "trainval", {"a": (SIZE, [])})
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        source = resolve_source(root, "VOC2007/trainval")
        assert source.folder.samefile(below)
        assert source.split == "trainval"
    assert resolve_source(below, "trainval") == VOCSource(below, "trainval")


def test_missing_voc_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(LSHFMError, match=r"(?s)VOC2007.*not found.*data\.root.*data\.download=true"):
        resolve_source(tmp_path, "VOC2007/trainval")
    with pytest.raises(LSHFMError, match=r"(?s)nowhere: not found.*data\.root"):
        resolve_source(tmp_path / "nowhere", "train")


def test_missing_folder_of_images_is_named(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages").rename(folder / "images")
    assert "JPEGImages" in error_text(folder)


def test_missing_annotation_is_named(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "train", ["a", "b"])
    text = error_text(folder)
    assert "train.txt:2: " in text
    assert str(folder / "Annotations" / "b.xml") in text


def test_an_id_with_a_folder_has_its_files_there(tmp_path):
    images = {"a": (SIZE, [object_xml("cat")]), "seq1/a": (SIZE, [object_xml("dog", (1, 2, 3, 4))])}
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / "set" / name / "seq1").mkdir(parents=True)
    folder = write_voc(tmp_path / "set", "train", images)
    records = read(folder).records
    assert [record.image_path.relative_to(folder).as_posix() for record in records] == [
        "JPEGImages/a.png",
        "JPEGImages/seq1/a.png",
    ]
    assert [record.image_id for record in records] == ["set/a", "set/seq1/a"]
    assert records[1].boxes.tolist() == [[0, 1, 3, 4]]
    for name in ("Annotations/a.xml", "JPEGImages/a.png"):
        (folder / name).unlink()
    write_split(folder, "train", ["seq1/a"])
    assert read(folder).records[0].labels.tolist() == [2]
