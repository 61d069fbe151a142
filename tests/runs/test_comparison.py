"""The runs of a comparison, and the arguments of each."""

from pathlib import Path

import pytest
from coco_files import TWO_IMAGES, annotation, coco_content, write_coco
from compositions import composed
from distilled_students import CHOICES
from omegaconf import open_dict
from untrained_teachers import write_teacher
from voc_files import write_many, write_voc
from yolo_files import write_yolo

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


def write_set(root, kind):
    """A data set whose training pictures have no labels; returns the arguments that name it."""
    if kind == "voc_folder":
        write_many(root, "train", 4)
        write_many(root, "val", 2, first=10)
        for index in range(4):
            (root / "Annotations" / f"{index:06d}.xml").unlink()
        return []
    if kind == "coco_json":
        write_coco(root, "val", coco_content(TWO_IMAGES, [annotation(8), annotation(2, 7)]))
        write_voc(root / "pool", "train", {"a": ((64, 48), []), "b": ((64, 48), [])})
        files = "data.val_annotations=annotations/instances_val.json", "data.val_images=val"
        return ["data.train_images=pool/JPEGImages", *files]
    write_yolo(root, {"train": {"a": None, "b": None}, "val": {"c": "0 0.5 0.5 0.5 0.25\n"}})
    return []


@pytest.mark.parametrize("kind", ["voc_folder", "coco_json", "yolo"])
@pytest.mark.parametrize("is_named", [True, False])
def test_students_on_pictures_without_labels_all_have_the_teacher_and_its_classes(tmp_path, kind, is_named):
    teacher = write_teacher(tmp_path / "t.ckpt", ("hen", "dog", "cat"))
    given = write_set(tmp_path / "set", kind)
    if not is_named and given:
        return  # data=auto takes no names of files
    config = composed(
        f"data={kind if is_named else 'auto'}", f"data.root={tmp_path}/set", "data.train_labels=teacher", *given,
        f"teacher.checkpoint={teacher}", "student.model=retinanet_resnet10fpn_tiny",
    )  # fmt: skip
    plan = make_plan(config)
    assert plan.fingerprint["classes"] == ["hen", "dog", "cat"]
    for student in (Student("none", "none"), Student("l2", "l2")):
        overrides = plan.student(student, 0, teacher)
        assert f"teacher.checkpoint='{teacher}'" in overrides
        assert plan.is_taught(student)
        assert any(item.startswith("model.anchor_sizes=") for item in overrides)
    assert "data.train_labels=teacher" in plan.evaluation()


def test_comparison_without_a_set_to_measure_by_is_refused(tmp_path):
    teacher = write_teacher(tmp_path / "t.ckpt", ("cat", "dog"))
    write_voc(tmp_path / "pool", "train", {"a": ((64, 48), []), "b": ((64, 48), [])})
    config = composed(
        "data=coco_json", f"data.root={tmp_path}", "data.train_labels=teacher",
        "data.train_images=pool/JPEGImages", f"teacher.checkpoint={teacher}",
    )  # fmt: skip
    with pytest.raises(LSHFMError, match="compare: data: expected a test set with labels"):
        make_plan(config)
