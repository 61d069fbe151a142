"""Runs with unlabelled pictures: resumed in the middle of an epoch, replayed, and in comparisons."""

import pytest
import torch
from compositions import composed, small_training
from distilled_students import write_teachers
from hydra import compose, initialize_config_dir
from interruptions import Killed
from voc_files import write_image

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.students import read_students
from lshfm_pl.errors import LSHFMError
from lshfm_pl.replay import replay
from lshfm_pl.runs.planning import make_plan
from lshfm_pl.runs.settings_of_run import comparable, differing_keys
from lshfm_pl.training.run import refuse_unfit_settings, train


def config_of(folder, *overrides):
    return small_training(
        folder,
        "data.num_train=8",
        "model.min_size=[48,64]",
        "distill=l2",
        "++distill.check_teacher=false",
        *overrides,
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Arguments of a run with a teacher and with pictures that the teacher labels."""
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "pool").mkdir()
    for index in range(5):
        write_image(folder / "pool" / f"{index}.png", size=(64, 64), seed=index)
    teacher = write_teachers(folder)["retinanet"]
    return (
        f"teacher.checkpoint={teacher}", f"data.unlabelled={folder}/pool", "distill.pseudo_labels.score=0.05"
    )  # fmt: skip


@pytest.mark.slow
def test_run_is_resumed_bit_identically_and_a_skipped_step_is_repeated(tmp_path, given):
    stop = "+callbacks.stop={_target_: interruptions.StopAt, batch: 5}"
    train(config_of(tmp_path, f"output_dir={tmp_path}/whole", *given))
    with pytest.raises(Killed):
        train(config_of(tmp_path, f"output_dir={tmp_path}/cut", stop, *given))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert 4 < torch.load(last, weights_only=True)["global_step"] < 8
    resume = f"resume={last}"
    with pytest.raises(LSHFMError, match="data.unlabelled: True → False"):
        train(config_of(tmp_path, f"output_dir={tmp_path}/cut", resume, given[0]))
    train(config_of(tmp_path, f"output_dir={tmp_path}/cut", resume, "data.num_workers=2", *given))
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "cut")
    )
    assert whole["global_step"] == resumed["global_step"] == 8
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key

    spoil = "+callbacks.spoil._target_=interruptions.SpoilWeights"
    train(config_of(tmp_path, f"output_dir={tmp_path}/run", "schedule.epochs=1", spoil, *given))
    (file,) = (tmp_path / "run" / "nonfinite").glob("*.json")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        rows = replay(compose("replay", overrides=[f"file={file}"]))
    assert all(row["same"] for row in rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["distill=none", "data.unlabelled=x"],
            "data.unlabelled: pictures without labels are learned from by a",
        ),
        (["distill.pseudo_labels.score=0.7"], "expected pictures that the teacher shall label"),
    ],
)
def test_pictures_without_a_use_and_labels_without_pictures_are_refused(tmp_path, overrides, message):
    config = config_of(tmp_path, f"output_dir={tmp_path}/run", *overrides)
    with pytest.raises(LSHFMError, match=message):
        refuse_unfit_settings(config, None)


def test_only_students_that_can_learn_from_pictures_get_them(tmp_path):
    pictures = ["data.unlabelled=/pool", "data.unlabelled_share=0.75"]
    plan = make_plan(composed(*pictures))
    students = read_students(["none", "l2", {"labels": {"loss": "none", "pseudo_labels": {"score": 0.7}}}])
    plain, mimic, labelled = (plan.student(student, 0, tmp_path / "teacher.ckpt") for student in students)
    assert not {*pictures} & {*plan.teacher(), *plain}
    assert {*pictures} <= {*mimic}
    assert {*pictures, "distill.pseudo_labels={score:0.7}"} <= {*labelled}
    assert not any("teacher.checkpoint" in item for item in plain)
    assert any("teacher.checkpoint" in item for item in labelled)


def test_settings_of_older_runs_are_equal_and_pictures_may_be_moved():
    def settings(unlabelled, **labels):
        data = {"unlabelled": unlabelled, "unlabelled_share": 0.25}
        return comparable(
            {
                "data": data,
                "distill": {"name": "l2", "pseudo_labels": {"score": None, "soft": True, **labels}},
            }
        )

    older = comparable({"data": {}, "distill": {"name": "l2"}})
    assert differing_keys(older, settings(None)) == []
    assert differing_keys(settings("/a"), settings(["/b", "/c"])) == []
    assert differing_keys(older, settings("/a")) == [
        "data.unlabelled: absent → True",
        "data.unlabelled_share: absent → 0.25",
    ]
    assert differing_keys(settings("/a"), settings("/a", score=0.7))
