import json
import shutil
from pathlib import Path

import pytest
import torch
from coco_files import CATEGORIES, annotation, coco_content, drawn_content, write_coco
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lshfm_pl.data.build import build_datamodule
from lshfm_pl.data.coco.datamodule import COCODataModule
from lshfm_pl.errors import LSHFMError

CONFIGS = Path(__file__).parents[3] / "conf" / "data"
NAMES = tuple(CATEGORIES.values())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The layout of COCO 2017."""
    root = tmp_path_factory.mktemp("coco")
    write_coco(root, "train2017", drawn_content(0, 20))
    write_coco(root, "val2017", drawn_content(1, 7, first_id=100))
    return root


def files(split, name=None):
    name = name or f"{split}2017"
    return {f"{split}_annotations": f"annotations/instances_{name}.json", f"{split}_images": name}


def make(root, stage=None, **settings):
    settings = {**files("train"), **files("val"), "num_workers": 0, **settings}
    datamodule = COCODataModule(root=root, **settings)
    datamodule.prepare_data()
    datamodule.setup(stage)
    return datamodule


def load_config(name, **changes):
    config = OmegaConf.create({"seed": 5, "data": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    config.data = OmegaConf.merge(config.data, changes)
    return config.data


def test_coco2017_config_reads_the_published_layout_and_labels(root):
    datamodule = instantiate(load_config("coco2017", root=str(root), num_workers=0))
    datamodule.setup()
    assert len(datamodule.class_names) == 18
    assert datamodule.test_set is datamodule.val_set
    labels = {label for _, targets in datamodule.val_dataloader() for label in targets[0]["labels"].tolist()}
    assert labels <= set(CATEGORIES)
    images, targets = next(iter(datamodule.train_dataloader()))
    assert len(images) == len(targets) == datamodule.batch_size == 2
    assert images[0].dtype == torch.uint8
    assert all(not target["crowd"].any() and len(target["boxes"]) for target in targets)


def test_training_and_evaluation_follow_their_rules(root):
    counts = make(root).describe()
    # Every fifth image has no objects.
    assert counts["train"]["images"] <= 16
    assert counts["train"]["images"] + counts["train"]["dropped_images"] == 20
    assert counts["val"]["images"] == 7
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    crowd = sum(entry["iscrowd"] for entry in content["annotations"])
    assert counts["train"]["crowd"] == crowd > 0
    assert counts["train"]["objects"] == len(content["annotations"]) - crowd


def test_labels_are_contiguous_unless_ids_are_kept(root):
    assert make(root).class_names == NAMES
    assert make(root, category_ids="keep").class_names[17] == "hen"


def test_paths_may_be_absolute(root, tmp_path):
    absolute = {key: root / value for key, value in {**files("train"), **files("val")}.items()}
    assert len(make(tmp_path, **absolute).val_set) == 7


def test_evaluation_needs_no_training_files(root):
    nothing = {"train_annotations": None, "train_images": None}
    for settings in (files("train", "missing"), nothing):
        datamodule = make(root, "test", **settings)
        assert datamodule.class_names == NAMES
        with pytest.raises(RuntimeError, match="setup"):
            _ = datamodule.train_set
    with pytest.raises(LSHFMError, match=r"data\.train_annotations is not given.*data\.train_images"):
        make(root, "fit", **nothing)


def test_a_test_set_of_its_own_is_read(root):
    write_coco(root, "own", drawn_content(2, 3, first_id=200))
    datamodule = make(root, **files("test", "own"))
    assert (len(datamodule.val_set), len(datamodule.test_set)) == (7, 3)
    shutil.rmtree(root / "own")


@pytest.mark.parametrize(
    "categories",
    [
        {3: "cat", 7: "cow", 18: "hen"},
        {**CATEGORIES, 19: "pig"},
    ],
)
def test_other_categories_are_refused_with_both_files(root, categories):
    write_coco(root, "other", coco_content({300: (64, 48)}, [annotation(300)], categories))
    with pytest.raises(LSHFMError) as caught:
        make(root, "fit", **files("val", "other"))
    assert "instances_other.json" in str(caught.value)
    assert "instances_train2017.json" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_half_of_a_pair_is_refused(root):
    with pytest.raises(LSHFMError, match=r"data\.test_annotations and data\.test_images belong together"):
        make(root, test_images="val2017")


def test_training_images_in_the_evaluation_are_warned_of(root, caplog):
    make(root, **files("val", "train2017"))
    told = [line for line in caplog.messages if line.startswith("val set: test-in-train")]
    assert len(told) == 1
    assert "images of data.val_annotations that are training images too" in told[0]
    caplog.clear()
    make(root)
    assert not any("test-in-train" in line for line in caplog.messages)


def test_missing_files_are_reported_with_layout_and_source(root, tmp_path):
    with pytest.raises(
        LSHFMError, match=r"instances_train2017\.json: no such annotation file\.\n.*zips/train2017\.zip"
    ):
        make(tmp_path, "fit")
    with pytest.raises(LSHFMError, match=r"instances_mine\.json: no such annotation file\.\nSet data\.root"):
        make(root, "fit", **files("train", "mine"))


def test_data_module_is_built_from_a_stored_config(root):
    stored = OmegaConf.to_container(load_config("coco2017", root=str(root), seed=1), resolve=True)
    datamodule = build_datamodule(stored)
    datamodule.setup("test")
    assert len(datamodule.test_set) == 7
    with pytest.raises(LSHFMError, match="colour"):
        build_datamodule({**stored, "colour": "red"})


def test_sample_has_training_targets(root):
    datamodule = make(root, flip_probability=1.0)
    targets = [target for _, batch in datamodule.sample_dataloader(4) for target in batch]
    count = len(datamodule.train_set)
    assert [target["image_id"].item() for target in targets] == [step * count // 4 for step in range(4)]
    for target in targets:
        assert torch.equal(target["boxes"], datamodule.train_set.target(target["image_id"].item())["boxes"])
        assert not target["crowd"].any()


@pytest.fixture
def faulty(tmp_path):
    """Three images, one with a broken object; an object without an image; five boxes that cross the border."""
    content = drawn_content(3, 12)
    first = content["annotations"][0]
    for number in range(5):
        content["annotations"].append(
            {**first, "id": 900 + number, "bbox": [100, 100, 60, 20 + number], "area": 9}
        )
    content["annotations"].append({**first, "id": 910, "image_id": 77})
    content["annotations"].append({**content["annotations"][-3], "id": 911, "image_id": 6, "bbox": [1, 2, 3]})
    write_coco(tmp_path, "train", content)
    write_coco(tmp_path, "val", drawn_content(1, 3, first_id=100))
    return tmp_path


def test_training_logs_one_line_a_kind(faulty, caplog):
    datamodule = make(faulty, "fit", **files("train", "train"), **files("val", "val"), on_bad_sample="skip")
    lines = [record.message for record in caplog.records]
    told = [line for line in lines if "box-partly-outside" in line]
    assert len(told) == 1
    assert told[0].startswith("train set: box-partly-outside: ")
    assert told[0].endswith("extends beyond the image of 128 x 128. And 4 more.")
    assert "data.on_bad_sample=skip: 1 images are left out of the train set" in lines
    assert [line.split(":")[1] for line in lines if "error" not in line].count(" image-unknown") == 1
    assert "6" not in {record.image_id for record in datamodule.train_set.records}
    caplog.clear()
    datamodule.teardown("fit")
    head = caplog.records[0].message.splitlines()[0]
    assert head == (
        "data.on_bad_sample=skip: 1 training images were skipped, "
        "1 entries that belong to no image of the set were ignored:"
    )


def test_classes_of_a_checkpoint_are_found_by_name_in_any_file(root):
    write_coco(root, "new", coco_content({300: (64, 48)}, [annotation(300, 1)], {1: "hen"}))
    datamodule = COCODataModule(root=root, **files("val", "new"), num_workers=0)
    datamodule.use_class_names(NAMES)
    datamodule.setup("test")
    assert datamodule.class_names == NAMES
    assert datamodule.test_set.target(0)["labels"].tolist() == [3]
    assert make(root, "test", **files("val", "new"), class_names=NAMES).class_names == NAMES
    other = COCODataModule(root=root, **files("val", "new"), num_workers=0)
    other.use_class_names(("cat", "dog"))
    with pytest.raises(
        LSHFMError, match=r"are not those of the checkpoint: it has no 'hen'\.\nThe classes are"
    ):
        other.setup("test")


def test_trained_classes_can_be_given_in_any_order(root):
    datamodule = make(root, "fit", class_names=["hen", "cat", "dog"])
    assert datamodule.class_names == ("hen", "cat", "dog")
    assert (
        datamodule.train_set.describe()["classes"]["hen"]
        == make(root, "fit").train_set.describe()["classes"]["hen"]
    )
