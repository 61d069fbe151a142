"""The choices of `compare` for pictures of given sizes, numbers and objects."""

from ast import literal_eval
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.dataset import DetectionRecord
from lshfm_pl.runs.defaults import choose, choose_side, measure

RULES = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "fit" / "default.yaml"))
SMALL = {"backbone_weights": None, "anchor_sizes": [[24], [40], [56], [80], [112]]}
LARGE = {"backbone_weights": "imagenet", "anchor_sizes": [[32], [64], [128], [256], [512]]}
FEW_LEVELS = {"backbone_weights": "imagenet", "anchor_sizes": [[32], [64], [128], [256]]}
ALL_SIZES = {"backbone_weights": "imagenet", "anchor_sizes": [[32, 64, 128, 256, 512]] * 3}
OCTAVES = {"backbone_weights": None, "anchor_sizes": [[20, 25, 32]] * 5}
ONE_MAP = {"backbone_weights": None, "anchor_sizes": [[32, 64, 128, 256, 512]]}


def pictures(count, width, height, sizes):
    """Pictures of one size, each with a square object of each of the sizes in pixels."""
    boxes = np.array([(0, 0, size, size) for size in sizes], dtype=np.float32).reshape(-1, 4)
    ones = np.ones(len(sizes), dtype=np.int64)
    record = DetectionRecord("x", Path("x.jpg"), width, height, boxes, ones, ones == 0)
    return measure([record] * count)


def choices_for(measured, model=SMALL, role="student", batch_size=None, epochs=None, teacher=None, **trainer):
    side, reason = choose_side(measured, RULES, from_scratch=model["backbone_weights"] is None)
    return choose(
        measured,
        RULES,
        role=role,
        model=model,
        side=side,
        side_reason=reason,
        batch_size=batch_size,
        epochs=epochs,
        trainer=trainer,
        other=teacher or {"architecture": "fasterrcnn"},
    )


def chosen(measured, *arguments, **settings):
    choices = choices_for(measured, *arguments, **settings)
    return {item.partition("=")[0]: item.partition("=")[2] for choice in choices for item in choice.overrides}


@pytest.mark.parametrize(
    ("width", "height", "sizes", "model", "expected"),
    [
        (640, 480, [80, 100, 100, 100], SMALL, 160),  # microscope images
        (640, 480, [200, 300], SMALL, 128),
        (1920, 1080, [20, 40], SMALL, 256),  # more would be needed, but this is the limit for small detectors
        (1920, 1080, [20, 40], LARGE, 800),
        (100, 90, [5, 10], SMALL, 64),  # never larger than the pictures
        (20, 20, [5], SMALL, 32),
        (640, 480, [], SMALL, 128),
    ],
)
def test_side_is_so_large_that_small_objects_can_be_seen(width, height, sizes, model, expected):
    settings = chosen(pictures(100, width, height, sizes), model)
    assert settings["model.min_size"] == f"[{expected}]"
    long_side = int(settings["model.max_size"])
    assert long_side % 32 == 0
    assert long_side >= expected * max(width, height) / min(width, height)


@pytest.mark.parametrize("model", [SMALL, OCTAVES, ONE_MAP])
@pytest.mark.parametrize("sizes", [[60], [40, 100, 100, 100], [2, 400], [1e-3]])
def test_anchors_have_the_shape_of_the_model_and_grow_from_level_to_level(model, sizes):
    anchors = OmegaConf.create(chosen(pictures(50, 640, 480, sizes), model)["model.anchor_sizes"])
    assert [len(level) for level in anchors] == [len(level) for level in model["anchor_sizes"]]
    first = [level[0] for level in anchors] if len(anchors) > 1 else list(anchors[0])
    assert first[0] >= RULES["least_anchor"]
    assert all(low < high for low, high in pairwise(first))


def test_anchors_cover_the_objects_at_the_chosen_size():
    anchors = OmegaConf.create(chosen(pictures(50, 640, 480, [40, 60, 100, 160, 200]))["model.anchor_sizes"])
    scale = 192 / 480
    assert anchors[0][0] < 60 * scale
    assert anchors[-1][0] > 160 * scale


def test_batch_shrinks_for_large_images_and_for_few():
    assert chosen(pictures(1000, 640, 480, [60]))["data.batch_size"] == "8"
    assert chosen(pictures(100, 640, 480, [60]))["data.batch_size"] == "4"
    assert chosen(pictures(5, 640, 480, [60]))["data.batch_size"] == "2"
    assert chosen(pictures(1000, 1920, 1080, [20]), LARGE)["data.batch_size"] == "2"
    assert "data.batch_size" not in chosen(pictures(1000, 640, 480, [60]), batch_size=3)


def test_epochs_give_a_number_of_steps_and_the_last_one_is_validated():
    for count in (5, 40, 205, 700, 5000, 100_000):
        for role in ("teacher", "student"):
            settings = chosen(pictures(count, 640, 480, [60]), role=role)
            epochs, every = int(settings["schedule.epochs"]), int(settings["trainer.check_val_every_n_epoch"])
            assert epochs % every == 0
            assert RULES["least_epochs"][role] <= epochs <= RULES["most_epochs"][role] + every
    assert chosen(pictures(205, 640, 480, [60]), role="teacher")["schedule.epochs"] == "36"
    assert chosen(pictures(205, 640, 480, [60]), epochs=2)["schedule.epochs"] == "2"


