"""Training pictures whose labels are ignored (`data.train_labels=teacher`), and pictures without any."""

import shutil

import pytest
from coco_files import drawn_content, write_coco
from toy_format.boxes_csv import BoxesCSV
from voc_files import write_image, write_many
from yolo_files import write_yolo

from lshfm_pl.data import COCODataModule, VOCDataModule, YOLODataModule
from lshfm_pl.data.auto import AutoDataModule
from lshfm_pl.data.check import find_faults
from lshfm_pl.data.pictures.datamodule import PicturesDataModule
from lshfm_pl.data.unlabelled import UNLABELLED, PictureSet
from lshfm_pl.errors import LSHFMError

NAMES = ("yak", "dog", "cat", "hen")
"""Classes of a teacher, in another order than those of the data, and one more."""

FILES = {
    "train_annotations": "annotations/instances_train.json",
    "train_images": "train",
    "val_annotations": "annotations/instances_val.json",
    "val_images": "val",
}


def voc(root):
    write_many(root, "train", 4)
    write_many(root, "val", 2, first=4)
    for index in range(3):
        (root / "Annotations" / f"{index:06d}.xml").unlink()
    (root / "Annotations" / "000003.xml").write_text("<no annotation")
    return VOCDataModule, {"train_split": "train", "val_split": "val"}, 4


def voc_folders(root):
    write_many(root / "train", "train", 4)
    write_many(root / "val", "val", 2, first=4)
    for split in ("train", "val"):
        shutil.rmtree(root / split / "ImageSets")
    (root / "train" / "Annotations" / "000001.xml").unlink()
    return VOCDataModule, {"train_split": "train", "val_split": "val"}, 4


def coco(root):
    write_coco(root, "train", drawn_content(0, 6))
    write_coco(root, "val", drawn_content(1, 3, first_id=50))
    train = root / "annotations" / "instances_train.json"
    train.write_text(train.read_text().replace('"bbox"', '"no_box"').replace('"categories"', '"none"'))
    return COCODataModule, dict(FILES), 6


def coco_without_file(root):
    _, settings, number = coco(root)
    (root / settings.pop("train_annotations")).unlink()
    return COCODataModule, settings, number


def yolo(root):
    write_yolo(root)
    shutil.rmtree(root / "labels" / "train")
    return YOLODataModule, {}, 2


def auto(root):
    write_yolo(root)
    (root / "labels" / "train" / "a.txt").write_text("0 nonsense\n")
    return AutoDataModule, {}, 2


FORMATS = [voc, voc_folders, coco, coco_without_file, yolo, auto]


def make(kind, root, **settings):
    module = kind(root=root, num_workers=0, batch_size=2, train_labels="teacher", **settings)
    module.use_class_names(NAMES)
    return module


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_no_label_of_a_training_picture_is_needed_and_those_of_validation_are_read(tmp_path, write):
    kind, settings, number = write(tmp_path)
    module = make(kind, tmp_path, **settings)
    module.setup()
    assert isinstance(module.train_set, PictureSet)
    assert len(module.train_set) == number
    assert module.class_names == NAMES
    for images, targets in module.train_dataloader():
        assert len(images) == 2
        assert all(len(target["boxes"]) == 0 and UNLABELLED in target for target in targets)
    labels = {int(label) for record in module.val_set.records for label in record.labels}
    assert labels
    assert labels <= {2, 3, 4}


def test_pictures_are_those_of_the_division_of_the_data(tmp_path):
    write_many(tmp_path, "train", 10)
    shutil.rmtree(tmp_path / "ImageSets")
    settings = {"train_split": "train", "val_split": "val", "split": "0.6/0.4"}
    module = make(VOCDataModule, tmp_path, **settings)
    module.setup()
    labelled = VOCDataModule(root=tmp_path, num_workers=0, class_names=("cat", "dog"), **settings)
    labelled.setup()
    paths = [record.image_path for record in labelled.train_set.records]
    assert [record.image_path for record in module.train_set.records] == paths
    assert len(module.val_set) == 4


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_without_a_validation_set_there_is_none(tmp_path, kind):
    if kind == "coco":
        _, settings, _ = coco_without_file(tmp_path)
        module = make(COCODataModule, tmp_path, train_images=settings["train_images"])
    elif kind == "voc":
        write_many(tmp_path, "train", 4)
        module = make(VOCDataModule, tmp_path, train_split="train", val_split="val")
    else:
        write_yolo(tmp_path, description="train: images/train\nnames: [cat, dog]\n")
        module = make(YOLODataModule, tmp_path)
    module.setup()
    assert not module.has_set("val")
    assert not module.has_set("test")
    with pytest.raises(LSHFMError, match="expected a test set with labels, found pictures without"):
        module.test_set
    assert len(module.train_set) in (2, 4, 6)


