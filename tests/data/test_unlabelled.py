"""Unlabelled pictures: how they are found, and how batches mix them with labelled images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from voc_files import write_image, write_many

from lshfm_pl.data.faults import FaultError, FaultLog
from lshfm_pl.data.unlabelled import UNLABELLED, num_unlabelled, read_pictures
from lshfm_pl.data.voc.datamodule import VOCDataModule
from lshfm_pl.errors import LSHFMError

NUM_LABELLED, NUM_PICTURES = 11, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc") / "set"
    write_many(folder, "train", NUM_LABELLED)
    write_many(folder, "val", 3, first=100)
    (folder / "pool" / "deep").mkdir(parents=True)
    for index in range(NUM_PICTURES):
        write_image(folder / "pool" / "deep" / f"p{index}.jpg", size=(40 + 5 * index, 60), seed=index)
    return folder


def make(folder, **settings):
    defaults = {"train_split": "train", "val_split": "val", "num_workers": 0, "batch_size": 4}
    datamodule = VOCDataModule(root=folder, **{**defaults, "unlabelled": str(folder / "pool"), **settings})
    datamodule.setup()
    return datamodule


def trainer_of(rank, world_size, epoch=0, completed=0):
    progress = SimpleNamespace(current=SimpleNamespace(processed=epoch, completed=completed))
    fit_loop = SimpleNamespace(
        epoch_progress=progress,
        restarting=completed > 0,
        epoch_loop=SimpleNamespace(batch_progress=progress),
    )
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        overfit_batches=0, world_size=world_size, global_rank=rank, fit_loop=fit_loop, strategy=strategy
    )


def batches_of(datamodule, epoch=0, **place):
    datamodule.trainer = trainer_of(place.pop("rank", 0), place.pop("world_size", 1), epoch, **place)
    return list(datamodule.train_dataloader())


def marks(batch):
    return [UNLABELLED in target for target in batch[1]]


def ids(batch, *, unlabelled):
    return [int(target["image_id"]) for target in batch[1] if (UNLABELLED in target) == unlabelled]


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in [
            *zip(one[0], other[0], strict=True),
            *((x[key], y[key]) for x, y in zip(one[1], other[1], strict=True) for key in x | y),
        ]
    )


def test_epoch_is_a_pass_over_the_labelled_images_with_the_share_of_pictures_in_each_batch(folder):
    batches = batches_of(make(folder, batch_size=4, unlabelled_share=0.25))
    assert len(batches) == -(-NUM_LABELLED // 3)
    assert all(marks(batch) == [False, False, False, True] for batch in batches)
    assert {index for batch in batches for index in ids(batch, unlabelled=False)} == set(range(NUM_LABELLED))
    boxes = [target["boxes"].shape for batch in batches for target in batch[1] if UNLABELLED in target]
    assert set(boxes) == {(0, 4)}


def test_pictures_come_in_passes_of_their_own_through_the_epochs(folder):
    datamodule = make(folder, batch_size=4, unlabelled_share=0.75, aspect_ratio_groups=0)
    found = [
        index
        for epoch in range(2)
        for batch in batches_of(datamodule, epoch)
        for index in ids(batch, unlabelled=True)
    ]
    first, second, third = found[:9], found[9:18], found[18:27]
    pictures = set(range(NUM_LABELLED, NUM_LABELLED + NUM_PICTURES))
    assert set(first) == set(second) == set(third) == pictures
    assert first != second


def test_numbers_of_the_pass_are_the_marks(folder):
    batches = batches_of(make(folder, batch_size=4, unlabelled_share=0.75, aspect_ratio_groups=0))
    passes = [int(target[UNLABELLED]) for batch in batches for target in batch[1] if UNLABELLED in target]
    assert passes == [index // NUM_PICTURES for index in range(len(passes))]


@pytest.mark.parametrize("epoch", [0, 2])
def test_batches_do_not_depend_on_workers_or_processes(folder, epoch):
    one = batches_of(make(folder, batch_size=4), epoch)
    assert equal(one, batches_of(make(folder, batch_size=4, num_workers=2), epoch))
    halves = [batches_of(make(folder, batch_size=2), epoch, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(one, *halves, strict=True):
        for unlabelled in (False, True):
            together = [index for part in parts for index in ids(part, unlabelled=unlabelled)]
            assert together == ids(whole, unlabelled=unlabelled)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch_continues_with_the_same_pictures(folder, workers):
    datamodule = make(folder, num_workers=workers)
    whole = batches_of(datamodule, 1)
    assert equal(whole[2:], batches_of(datamodule, 1, completed=2))


def test_without_pictures_batches_are_those_of_before(folder):
    datamodule = make(folder, unlabelled=None)
    assert datamodule.beside() is None
    batches = batches_of(datamodule, 1)
    assert [len(batch[0]) for batch in batches] == [4, 4, 4]
    assert all(UNLABELLED not in target for batch in batches for target in batch[1])


def test_labelled_part_of_a_batch_is_that_of_a_run_with_such_batches_alone(folder):
    mixed = batches_of(make(folder, batch_size=4, unlabelled_share=0.5), 1)
    alone = batches_of(make(folder, batch_size=2, unlabelled=None), 1)
    labelled = [(batch[0][:2], batch[1][:2]) for batch in mixed]
    assert equal(labelled, alone)


@pytest.mark.parametrize(
    ("size", "share", "number"),
    [(2, 0.5, 1), (8, 0.5, 4), (8, 0.9, 7), (8, 0.99, 7), (8, 0.01, 1), (5, 0.5, 3)],
)
def test_batch_keeps_an_image_of_each_kind(size, share, number):
    assert num_unlabelled(size, share) == number


def test_list_names_pictures_absolutely_or_relative_to_itself_or_the_root(folder, tmp_path):
    write_image(tmp_path / "near.png", size=(30, 20), seed=1)
    listed = [str(folder / "pool/deep/p1.jpg"), "near.png", "pool/deep/p2.jpg", "# a comment", "", "near.png"]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    records = read_pictures([tmp_path / "list.txt"], folder, "data.unlabelled", FaultLog())
    assert sorted(record.image_path.name for record in records) == ["near.png", "p1.jpg", "p2.jpg"]
    assert {(record.width, record.height) for record in records} == {(30, 20), (45, 60), (50, 60)}


def test_photo_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
    (record,) = read_pictures([tmp_path], tmp_path, "data.unlabelled", FaultLog())
    assert (record.width, record.height) == (20, 30)


def test_damaged_pictures_stop_or_are_left_out(folder, tmp_path):
    write_image(tmp_path / "good.jpg", size=(30, 20), seed=1)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(FaultError, match="bad.jpg.*\n.*on_bad_sample=skip"):
        make(folder, unlabelled=str(tmp_path))
    datamodule = make(folder, unlabelled=str(tmp_path), on_bad_sample="skip")
    assert [record.image_path.name for record in datamodule.unlabelled_set.records] == ["good.jpg"]
    assert [fault.path.name for fault in datamodule.skipped()] == ["bad.jpg"]


def test_pictures_that_are_validation_images_are_told(tmp_path, caplog):
    write_many(tmp_path / "set", "train", 2)
    write_many(tmp_path / "set", "val", 1, first=100)
    write_image(tmp_path / "set" / "JPEGImages" / "000100.png", seed=999)
    (tmp_path / "pool").mkdir()
    write_image(tmp_path / "pool" / "copy.png", seed=999)
    make(tmp_path / "set", batch_size=2, unlabelled=str(tmp_path / "pool"))
    assert "1 images of data.val_split that are unlabelled training images too" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlabelled": "empty"}, "data.unlabelled: it has no picture"),
        ({"unlabelled": "nowhere"}, "nowhere"),
        ({"unlabelled": []}, "data.unlabelled: expected a folder"),
        ({"unlabelled": 3}, "data.unlabelled: expected a folder"),
        ({"unlabelled_share": 0}, "data.unlabelled_share: expected a number between 0 and 1, found 0"),
        ({"unlabelled_share": 1.0}, "data.unlabelled_share"),
        ({"unlabelled_share": "half"}, "data.unlabelled_share"),
        ({"batch_size": 1}, "data.batch_size=1"),
    ],
)
def test_impossible_settings_are_refused(folder, tmp_path, settings, message):
    (tmp_path / "empty").mkdir()
    if isinstance(settings.get("unlabelled"), str):
        settings = {"unlabelled": str(tmp_path / settings["unlabelled"])}
    with pytest.raises(LSHFMError, match=message):
        make(folder, **settings)


def test_lists_have_the_rules_of_other_lists(folder, tmp_path):
    names = [
        "D:\\pool\\deep\\p0.jpg",
        '"pool/deep/p1.jpg"',
        "pool/deep/p2.jpg  # good",
        "../x/pool/deep/P3.JPG",
    ]
    (tmp_path / "list.txt").write_bytes("\r\n".join(["# list", "", *names]).encode("utf-16"))
    log = FaultLog()
    records = read_pictures([tmp_path / "list.txt"], folder, "data.unlabelled", log)
    assert [record.image_path.name for record in records] == ["p0.jpg", "p1.jpg", "p2.jpg", "p3.jpg"]
    assert sorted(fault.kind for fault in log.faults) == ["encoding", "file-name-read", "split-line-read"]