def test_detectors_from_imagenet_weights_have_their_own_schedule():
    assert chosen(pictures(205, 640, 480, [60]), LARGE)["schedule"] == "voc_24e"
    assert "schedule" not in chosen(pictures(205, 640, 480, [60]), SMALL)


def test_detectors_that_start_from_a_whole_one_are_fine_tuned_with_its_anchors():
    settings = chosen(pictures(205, 640, 480, [60]), {**SMALL, "weights": "COCO_V1"})
    assert settings["schedule"] == "finetune"
    assert "model.anchor_sizes" not in settings
    assert "model.anchor_sizes" in chosen(pictures(205, 640, 480, [60]), SMALL)


def test_pictures_without_objects_keep_the_anchors_of_the_model():
    assert "model.anchor_sizes" not in chosen(pictures(100, 640, 480, []))


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, "3 as given, 13 steps each, 39 in all;"),
        (
            {"limit_train_batches": 1.0, "overfit_batches": 0.0, "max_steps": -1, "devices": 1},
            "13 steps each, 39 in",
        ),
        ({"limit_train_batches": 2}, "2 steps each, 6 in all (limited by trainer.limit_train_batches=2);"),
        ({"limit_train_batches": 1}, "1 step each, 3 in all (limited by trainer.limit_train_batches=1);"),
        (
            {"limit_train_batches": 0.5},
            "6 steps each, 18 in all (limited by trainer.limit_train_batches=0.5);",
        ),
        ({"limit_train_batches": 50}, "13 steps each, 39 in all;"),
        ({"overfit_batches": 3}, "3 steps each, 9 in all (limited by trainer.overfit_batches=3);"),
        ({"fast_dev_run": True}, "1 step each, 1 in all (limited by trainer.fast_dev_run=True);"),
        ({"max_steps": 20}, "13 steps each, 20 in all (limited by trainer.max_steps=20);"),
        ({"accumulate_grad_batches": 4}, "4 steps each, 12 in all;"),
        ({"devices": 2}, "7 steps each, 21 in all;"),
        ({"devices": [0, 1], "num_nodes": 2}, "4 steps each, 12 in all;"),
        ({"devices": "auto"}, "13 steps each, 39 in all;"),
    ],
)
def test_logged_steps_are_those_that_the_trainer_makes(trainer, expected):
    choices = choices_for(pictures(104, 640, 480, [60]), batch_size=8, epochs=3, **trainer)
    (line,) = [choice.text for choice in choices if choice.subject == "epochs"]
    assert expected in line


def test_limits_of_the_trainer_do_not_make_more_epochs():
    few = chosen(pictures(205, 640, 480, [60]), limit_train_batches=1)
    assert few["schedule.epochs"] == chosen(pictures(205, 640, 480, [60]))["schedule.epochs"]


@pytest.mark.parametrize(("teacher", "expected"), [(SMALL, str(SMALL["anchor_sizes"])), (ONE_MAP, None)])
def test_anchors_of_a_fitting_teacher_are_used_if_there_is_no_object_to_measure(teacher, expected):
    model = {"backbone_weights": None, "anchor_sizes": [[1]] * 5}
    teacher = {"architecture": "fasterrcnn", **teacher}
    found = chosen(pictures(10, 640, 480, []), model, teacher=teacher)
    assert found.get("model.anchor_sizes") == (expected and expected.replace(" ", ""))
    measured = chosen(pictures(10, 640, 480, [80, 100]), model, teacher=teacher)
    assert (
        measured["model.anchor_sizes"]
        == chosen(pictures(10, 640, 480, [80, 100]), model)["model.anchor_sizes"]
    )


def test_anchors_are_as_many_as_the_model_has_levels_and_sizes():
    measured = pictures(100, 640, 480, range(40, 240, 2))
    few, all_sizes = (
        literal_eval(chosen(measured, model)["model.anchor_sizes"]) for model in (FEW_LEVELS, ALL_SIZES)
    )
    assert [len(level) for level in few] == [1, 1, 1, 1]
    assert [len(level) for level in all_sizes] == [5, 5, 5]
    assert all(level == all_sizes[0] for level in all_sizes)
    for sizes in ([size for (size,) in few], all_sizes[0]):
        assert all(after >= 1.2 * before for before, after in pairwise(sizes))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (LARGE, [[32], [64], [128], [256], [512]]),
        (ALL_SIZES, [[32, 64, 128, 256, 512]] * 3),
        (OCTAVES, [[32, 40, 51], [64, 81, 102], [128, 161, 203], [256, 323, 406], [512, 645, 813]]),
    ],
)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_anchors_beside_an_fcos_fit_its_levels(model, expected, role):
    measured, teacher = pictures(100, 640, 480, [20, 40]), {"architecture": "fcos"}
    found = chosen(measured, model, role=role, teacher=teacher)
    assert literal_eval(found["model.anchor_sizes"]) == expected
    assert chosen(measured, model, role=role) != found
    assert "model.anchor_sizes" not in chosen(measured, {"backbone_weights": None}, teacher=teacher)
