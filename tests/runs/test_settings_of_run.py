import pytest

from lshfm_pl.runs.settings_of_run import changed_settings, comparable, differing_keys


def test_differing_keys_are_listed_with_both_values():
    saved = comparable(
        {"a": {"b": 1, "c": [1, 2]}, "output_dir": "x", "data": {"num_workers": 2}, "gone": None}
    )
    wanted = comparable({"a": {"b": 2, "c": [1, 2]}, "output_dir": "y", "data": {"num_workers": 0}, "new": 3})
    assert differing_keys(saved, wanted) == ["a.b: 1 → 2", "new: absent → 3"]  # `gone` is null
    assert differing_keys({"a": False, "b": 1}, {"a": None}) == ["a: False → None", "b: 1 → absent"]


def test_older_runs_have_only_the_name_of_their_loss():
    def flat(loss, target):
        return comparable({"distill": {"name": loss, "_target_": target, "warmup_steps": 0, "until": None}})

    older = {"distill.name": "lshl2"}
    assert differing_keys(older, flat("lshl2", "lshfm_pl.mimic.losses.lshl2.LSHL2")) == []
    assert differing_keys(older, flat("lshl2", "my_module.MyLoss")) == [
        "distill._target_: absent → my_module.MyLoss"
    ]


def test_key_that_an_older_run_lacks_is_no_difference_if_it_has_no_effect():
    new = {"data.first_pixel": 1, "distill.bias_even_median": "lower"}
    assert differing_keys({}, new) == []
    assert differing_keys({}, {"data.first_pixel": 0}) == ["data.first_pixel: absent → 0"]
    assert differing_keys({"distill.bias_even_median": "mean"}, new) == [
        "distill.bias_even_median: mean → lower"
    ]


def test_older_run_without_kernel_switches_is_resumed_with_all_of_them_on():
    saved = comparable({"schedule": {"lr": 0.01}})
    on = {**dict.fromkeys(("winograd", "folded_norms", "fused_hash_loss", "memory"), True), "hash": "auto"}
    wanted = comparable({"schedule": {"lr": 0.01}, "kernels": on})
    assert differing_keys(saved, wanted) == []
    wanted["kernels.winograd"] = False
    assert differing_keys(saved, wanted) == ["kernels.winograd: absent → False"]
    wanted |= {"kernels.winograd": True, "kernels.hash": "triton"}
    assert differing_keys(saved, wanted) == ["kernels.hash: absent → triton"]


def test_older_runs_have_the_published_augmentation():
    def flat(*transforms, flip=0.5):
        return comparable({"data": {"flip_probability": flip}, "augment": {"transforms": list(transforms)}})

    flip = {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip", "p": 0.5}
    older = comparable({"data": {"flip_probability": 0.5}})
    assert differing_keys(older, flat(flip)) == []
    assert differing_keys(older, flat(flip, {"_target_": "a.Fog"})) == [
        "augment: absent → RandomHorizontalFlip(p=0.5), Fog()"
    ]
    assert differing_keys(flat({"_target_": "a.Fog"}), flat(flip)) == ["augment: Fog() → published"]
    assert differing_keys(flat(flip), flat()) == ["augment: published → none"]


def test_a_way_to_set_the_weights_of_all_losses_is_that_of_each():
    def flat(overall, **own):
        terms = {name: {"balance": way, "balance_rule": {"share": 0.3}} for name, way in own.items()}
        return comparable({"distill": {"balance": overall, "balance_rule": {"share": 0.1}, "terms": terms}})

    assert differing_keys(flat("fixed", a="fixed", b="fixed"), flat(None, a="fixed", b="fixed")) == []
    assert differing_keys(flat("share", a="fixed", b="fixed"), flat(None, a="share", b="share")) == []
    assert differing_keys(flat("fixed", a="fixed", b="share"), flat(None, a="fixed", b="share")) == [
        "distill.balance_rule.share: absent → 0.1",
        "distill.terms.b.balance: fixed → share",
    ]


@pytest.mark.parametrize(
    ("output", "teacher", "is_same"),
    [
        ("outputs/a/student", "outputs/a/teacher/last.ckpt", True),  # nothing was moved
        ("/moved/a/student", "/moved/a/teacher/last.ckpt", True),
        ("/moved/student", "outputs/a/teacher/last.ckpt", True),  # the run alone
        ("outputs/a/student", "/moved/a/teacher/last.ckpt", False),
        ("/moved/a/student", "/moved/a/other/last.ckpt", False),
    ],
)
def test_teacher_beside_the_run_may_be_moved_with_it(output, teacher, is_same):
    saved = {"output_dir": "outputs/a/student", "teacher": {"checkpoint": "outputs/a/teacher/last.ckpt"}}
    changes = changed_settings(saved, {"output_dir": output, "teacher": {"checkpoint": teacher}})
    assert changes == ([] if is_same else [f"teacher.checkpoint: outputs/a/teacher/last.ckpt → {teacher}"])


def test_teachers_elsewhere_are_compared_by_their_paths():
    def run(teacher):
        return {"output_dir": "outputs/a/student", "teacher": {"checkpoint": teacher}}

    assert changed_settings(run("x/last.ckpt"), run("x/last.ckpt")) == []
    assert len(changed_settings(run("x/last.ckpt"), run("y/last.ckpt"))) == 1
    assert len(changed_settings(run(None), run("y/last.ckpt"))) == 1
    assert changed_settings({"output_dir": 1, "teacher": "damaged"}, run(None))
