"""A data config in a checkpoint determines the data, but no settings of this machine."""

import os

import pytest

from lshfm_pl.data import ShapesDataModule, build_datamodule
from lshfm_pl.errors import LSHFMError

SHAPES = {
    "_target_": "lshfm_pl.data.shapes.datamodule.ShapesDataModule",
    "num_train": 1,
    "num_val": 1,
    "num_test": 1,
}
VOC = {"_target_": "lshfm_pl.data.voc.datamodule.VOCDataModule", "train_split": "train", "val_split": "val"}
COCO = {
    "_target_": "lshfm_pl.data.coco.datamodule.COCODataModule",
    "val_annotations": "v.json",
    "val_images": "v",
}


def test_workers_and_batches_are_limited_to_the_machine(tmp_path):
    greedy = {"num_workers": 100_000, "batch_size": 10**9, "eval_batch_size": 10**9, "download": True}
    datamodule = build_datamodule({**VOC, "root": str(tmp_path), **greedy})
    assert datamodule.num_workers <= os.cpu_count()
    assert (datamodule.batch_size, datamodule.eval_batch_size, datamodule.download) == (64, 64, False)
    modest = build_datamodule({**VOC, "root": str(tmp_path), "num_workers": 0, "batch_size": 3})
    assert (modest.num_workers, modest.batch_size) == (0, 3)


def test_scenes_are_drawn_below_the_output_alone(tmp_path):
    named, output = tmp_path / "named", tmp_path / "output"
    datamodule = build_datamodule({**SHAPES, "root": str(named)}, drawn_below=output)
    datamodule.prepare_data()
    datamodule.setup("test")
    assert len(datamodule.test_set) == 1
    assert not named.exists()
    assert [path.name for path in output.iterdir()] == ["data"]


def test_scenes_that_are_there_are_read_where_they_are(tmp_path):
    own = ShapesDataModule(root=tmp_path / "own", num_train=1, num_val=1, num_test=1)
    own.prepare_data()
    datamodule = build_datamodule({**SHAPES, "root": str(tmp_path / "own")}, drawn_below=tmp_path / "output")
    datamodule.prepare_data()
    datamodule.setup("test")
    assert not (tmp_path / "output").exists()


def test_without_an_output_nothing_is_drawn(tmp_path):
    with pytest.raises(
        LSHFMError, match="there are no scenes at .*named/shapes_.* Give data=shapes data.root="
    ):
        build_datamodule({**SHAPES, "root": str(tmp_path / "named")})


@pytest.mark.parametrize("changes", [{"num_test": 10**9}, {"image_size": 10**6}])
def test_not_too_many_scenes_are_drawn(tmp_path, changes):
    with pytest.raises(LSHFMError, match=r"scenes of \d+ pixels, expected at most 20000 of 1024. Give data="):
        build_datamodule({**SHAPES, **changes, "root": str(tmp_path)}, drawn_below=tmp_path)


WRONG = [
    {"root": 5}, {"root": None}, {"root": ["a"]}, {"root": "a\0b"}, {"root": "~nobody-of-that-name/x"},
    {"num_workers": "many"}, {"num_workers": -1}, {"num_workers": 2.5}, {"batch_size": True}, {"seed": 1e300},
    {"train_split": 3}, {"train_split": {"a": 1}}, {"train_split": [["a"]]}, {"class_names": 7},
    {"class_names": {"a": 1}}, {"flip_probability": "x"}, {"on_bad_sample": ["skip"]}, {"_target_": ["os.system"]},
    {"_target_": None}, {"_target_": "os.system"}, {"colour": "red"}, {"aspect_ratio_groups": "3"},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_values_that_cannot_be_are_one_line(tmp_path, number):
    with pytest.raises(LSHFMError) as failure:
        datamodule = build_datamodule({**VOC, "root": str(tmp_path), **WRONG[number]}, drawn_below=tmp_path)
        datamodule.prepare_data()
        datamodule.setup("test")
    assert len(str(failure.value).splitlines()) <= 2
    assert len(str(failure.value)) < 600


@pytest.mark.parametrize(
    "changes",
    [{"val_annotations": 3}, {"val_images": ["a"]}, {"category_ids": {}}, {"val_annotations": "\0"}],
)
def test_values_of_coco_that_cannot_be_are_one_line(tmp_path, changes):
    with pytest.raises(LSHFMError) as failure:
        build_datamodule({**COCO, "root": str(tmp_path), **changes}).setup("test")
    assert len(str(failure.value).splitlines()) <= 2
