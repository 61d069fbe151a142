"""`data.on_bad_sample=skip`: the replacements of images that cannot be read."""

import logging
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from voc_files import object_xml, set_annotation, write_many

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.sampler import Draw
from lshfm_pl.data.voc.datamodule import VOCDataModule
from lshfm_pl.errors import LSHFMError

BAD = (3, 4, 11)


@pytest.fixture
def folder(tmp_path):
    """22 training images, three of them broken; the aspect ratios make several groups."""
    folder = write_many(tmp_path / "set", "train", 22)
    write_many(folder, "val", 3, first=100)
    for index in BAD:
        path = folder / "JPEGImages" / f"{index:06d}.png"
        path.write_bytes(path.read_bytes()[:300])
    return folder


def make(folder, **settings):
    datamodule = not_set_up(folder, **settings)
    datamodule.setup()
    return datamodule


def not_set_up(folder, **settings):
    settings = {"num_workers": 0, "batch_size": 2, "on_bad_sample": "skip", **settings}
    return VOCDataModule(root=folder, train_split="train", val_split="val", **settings)


def ids_of(batches):
    return [[target["image_id"].item() for target in targets] for _, targets in batches]


def epoch_of(datamodule, epoch=0):
    loader = datamodule.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    wanted = [[draw.index for draw in batch] for batch in loader.batch_sampler]
    return wanted, ids_of(loader)


@pytest.mark.parametrize("epoch", [0, 1])
def test_only_bad_images_are_replaced(folder, epoch):
    wanted, had = epoch_of(make(folder), epoch)
    assert len(had) == len(wanted) == 11
    for wanted_batch, batch in zip(wanted, had, strict=True):
        for wanted_id, image_id in zip(wanted_batch, batch, strict=True):
            assert image_id not in BAD
            assert (image_id != wanted_id) == (wanted_id in BAD)


def test_a_replacement_depends_on_seed_epoch_and_index_alone(folder):
    dataset = make(folder, seed=1).train_set

    def replaced(dataset, draw):
        return dataset[draw][1]["image_id"].item()

    draws = [Draw(index, epoch) for epoch in range(6) for index in BAD]
    expected = [replaced(dataset, draw) for draw in draws]
    assert len(set(expected)) > 3
    assert [replaced(make(folder, seed=1).train_set, draw) for draw in draws[::-1]] == expected[::-1]
    assert [replaced(make(folder, seed=2).train_set, draw) for draw in draws] != expected
    image, target = dataset[draws[0]]
    same_image, same_target = dataset[Draw(expected[0], draws[0].epoch)]
    assert torch.equal(image, same_image)
    assert torch.equal(target["boxes"], same_target["boxes"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_counts_come_back_from_the_workers(folder, num_workers):
    datamodule = make(folder, num_workers=num_workers)
    expected = epoch_of(make(folder))
    assert epoch_of(datamodule) == expected
    assert datamodule.train_set.is_bad.nonzero().flatten().tolist() == list(BAD)
    skipped = datamodule.skipped()
    assert [fault.image_id for fault in skipped] == [f"set/{index:06d}" for index in BAD]
    assert {fault.kind for fault in skipped} == {"image-truncated"}


def test_images_with_bad_annotations_are_left_out_from_the_start(folder):
    set_annotation(folder, "<annotation>", "000000")
    datamodule = make(folder)
    assert len(datamodule.train_set) == 21
    assert [fault.image_id for fault in datamodule.skipped()] == ["set/000000"]
    list(datamodule.train_dataloader())
    assert [fault.kind for fault in datamodule.skipped()] == ["annotation-broken"] + ["image-truncated"] * 3


def test_an_image_with_two_faults_is_skipped_once(folder):
    set_annotation(folder, f"<annotation>{object_xml(box=(9, 9, 2, 2)) * 2}</annotation>", "000000")
    assert len(make(folder).skipped()) == 1


def test_evaluation_stops_whatever_is_said_of_training(folder):
    path = folder / "JPEGImages" / "000101.png"
    path.write_bytes(b"")
    with pytest.raises(LSHFMError, match=r"000101\.png: has 0 bytes"):
        make(folder)
    set_annotation(folder, "<annotation>", "000102")
    with pytest.raises(LSHFMError, match=r"000102\.xml"):
        make(folder)


def test_many_bad_images_in_a_row_end_the_run(folder):
    for path in (folder / "JPEGImages").glob("0000*"):
        path.write_bytes(b"")
    with pytest.raises(LSHFMError, match=r"100 images in a row .* lshfm_pl\.check_data"):
        make(folder).train_set[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_by_default_a_bad_image_stops_and_is_named(folder, num_workers):
    datamodule = make(folder, num_workers=num_workers, on_bad_sample="error")
    with pytest.raises(LSHFMError, match=r"00000\d\.png|000011\.png") as stopped:
        list(datamodule.train_dataloader())
    assert "check_data with the same data=… lists all bad images; data.on_bad_sample=skip" in str(
        stopped.value
    )


def test_other_choices_are_refused(folder):
    with pytest.raises(LSHFMError, match=r"data\.on_bad_sample: expected error or skip, found 'ignore'"):
        make(folder, on_bad_sample="ignore")


class Learner(pl.LightningModule):
    def __init__(self, fails_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fails_at = fails_at

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fails_at:
            raise RuntimeError("on purpose")
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(datamodule, folder, learner, **settings):
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(learner, datamodule=datamodule)


def test_the_end_of_training_lists_what_was_skipped(folder, caplog):
    with caplog.at_level(logging.WARNING):
        fit(make(folder), folder, Learner())
    (record,) = (record for record in caplog.records if "skipped" in record.message)
    head, *lines = record.message.splitlines()
    assert head == "data.on_bad_sample=skip: 3 training images were skipped:"
    assert [Path(line.split(": ")[0]).stem for line in lines] == [f"{index:06d}" for index in BAD]


def test_a_failure_lists_what_was_skipped_until_then(folder, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="on purpose"):
        fit(make(folder), folder, Learner(fails_at=10))
    assert "training images were skipped" in caplog.text


def test_nothing_is_said_where_nothing_was_skipped(folder, caplog):
    for index in BAD:
        write_many(folder, "again", 1, first=index)
    with caplog.at_level(logging.WARNING):
        fit(make(folder), folder, Learner())
    assert "skip" not in caplog.text


class NoteOfEachRank(Learner):
    """After training, writes the skipped images that rank 0 knows, and the number of steps of each process."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def teardown(self, stage):
        datamodule = self.trainer.datamodule
        note = (self.trainer.global_step, datamodule.train_set.is_bad.nonzero().flatten().tolist())
        (self.folder / f"rank_{self.trainer.global_rank}.txt").write_text(repr(note))


@pytest.mark.slow
def test_two_processes_stay_in_step_and_list_together(folder, tmp_path):
    settings = {"devices": 2, "strategy": "ddp_fork"}
    fit(not_set_up(folder), folder, NoteOfEachRank(tmp_path), **settings)
    notes = [(tmp_path / f"rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert notes == [repr((6, list(BAD)))] * 2


def test_the_log_of_the_check_collects_and_that_of_training_raises(folder):
    set_annotation(folder, "<annotation>", "000000")
    log = FaultLog("skip")
    datamodule = make(folder)
    datamodule.read_set("train", log)
    assert [fault.image_id for fault in log.errors] == ["set/000000"]
    assert log.bad_images() == {"set/000000"}
    with pytest.raises(LSHFMError, match=r"000000\.xml:1: can't be read"):
        datamodule.read_set("train", FaultLog())
