import pytest
from compositions import composed, voc_set

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.overrides import quoted
from lshfm_pl.runs.planning import make_plan


def test_keys_of_the_user_go_before_what_is_chosen(tmp_path):
    root = f"data.root={quoted(voc_set(tmp_path / 'cells'))}"
    plan = make_plan(composed("data=voc_folder", root, "data.batch_size=6", "student.model.min_size=[32]"))
    teacher, student = plan.teacher(), plan.of_role("student")
    assert teacher[:3] == ["model=fasterrcnn_resnet18fpn_small", "data=voc_folder", "schedule=quickstart"]
    assert "model.min_size=[64]" in teacher
    assert [item for item in student if item.startswith("model.min_size")] == ["model.min_size=[32]"]
    assert [item for item in teacher if item.startswith("data.batch_size")] == ["data.batch_size=6"]
    anchors = [item for item in student if item.startswith("model.anchor_sizes")]
    assert anchors != [item for item in teacher if item.startswith("model.anchor_sizes")]
    plan = make_plan(composed("data=voc_folder", root, "image_size=96", "schedule.epochs=5"))
    assert "model.min_size=[96]" in plan.of_role("student")
    assert [item for item in plan.teacher() if item.startswith("schedule.epochs")] == ["schedule.epochs=5"]


def test_missing_file_of_a_teacher_is_reported_before_anything_is_read(tmp_path):
    with pytest.raises(LSHFMError, match="teacher.checkpoint: expected a file of weights, found none at"):
        make_plan(composed(f"teacher.checkpoint={tmp_path}/none.ckpt", "data=voc_folder", "data.root=/none"))


@pytest.mark.parametrize(
    ("split", "broken", "expected"),
    [
        ("train", ("003", "007"), "The train set has 1 more error. .*check_data.* lists all of them; "
         "data.on_bad_sample=skip trains without the 2 images with errors"),
        ("train", ("003",), "check_data.* lists all of them; data.on_bad_sample=skip trains without the 1 image"),
        ("val", ("012",), "Evaluation needs all images, which data.on_bad_sample=skip does not change; .*check_da"),
    ],
)  # fmt: skip
def test_damaged_data_say_how_many_errors_there_are_and_what_to_do(tmp_path, split, broken, expected):
    data = voc_set(tmp_path / "cells")
    for name in broken:
        path = data / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("<xmin>5</xmin>", "<xmin>x</xmin>"))
    arguments = ["data=voc_folder", f"data.root={quoted(data)}"]
    with pytest.raises(LSHFMError, match=expected) as stopped:
        make_plan(composed(*arguments))
    first, *more = str(stopped.value).splitlines()
    assert f"{broken[0]}.xml" in first
    assert len(more) == 1
    if split == "train":
        plan = make_plan(composed(*arguments, "data.on_bad_sample=skip"))
        assert plan.fingerprint["sets"]["train"]["images"] == 12 - len(broken)
