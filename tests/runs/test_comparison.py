"""The runs of a comparison, and the arguments of each."""

from pathlib import Path

import pytest
from compositions import composed
from distilled_students import CHOICES
from omegaconf import open_dict

from lshfm_pl.cli.students import Student, read_seeds, read_students
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.defaults import Choice
from lshfm_pl.runs.planning import make_plan


def test_quickstart_is_two_experiments_and_nothing_more():
    plan = make_plan(composed())
    assert plan.teacher() == ["experiment=quickstart"]
    assert plan.student(Student("none", "none"), 0, Path("t.ckpt")) == [
        "experiment=quickstart_student", "distill=none", "seed=0",
    ]  # fmt: skip
    assert plan.student(Student("lshl2", "lshl2"), 1, Path("a b.ckpt"))[-1] == "teacher.checkpoint='a b.ckpt'"


def test_what_is_typed_goes_to_the_runs_that_it_is_for():
    plan = make_plan(
        composed(
            "data.num_train=9", "trainer.accelerator=cpu", "+trainer.max_time=null", "schedule.lr=0.1", "seed=4",
            "teacher.model=retinanet_resnet18fpn_small", "teacher.model.width=0.25",
            "student.model.min_size=[64]", "student.epochs=3", "epochs=7",
        )
    )  # fmt: skip
    common = ["data.num_train=9", "trainer.accelerator=cpu", "+trainer.max_time=null", "schedule.lr=0.1"]
    assert plan.teacher() == [
        "experiment=quickstart", "model=retinanet_resnet18fpn_small", "schedule.epochs=7", *common,
        "model.width=0.25", "seed=4",
    ]  # fmt: skip
    student = plan.of_role("student")
    assert student == ["experiment=quickstart_student", "schedule.epochs=3", *common, "model.min_size=[64]"]


def test_settings_that_a_file_of_the_users_own_leaves_to_its_class_are_added(tmp_path):
    config = composed("data=voc_folder", f"data.root={tmp_path}", "fit=null")
    with open_dict(config.data):
        del config.data["batch_size"]
    plan = make_plan(config)
    batch = ("data.batch_size=3", "data.eval_batch_size=4")
    plan.chosen = {role: [Choice("batch", batch, "")] for role in ("teacher", "student")}
    assert {"++data.batch_size=3", "data.eval_batch_size=4"} < set(plan.of_role("student"))
    with open_dict(config.data):
        del config.data["eval_batch_size"]
    config.teacher.checkpoint = "t.ckpt"
    assert "++data.eval_batch_size=4" in plan.evaluation()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("distill=[none,lshl2]", [Student("none", "none"), Student("lshl2", "lshl2")]),
        ("distill=lsh", [Student("lsh", "lsh")]),
        ("distill=[lshl2+kd]", [Student("lshl2+kd", "lshl2+kd")]),
        ("distill=[{l2+kd:{terms.kd.beta:0.5}}]",
         [Student("l2+kd", "l2+kd", ("distill.terms.kd.beta=0.5",))]),
        ("distill=[{lshl2:{beta:4,num_hashes:null}}]",
         [Student("lshl2", "lshl2", ("distill.beta=4", "distill.num_hashes=null"))]),
        ("distill=[{median:{loss:lsh,bias:median}}]", [Student("median", "lsh", ("distill.bias=median",))]),
        ("distill=[{mine:{loss:lsh,hash_weights:'/a b/it.ckpt'}}]",
         [Student("mine", "lsh", ('distill.hash_weights="/a b/it.ckpt"',))]),
    ],
)  # fmt: skip
def test_losses_are_names_or_have_settings_of_their_own(typed, expected):
    assert read_students(composed(typed).losses) == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("distill=[]", "expected at least one loss"),
        ("distill=[none,lshl3]", f"expected one of {', '.join(CHOICES)}, found lshl3"),
        ("distill=[l2,l2]", "found l2 twice"),
        ("distill=[l2+kdd]", "found kdd"),
        ("distill=[l2+none]", "found none"),
        ("distill=[{../x:{loss:l2}}]", "expected a name with settings"),
        ("distill=[{l2:4}]", "expected a name with settings"),
    ],
)
def test_wrong_losses_are_refused(typed, message):
    with pytest.raises(LSHFMError, match=message):
        read_students(composed(typed).losses)


def test_seeds_are_a_number_or_a_list():
    assert read_seeds(composed("seeds=5").seeds) == [0, 1, 2, 3, 4]
    assert read_seeds(composed("seeds=[7,3]").seeds) == [7, 3]
    for typed in ("seeds=0", "seeds=[]", "seeds=[1,1]", "seeds=abc", "seeds=[a]", "seeds=true", "seeds=[-1]"):
        with pytest.raises(LSHFMError, match="seeds: expected a number"):
            read_seeds(composed(typed).seeds)


def test_folder_is_named_after_the_data():
    assert composed().output_dir == "outputs/quickstart"
    assert composed("data=voc_folder", "data.root=/data/my cells").output_dir == "outputs/compare/my_cells"
    assert composed("data=voc_folder", "data.root=/x", "output_dir=here").output_dir == "here"
