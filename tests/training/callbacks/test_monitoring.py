"""Monitoring of a run: event files, `metrics.csv` and the lines on the console."""

import csv
import io
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from small_detectors import (
    ALL_LABELS,
    CLASS_NAMES,
    STUDENTS,
    TEACHER_OF,
    RandomData,
    quiet_trainer,
    random_batch,
    short_schedule,
    small_detector,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import LSHL2, Terms, tap_of
from lshfm_pl.training import DetectionModule, DistillationModule
from lshfm_pl.training.callbacks.monitoring import (
    DetectionPictures,
    EpochLine,
    Hyperparameters,
    RunSummary,
    StepMonitor,
)

CLIPPED_TO = 0.5


class WatchedData(RandomData):
    """Random batches that also describe themselves and have a validation set of single images."""

    def __init__(self):
        super().__init__(num_batches=4)
        images = [random_batch(seed, num_images=1) for seed in range(3)]
        self.val_set = [(image[0], target[0]) for image, target in images]

    def describe(self):
        classes = dict.fromkeys(CLASS_NAMES, 8)
        return {"train": {"images": 1200, "objects": 24, "classes": classes, "difficult": 2}}


@pytest.fixture(scope="module", params=STUDENTS)
def watched(request, tmp_path_factory):
    """(folder, module, what was logged) of three epochs with an LSHL2 loss, validation after the second."""
    folder = tmp_path_factory.mktemp("run")
    student, teacher = small_detector(request.param), small_detector(TEACHER_OF[request.param], seed=1)
    head = LSHL2(tap_of(teacher).num_features, 32, beta=2.0)
    module = DistillationModule(
        student, teacher, Terms.of(lshl2=head), short_schedule(epochs=3, lr=1e-4, reference_batch_size=8)
    )
    callbacks = [
        RunSummary("outputs/x"), EpochLine(), StepMonitor(), DetectionPictures(2, 1, 0.0),
        Hyperparameters({"distill": "lshl2", "beta": 2.0, "num_hashes": None}),
    ]  # fmt: skip
    loggers = [
        TensorBoardLogger(folder, name="", version="tensorboard"),
        CSVLogger(folder, name="", version=""),
    ]
    trainer = quiet_trainer(
        folder, max_epochs=3, limit_val_batches=1.0, check_val_every_n_epoch=2, log_every_n_steps=3,
        gradient_clip_val=CLIPPED_TO, callbacks=callbacks, logger=loggers,
    )  # fmt: skip
    records = []
    handler = SimpleNamespace(level=0, handle=lambda record: records.append(record.getMessage()))
    logger = logging.getLogger("lshfm_pl.training.callbacks.monitoring")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    data = WatchedData()
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    logger.removeHandler(handler)
    return folder, module, records


@pytest.fixture(scope="module")
def events(watched):
    accumulator = EventAccumulator(str(watched[0] / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def values(events, tag):
    return [event.value for event in events.Scalars(tag)]


def test_every_loss_is_logged_with_its_share(events, watched):
    losses = [tag.removeprefix("train/") for tag in events.Tags()["scalars"] if tag.startswith("train/")]
    losses.remove("loss")
    assert {"mimic_l2", "mimic_lsh"} < set(losses)
    totals = values(events, "train/loss")
    assert [event.step for event in events.Scalars("train/loss")] == [2, 5, 8, 11]
    for name in losses:
        shares = values(events, f"share/{name}")
        expected = [
            value / total for value, total in zip(values(events, f"train/{name}"), totals, strict=True)
        ]
        assert shares == pytest.approx(expected, rel=1e-5)


def test_norm_is_that_of_the_gradient_before_clipping(events):
    norms = values(events, "monitor/grad_norm")
    assert len(norms) == 4
    assert min(norms) > CLIPPED_TO


def test_gradient_norm_is_the_root_of_the_summed_squares():
    module = torch.nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    logged = {}
    module.log = logged.__setitem__
    trainer = SimpleNamespace(log_every_n_steps=5, global_step=4)
    StepMonitor().on_before_optimizer_step(trainer, module, None)
    assert logged == {"monitor/grad_norm": torch.tensor(5.0)}
    logged.clear()
    StepMonitor().on_before_optimizer_step(SimpleNamespace(log_every_n_steps=5, global_step=5), module, None)
    assert logged == {}


def test_speed_and_bits_are_logged(events):
    assert all(0 < value < 1e5 for value in values(events, "monitor/images_per_second"))
    bits = values(events, "monitor/bit_agreement")
    assert len(bits) == 4
    assert all(0.3 < value < 1 for value in bits)


def test_validation_and_test_figures_are_logged_by_class_too(events):
    tags = set(events.Tags()["scalars"])
    for figure in ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP", "AP/circle", "AP50/star", "voc07_AP/square"):
        assert {f"val/{figure}", f"test/{figure}"} <= tags


def test_pictures_are_of_the_fixed_images_of_the_validated_epochs(events, watched):
    (event,) = events.Images("val/detections")
    assert (
        event.step == 7
    )  # the last step of the second epoch, like its AP; the validation before training drew nothing
    picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert picture.shape[1] == 2 * (256 + 6) + 6
    first, _ = WatchedData().val_set[0]
    shown = picture[28 : 28 + 256 : 2, 6 : 6 + 256 : 2]
    # The side of the ground truth: the image itself, except for the three boxes.
    assert (shown == first.permute(1, 2, 0).numpy()).all(axis=2).mean() > 0.6


def test_settings_stand_beside_the_final_figures(events, watched):
    metadata = events.summary_metadata["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(metadata.plugin_data.content)
    settings = dict(content.session_start_info.hparams)
    assert settings["distill"].string_value == "lshl2"
    assert settings["beta"].number_value == 2
    assert settings["num_hashes"].string_value == "none"
    assert settings["teacher"].string_value == watched[1].teacher.config["name"]
    for name in ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP"):
        assert values(events, f"final/{name}") == pytest.approx([watched[1].results[name]], abs=1e-4)


def test_csv_has_the_same_columns(watched, events):
    with (watched[0] / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    of_steps = [row for row in rows if row["monitor/grad_norm"]]
    assert [int(row["step"]) for row in of_steps] == [2, 5, 8, 11]
    for tag in ("monitor/grad_norm", "monitor/bit_agreement", "share/mimic_l2", "monitor/images_per_second"):
        assert [float(row[tag]) for row in of_steps] == pytest.approx(values(events, tag), rel=1e-4)
    assert sum(bool(row["val/AP50"]) for row in rows) == 2  # before training, and after the second epoch


def test_summary_says_what_is_trained_on_which_data(watched):
    _, module, records = watched
    lines = dict(record.split(maxsplit=1) for record in records if not record.startswith(("epoch", "runs")))
    trainable = sum(parameter.numel() for parameter in module.detector.parameters())
    assert (
        lines["student"] == f"{module.detector.config['name']}: {trainable:,} parameters trainable, 0 frozen"
    )
    assert lines["teacher"].endswith("parameters, all frozen")
    assert lines["train"] == "1,200 images, 24 objects (circle 8, square 8, star 8), 2 difficult"
    assert lines["steps"] == (
        "4 per epoch, 12 in 3 epochs, of 2 images each (devices 1 × batch 2 × accumulation 1)"
    )
    assert lines["lr"].startswith("2.5e-05 = 0.0001 × 2 / 8 images per step; multistep decay")
    assert lines["output"] == "outputs/x"
    assert "runs on   cpu, precision 32-true" in records


def test_one_line_an_epoch_has_losses_figures_speed_and_the_time_left(watched):
    lines = [record for record in watched[2] if record.startswith("epoch")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for line in lines:
        total, parts = re.search(r"loss ([\d.]+) \((.+?)\)", line).groups()
        named = dict(part.rsplit(" ", 1) for part in parts.split(", "))
        assert {"mimic_l2", "mimic_lsh"} < set(named)
        assert sum(float(value) for value in named.values()) == pytest.approx(float(total), abs=0.005)
        assert re.search(r"[\d.]+ images/s", line)
    assert [bool(re.search(r", AP [\d.]+ AP50 [\d.]+,", line)) for line in lines] == [False, True, False]
    assert [bool(re.search(r"\d:\d\d:\d\d left$", line)) for line in lines] == [True, True, False]


def test_losses_of_the_line_are_means_over_the_epoch(tmp_path, caplog):
    module = DetectionModule(small_detector(STUDENTS[1]), short_schedule())
    seen = []

    class Keep(EpochLine):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(float(outputs["loss"]))
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    with caplog.at_level(logging.INFO, logger="lshfm_pl.training.callbacks.monitoring"):
        quiet_trainer(tmp_path, callbacks=[Keep()]).fit(module, datamodule=RandomData(num_batches=3))
    told = float(re.search(r"loss ([\d.]+)", next(text for text in caplog.messages if "1/1" in text))[1])
    assert told == pytest.approx(sum(seen) / 3, abs=1e-3)


def test_the_background_that_a_retinanet_scores_does_not_stop_the_pictures(tmp_path):
    module = DetectionModule(small_detector(STUDENTS[1], **ALL_LABELS), short_schedule())
    trainer = quiet_trainer(
        tmp_path, callbacks=[DetectionPictures(1, 1, score_threshold=0.0)], limit_val_batches=1,
        log_every_n_steps=1, logger=TensorBoardLogger(tmp_path, name="", version="pictures"),
    )  # fmt: skip
    trainer.fit(module, datamodule=WatchedData())
    accumulator = EventAccumulator(str(tmp_path / "pictures"), size_guidance={"images": 0})
    assert len(accumulator.Reload().Images("val/detections")) == 1


def test_monitoring_changes_nothing_of_the_training(tmp_path):
    def weights(callbacks):
        module = DetectionModule(small_detector(STUDENTS[0]), short_schedule())
        torch.manual_seed(1)
        trainer = quiet_trainer(
            tmp_path, callbacks=callbacks, log_every_n_steps=1, limit_val_batches=1,
            logger=TensorBoardLogger(tmp_path, name="", version="") if callbacks else False,
        )  # fmt: skip
        trainer.fit(module, datamodule=WatchedData())
        return module.state_dict()

    plain, watched = (
        weights([]),
        weights([StepMonitor(), EpochLine(), RunSummary("x"), DetectionPictures(1, 1)]),
    )
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_every_callback_can_be_switched_off(tmp_path):
    names = ("summary", "epoch_line", "monitor", "images", "hyperparameters")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(
            "train", overrides=[f"output_dir={tmp_path}", *(f"callbacks.{name}=null" for name in names)]
        )
    assert [name for name, callback in config.callbacks.items() if callback is None] == list(names)


def test_no_pictures_at_all_are_asked_for_by_null():
    with pytest.raises(LSHFMError, match="for no pictures give callbacks.images=null"):
        DetectionPictures(num_images=0)


def test_epoch_resumed_in_its_validation_has_a_line_with_its_figures(caplog):
    module = DetectionModule(small_detector(STUDENTS[1]), short_schedule())
    module.results = {"AP": 12.34, "AP50": 40.0}
    state = SimpleNamespace(fn="fit")
    trainer = SimpleNamespace(is_global_zero=True, world_size=2, current_epoch=3, max_epochs=9, state=state)
    line = EpochLine()
    line.on_train_start(trainer, module)
    line.on_validation_end(trainer, module)
    with caplog.at_level(logging.INFO, logger="lshfm_pl.training.callbacks.monitoring"):
        line.on_train_epoch_end(trainer, module)
    assert caplog.messages[-1] == "epoch 4/9: AP 12.3 AP50 40.0"
