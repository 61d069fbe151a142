"""Reading folders with VOC's XML files and without lists: `data=voc_folder data.root=<folder>` alone."""

import pytest
from voc_files import SIZE, annotation_xml, object_xml, write_image

from lshfm_pl.data import VOCDataModule
from lshfm_pl.errors import LSHFMError


def write(root, annotations, images, names, first=0):
    for number, name in enumerate(names):
        xml, picture = root / annotations / f"{name}.xml", root / images / f"{name}.png"
        for path in (xml, picture):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_image(picture, SIZE, first + number)
        xml.write_text(annotation_xml([object_xml()], SIZE, picture.name))
    return root


def sizes(root, **settings):
    module = VOCDataModule(root=root, train_split="train", val_split="val", num_workers=0, **settings)
    module.setup()
    return {name: counts["images"] for name, counts in module.describe().items()}


@pytest.mark.parametrize(
    "folders",
    [
        ("{}", "{}"),
        ("{}/annotations", "{}/images"),
        ("annotations/{}", "images/{}"),
        ("Annotations/{}", "JPEGImages/{}"),
    ],
    ids=["beside", "in each set", "below annotations", "sub-folders of VOC"],
)
def test_sets_are_folders_with_their_names(tmp_path, folders):
    for number, (name, count) in enumerate((("train", 3), ("valid", 2), ("test", 1))):
        places = [folder.format(name) for folder in folders]
        write(tmp_path, *places, [f"{name}{index}" for index in range(count)], 10 * number)
    assert sizes(tmp_path) == {"train": 3, "val": 2, "test": 1}


@pytest.mark.parametrize(
    ("annotations", "images", "names"),
    [
        (".", ".", "a{}"),
        ("annots", "images", "a{}"),
        ("Annotations", "JPEGImages", "a{}"),
        ("annotations", "pictures", "clip{}/a"),
    ],
    ids=["beside", "two folders", "VOC without lists", "sub-folders"],
)
def test_folders_without_sets_need_a_split(tmp_path, annotations, images, names):
    write(tmp_path, annotations, images, [names.format(index) for index in range(10)])
    (tmp_path / "SegmentationClass").mkdir()
    write_image(tmp_path / "SegmentationClass" / "a1.png", SIZE)
    with pytest.raises(LSHFMError, match=r"data\.split=0\.8/0\.1/0\.1"):
        sizes(tmp_path)
    assert sizes(tmp_path, split="0.6/0.2/0.2") == {"train": 6, "val": 2, "test": 2}


def test_a_split_is_refused_where_there_are_sets(tmp_path):
    write(tmp_path, "train", "train", ["a", "b"])
    write(tmp_path, "val", "val", ["c"], 5)
    with pytest.raises(LSHFMError, match="found .*val"):
        sizes(tmp_path, split="0.8/0.2")
    with pytest.raises(LSHFMError, match="Leave data.split or these out"):
        sizes(tmp_path, split="0.8/0.2", annotations=".", images=".")


def test_advice_keeps_a_test_set(tmp_path):
    write(tmp_path, "train", "train", [f"a{index}" for index in range(8)])
    write(tmp_path, "test", "test", ["b"], 20)
    with pytest.raises(LSHFMError, match=r"there is no val set\. data\.split=0\.9/0\.1 divides"):
        sizes(tmp_path)
    assert sizes(tmp_path, split="0.75/0.25") == {"train": 6, "val": 2, "test": 1}


def test_a_list_that_is_named_after_no_set_needs_a_split(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages", [f"a{index}" for index in range(10)])
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "default.txt").write_text(
        "".join(f"a{index}\n" for index in range(10))
    )
    with pytest.raises(LSHFMError, match=r"data\.split=0\.8/0\.1/0\.1"):
        sizes(tmp_path)
    assert sizes(tmp_path, split="0.6/0.2/0.2") == {"train": 6, "val": 2, "test": 2}


def test_a_list_of_training_images_alone_can_be_split(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages", [f"a{index}" for index in range(10)])
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("".join(f"a{index}\n" for index in range(8)))
    assert sizes(tmp_path, split="0.5/0.25/0.25") == {"train": 4, "val": 2, "test": 2}


@pytest.mark.parametrize("has_lists", [False, True])
def test_an_own_test_set_stays_the_test_set(tmp_path, has_lists):
    if has_lists:
        write(tmp_path, "Annotations", "JPEGImages", [f"a{index}" for index in range(11)])
        lists = tmp_path / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("".join(f"a{index}\n" for index in range(8)))
        (lists / "test.txt").write_text("a8\na9\na10\n")
    else:
        write(tmp_path, "train", "train", [f"a{index}" for index in range(8)])
        write(tmp_path, "test", "test", "xyz", 20)
    assert sizes(tmp_path, split="0.75/0.25") == {"train": 6, "val": 2, "test": 3}
    with pytest.raises(LSHFMError, match="Give two shares"):
        sizes(tmp_path, split="0.8/0.1/0.1")


def test_several_folders_of_one_set_stop(tmp_path):
    for name in ("train_old", "train_new", "val"):
        write(tmp_path, name, name, [name])
    with pytest.raises(LSHFMError, match="several folders of the train set: train_new/, train_old/"):
        sizes(tmp_path)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("ImageSets/Main", ("trainval", "valid", "test")),
        ("ImageSets/Main", ("Train", "VAL", "Test")),
        ("ImageSets", ("train", "val", "test")),
        (".", ("train", "validation", "test")),
        ("annotations", ("training", "valid", "testing")),
    ],
)
@pytest.mark.parametrize("places", [("Annotations", "JPEGImages"), ("annotations/xmls", "images")])
def test_lists_in_other_places_or_of_other_names_are_the_sets(tmp_path, folder, names, places):
    write(tmp_path, *places, [f"a{index}" for index in range(6)])
    lists = tmp_path / folder
    lists.mkdir(parents=True, exist_ok=True)
    for name, ids in zip(names, ("a0 a1 a2", "a3 a4", "a5"), strict=True):
        (lists / f"{name}.txt").write_text("\n".join(ids.split()) + "\n")
    assert sizes(tmp_path) == {"train": 3, "val": 2, "test": 1}
    with pytest.raises(LSHFMError, match="expected data without a validation set, found .*txt"):
        sizes(tmp_path, split="0.8/0.2")


def test_lists_beside_the_annotations_of_a_deeper_folder_are_the_sets(tmp_path):
    write(tmp_path / "VOCdevkit/VOC2007", "Annotations", "JPEGImages", "abcd")
    lists = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\n")
    (lists / "val.txt").write_text("d\n")
    assert sizes(tmp_path) == {"train": 3, "val": 1, "test": 1}


def test_text_files_that_are_no_lists_are_no_sets(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages", [f"a{index}" for index in range(10)])
    (tmp_path / "train.txt").write_text("epoch 1: loss 0.3\n")
    (tmp_path / "val.txt").write_text("AP 0.5\n")
    assert sizes(tmp_path, split="0.6/0.2/0.2") == {"train": 6, "val": 2, "test": 2}