def test_a_format_of_the_users_own_reads_its_annotations_and_does_not_use_them(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("image,class,x1,y1,x2,y2\na.png,cat,1,1,20,20\n")
    module = make(BoxesCSV, tmp_path, train="train.csv", val="val.csv")
    module.setup()
    assert [len(module.train_set[0][1]["boxes"]), len(module.val_set[0][1]["boxes"])] == [0, 1]


def test_class_of_the_data_that_the_teacher_lacks_is_refused(tmp_path):
    kind, settings, _ = voc(tmp_path)
    module = kind(root=tmp_path, num_workers=0, train_labels="teacher", **settings)
    module.use_class_names(("yak", "hen"), "the teacher")
    with pytest.raises(LSHFMError, match="the class 'cat' of object 1 is not one of the classes") as caught:
        module.setup()
    assert "give one that was trained on the classes of these data" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


@pytest.fixture
def pool(tmp_path):
    (tmp_path / "pool" / "deep").mkdir(parents=True)
    for index in range(5):
        write_image(tmp_path / "pool" / ("deep" if index % 2 else "") / f"{index}.png", (64, 48), index)
    return tmp_path / "pool"


def test_pictures_of_a_folder_or_a_list(pool):
    module = make(PicturesDataModule, pool)
    module.setup()
    found = [record.image_path.relative_to(pool).as_posix() for record in module.train_set.records]
    assert found == ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png"]
    (pool / "list.txt").write_text("# two\ndeep/1.png\n0.png\n0.png\n")
    module = make(PicturesDataModule, pool / "list.txt")
    module.setup()
    assert [record.image_path.name for record in module.train_set.records] == ["0.png", "1.png"]
    assert not module.has_set("val")
    assert module.describe() == {"train": {"images": 2}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_labels": "annotations"}, "train_labels: expected teacher, since data=pictures"),
        ({"train_labels": "me"}, "train_labels: expected annotations or teacher, found 'me'"),
        ({"unlabelled": "x"}, "data.unlabelled: with data.train_labels=teacher no training picture has"),
    ],
)
def test_impossible_settings_are_refused(pool, settings, message):
    with pytest.raises(LSHFMError, match=message):
        PicturesDataModule(root=pool, **settings)


def test_empty_folder_and_broken_pictures_are_told_before_training(pool):
    (pool / "empty").mkdir()
    with pytest.raises(LSHFMError, match=r"empty: has no picture \(\.bmp, .*\)\."):
        make(PicturesDataModule, pool / "empty").setup()
    (pool / "2.png").write_bytes(b"no picture")
    with pytest.raises(LSHFMError, match=r"2\.png(.|\n)*on_bad_sample=skip"):
        make(PicturesDataModule, pool).setup()
    module = make(PicturesDataModule, pool, on_bad_sample="skip")
    module.setup()
    assert len(module.train_set) == 4
    assert len(module.skipped()) == 1


def test_check_reads_pictures_without_needing_a_teacher(pool, tmp_path):
    assert find_faults(PicturesDataModule(root=pool)).images == {"train": 5}
    kind, settings, number = voc(tmp_path / "set")
    found = find_faults(kind(root=tmp_path / "set", train_labels="teacher", **settings))
    assert found.num_errors == 0
    assert found.images == {"train": number, "val": 2}


def test_automatic_format_offers_to_learn_from_pictures(pool):
    with pytest.raises(LSHFMError, match=r"has 5 pictures and no labels: .* data=pictures teacher\.checkp"):
        AutoDataModule(root=pool).setup()
