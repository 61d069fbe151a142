import shlex

import pytest
from voc_files import SIZE, annotation_xml, object_xml, write_image, write_split

from lshfm_pl.data.voc.layout import describe_layout


def write(root, annotations, images, name):
    for folder in (annotations, images):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / annotations / f"{name}.xml").write_text(annotation_xml([object_xml()], SIZE))
    write_image(root / images / f"{name}.png", SIZE)


@pytest.mark.parametrize(
    ("folders", "settings"),
    [
        (
            {"train": "train", "test": "test"},
            "data.annotations=. data.images=. data.train_split=train/ data.val_split=test/",
        ),
        (
            {"train": "train", "valid": "valid", "test": "test"},
            "data.annotations=. data.images=. data.train_split=train/ data.val_split=valid/",
        ),
        (
            {"annots": "images"},
            "data.annotations=annots data.images=images data.train_split=0-80% data.val_split=80-100%",
        ),
        (
            {"annotations/train": "images/train", "annotations/val": "images/val"},
            "data.annotations=annotations data.images=images data.train_split=train/ data.val_split=val/",
        ),
        (
            {"all": "all"},
            "data.annotations=all data.images=all data.train_split=0-80% data.val_split=80-100%",
        ),
    ],
)
def test_other_layouts_are_described_with_the_settings_that_read_them(tmp_path, folders, settings):
    for annotations, images in folders.items():
        write(tmp_path, annotations, images, annotations.replace("/", "_"))
    assert describe_layout(tmp_path).endswith(f"Give: {settings}")


def test_lists_that_are_there_are_proposed(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages-trainval", "a")
    write_split(tmp_path, "trainval", ["a"])
    write_split(tmp_path, "test", ["a"])
    assert describe_layout(tmp_path).endswith(
        "data.images=JPEGImages-trainval data.train_split=trainval data.val_split=test"
    )


def test_a_folder_with_neither_is_described(tmp_path):
    (tmp_path / "labels").mkdir()
    assert "has labels/" in describe_layout(tmp_path)


def test_folders_are_found_behind_links(tmp_path):
    real, root = tmp_path / "real", tmp_path / "set"
    root.mkdir()
    for name in ("train", "test"):
        write(real, name, name, "a")
        (root / name).symlink_to(real / name)
    assert "data.train_split=train/ data.val_split=test/" in describe_layout(root)


def test_settings_of_folders_with_blanks_can_be_typed_as_they_are_printed(tmp_path):
    write(tmp_path, "my xml", "it's pictures", "a")
    typed = describe_layout(tmp_path).partition("Give: ")[2]
    assert shlex.split(typed)[:2] == ["data.annotations=my xml", "data.images=it's pictures"]
