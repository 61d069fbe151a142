"""Students that are trained from a teacher and pictures alone."""

import json

import pytest
import torch
from compositions import small_training
from distilled_students import STUDENT_OF
from hydra import compose, initialize_config_dir
from interruptions import Killed
from untrained_teachers import write_teacher
from voc_files import object_xml, write_image, write_voc

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.inputs import refuse_missing_inputs
from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.errors import LSHFMError
from lshfm_pl.evaluate import evaluate
from lshfm_pl.replay import replay
from lshfm_pl.reporting.finding import find_runs
from lshfm_pl.training.run import train

NAMES = (*SHAPE_CLASSES, "yak")
"""Classes of the teacher: those of the drawn scenes and one more."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher, `pool/` of pictures, and a file of weights without class names."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "pool").mkdir()
    for index in range(8):
        write_image(folder / "pool" / f"{index}.png", size=(64, 64), seed=index)
    write_teacher(folder / "teacher.ckpt", NAMES)
    content = torch.load(folder / "teacher.ckpt", weights_only=True)
    plain = {key.removeprefix("detector."): value for key, value in content["state_dict"].items()}
    torch.save(plain, folder / "unnamed.pth")
    return folder


def config_of(folder, *overrides):
    return small_training(
        folder,
        "data.num_train=8",
        "data.image_size=64",
        "data.train_labels=teacher",
        "distill.pseudo_labels.score=0.4",
        "model.min_size=[48,64]",
        f"teacher.checkpoint={folder}/teacher.ckpt",
        *overrides,
    )


def pictures_config(folder, *overrides):
    shapes = ("data.num_train", "data.num_val", "data.num_test", "data.image_size")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(
            "train",
            [
                "data=pictures", f"data.root={folder}/pool", "data.batch_size=4", "data.num_workers=0",
                "schedule=quickstart", "schedule.epochs=1", f"model={STUDENT_OF['retinanet']}",
                "model.min_size=[48,64]", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
                f"teacher.checkpoint={folder}/teacher.ckpt",
                *(item for item in overrides if not item.startswith(shapes)),
            ],
        )  # fmt: skip


def states(*folders):
    return [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in folders
    ]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["fixed", "share"])
def test_run_is_resumed_bit_identically_and_tested_on_annotations(tmp_path, folder, balance):
    settings = ("distill=lshl2", "distill.num_hashes=64", "distill.bias=median", f"distill.balance={balance}")
    stop = "+callbacks.stop={_target_: interruptions.StopAt, batch: 2}"
    of_whole, of_cut = f"output_dir={tmp_path}/whole", f"output_dir={tmp_path}/cut"
    results = train(config_of(folder, of_whole, *settings))
    assert results["test_set"]["images"] == 2
    assert results["distill"]["train_labels"] == "teacher"
    assert results["teacher"]["metrics"]["AP"] >= 0
    with pytest.raises(Killed):
        train(config_of(folder, of_cut, stop, *settings))
    resume = f"resume={tmp_path}/cut/checkpoints/last.ckpt"
    with pytest.raises(LSHFMError, match="data.train_labels: teacher → annotations"):
        train(config_of(folder, of_cut, resume, *settings, "data.train_labels=annotations", PLAIN))
    train(config_of(folder, of_cut, resume, "data.num_workers=2", *settings))
    assert_equal(*states(tmp_path / "whole", tmp_path / "cut"))


PLAIN = "distill.pseudo_labels.score=null"


@pytest.mark.slow
def test_skipped_step_is_repeated(tmp_path, folder):
    spoil = "+callbacks.spoil._target_=interruptions.SpoilWeights"
    train(config_of(folder, f"output_dir={tmp_path}/run", "schedule.epochs=1", "distill=l2", spoil))
    (file,) = (tmp_path / "run" / "nonfinite").glob("*.json")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        rows = replay(compose("replay", overrides=[f"file={file}"]))
    assert all(row["same"] for row in rows)


@pytest.mark.slow
def test_pictures_alone_train_a_student_that_is_evaluated_on_other_data(tmp_path, folder, caplog):
    caplog.set_level("INFO")
    run = tmp_path / "run"
    results = train(pictures_config(folder, f"output_dir={run}", "distill=l2", "schedule.ema_decay=0.5"))
    assert results["metrics"] == {}
    assert results["test_set"] is None
    assert results["weights"]["tested"] == "ema"
    assert json.loads((run / "results.json").read_text())["status"] == "done"
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"last.ckpt"}
    assert not (run / "checkpoints" / "best.ckpt").exists()
    assert "there is no validation set: no AP is measured" in caplog.text
    assert "done: there is no test set, so there are no figures" in caplog.text
    again = train(
        pictures_config(folder, f"output_dir={run}", "distill=l2", "schedule.ema_decay=0.5", "resume=auto")
    )
    assert again["config_hash"] == results["config_hash"]

    found = find_runs([run])
    assert not found.runs
    assert [aside.kind for aside in found.aside] == ["no figures"]

    labelled = {name: ((64, 64), [object_xml(SHAPE_CLASSES[1])]) for name in ("a", "b")}
    write_voc(tmp_path / "labelled", "val", labelled)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        given = [
            f"checkpoint={run}/checkpoints/last.ckpt",
            f"output_dir={tmp_path}/e",
            "trainer.accelerator=cpu",
        ]
        with pytest.raises(LSHFMError, match="expected a test set with labels, found pictures without"):
            evaluate(compose("evaluate", given))
        figures = evaluate(compose("evaluate", [*given, "data=auto", f"data.root={tmp_path}/labelled"]))
    assert figures["AP"] >= 0


@pytest.mark.slow
def test_features_alone_train_a_student_with_the_teachers_head_which_stays(tmp_path, folder):
    parts = ("student.inherit=[neck,head]", "model.fpn_channels=64", "distill.point=pyramid", "distill=l2")
    run = tmp_path / "run"
    model = "model=retinanet_resnet18fpn_small"
    train(pictures_config(folder, f"output_dir={run}", model, *parts[:1], *parts[2:], PLAIN))
    (state,) = states(run)
    teacher = torch.load(folder / "teacher.ckpt", weights_only=True)["state_dict"]
    changed = {key for key, value in state.items() if key in teacher and not torch.equal(value, teacher[key])}
    assert not any(".head." in key for key in changed)
    assert any("fpn" in key for key in changed)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill=l2", "teacher.checkpoint=null"], "data.train_labels=teacher, .* needs a teacher"),
        (["teacher.checkpoint=null"], "needs a teacher"),
        ([PLAIN], "nothing is learned without labels and a loss"),
        (["distill=l2", PLAIN], "features alone do not train the student's head"),
        (["distill=l2", PLAIN, "distill.balance=share"], "balance=share: expected detection losses"),
        (["distill=mgd", PLAIN], "balance=share: expected detection losses"),
        (["distill=[l2,mgd]", PLAIN], "balance=share: expected detection losses"),
    ],
)
def test_runs_from_which_no_detector_comes_are_refused(tmp_path, folder, overrides, message):
    for config in (
        config_of(folder, f"output_dir={tmp_path}/run", *overrides),
        pictures_config(folder, f"output_dir={tmp_path}/run", *overrides),
    ):
        with pytest.raises(LSHFMError, match=message):
            refuse_missing_inputs("train", config)
        with pytest.raises(LSHFMError, match=message):
            train(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["teacher.checkpoint={folder}/unnamed.pth"],
            "takes the classes from the teacher, but: .*whose names",
        ),
        (["callbacks=early_stopping"], "callbacks.early_stopping: expected a validation set"),
        (
            ["distill=kd", PLAIN, "student.inherit=[neck,head]"],
            "weighs scores at logits by the number of objects",
        ),
    ],
)
def test_settings_that_do_not_fit_pictures_are_refused(tmp_path, folder, overrides, message):
    given = [item.format(folder=folder) for item in overrides]
    model = ["model=retinanet_resnet18fpn_small"] if "distill=kd" in given else []
    with pytest.raises(LSHFMError, match=message):
        train(pictures_config(folder, f"output_dir={tmp_path}/run", *model, *given))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data=pictures", "teacher.checkpoint=t.ckpt"],
            "a validation set .* found data=pictures alone; give one",
        ),
        (
            ["data=yolo", "data.train_labels=teacher"],
            "from a trained teacher: give teacher.checkpoint=<file>",
        ),
    ],
)
def test_comparison_needs_a_trained_teacher_and_labels_to_measure_it_by(overrides, message):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("compare", ["data.root=/pool", *overrides])
    with pytest.raises(LSHFMError, match=message):
        refuse_missing_inputs("compare", config)


def test_threshold_is_that_of_the_labels_by_the_teacher_unless_another_is_given():
    def score(*overrides):
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose("train", ["data=shapes", *overrides]).distill.pseudo_labels.score

    for loss in ("none", "l2", "[lshl2,pkd]"):
        assert score(f"distill={loss}") is None
        assert score(f"distill={loss}", "data.train_labels=teacher") == 0.5
        assert score(f"distill={loss}", "data.train_labels=teacher", "distill.pseudo_labels.score=0.7") == 0.7
