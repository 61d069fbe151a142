"""What distillation promises about the student, the teacher and the mimic term."""

import pytest
import torch
from small_detectors import (
    CLASS_NAMES,
    STUDENTS,
    TEACHER_OF,
    RandomData,
    as_float,
    quiet_trainer,
    random_batch,
    short_schedule,
    small_detector,
)

from lshfm_pl.detectors import load_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import L2, build_mimic_head, make_tap, mimic_size
from lshfm_pl.modules import DetectionModule, DistillationModule

MIMIC = ("l2", "lsh", "lshl2")


def distillation(student_name, distill="lshl2", beta=1.0, **settings):
    teacher = small_detector(TEACHER_OF[student_name], seed=1)
    settings = {} if distill == "l2" else {"num_hashes": 64, **settings}
    head = build_mimic_head(distill, mimic_size(teacher), beta=beta, **settings)
    return DistillationModule(small_detector(student_name), teacher, head, short_schedule())


def fit(module, tmp_path, **settings):
    torch.manual_seed(7)
    trainer = quiet_trainer(tmp_path, **settings)
    trainer.fit(module, datamodule=RandomData())
    return trainer


@pytest.mark.parametrize("student", STUDENTS)
def test_beta_zero_is_bit_equal_to_plain_training(tmp_path, student):
    plain = DetectionModule(small_detector(student), short_schedule())
    fit(plain, tmp_path)
    for distill in MIMIC:
        module = distillation(student, distill, beta=0.0)
        assert fit(module, tmp_path).global_step == 5
        for key, value in plain.detector.state_dict().items():
            assert torch.equal(value, module.detector.state_dict()[key]), f"{distill}: {key}"


@pytest.mark.parametrize("student", STUDENTS)
def test_beta_changes_the_student_and_nothing_changes_the_teacher(tmp_path, student):
    plain = DetectionModule(small_detector(student), short_schedule())
    fit(plain, tmp_path)
    module = distillation(student, beta=1.0)
    before = {key: value.clone() for key, value in module.teacher.state_dict().items()}
    fit(module, tmp_path)
    changed = [
        key
        for key, value in plain.detector.state_dict().items()
        if not torch.equal(value, module.detector.state_dict()[key])
    ]
    assert any(key.startswith("backbone.body") for key in changed)
    assert all(torch.equal(value, before[key]) for key, value in module.teacher.state_dict().items())
    assert not any(part.training for part in module.teacher.modules())
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


def test_teacher_stays_in_eval_and_out_of_everything_that_is_saved_or_trained(tmp_path):
    module = distillation(STUDENTS[0])
    module.train()
    assert module.detector.training
    assert not module.teacher.training
    teacher_tensors = {id(tensor) for tensor in module.teacher.state_dict(keep_vars=True).values()}
    held = [*module.parameters(), *module.buffers()]
    assert not teacher_tensors & {id(tensor) for tensor in held}
    trainer = fit(module, tmp_path)
    groups = trainer.optimizers[0].param_groups
    assert not teacher_tensors & {id(parameter) for group in groups for parameter in group["params"]}
    trainer.save_checkpoint(tmp_path / "full.ckpt")
    saved = torch.load(tmp_path / "full.ckpt", weights_only=True)["state_dict"]
    expected = {f"detector.{key}" for key in module.detector.state_dict()} | {"mimic.weight", "mimic.bias"}
    assert set(saved) == expected
    assert torch.equal(saved["mimic.weight"], module.mimic.weight)


def test_weights_only_checkpoint_is_the_student_alone_and_describes_itself(tmp_path):
    module = distillation(STUDENTS[1])
    trainer = fit(module, tmp_path, max_steps=1)
    trainer.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert not any(key.startswith("mimic.") for key in saved["state_dict"])
    loaded = load_detector(tmp_path / "best.ckpt")
    assert loaded.class_names == CLASS_NAMES
    images = as_float(random_batch(3)[0])
    with torch.no_grad():
        for ours, theirs in zip(module.detector.eval()(images), loaded(images), strict=True):
            assert torch.equal(ours["scores"], theirs["scores"])


def test_hash_matrix_is_left_out_of_ddp_broadcasts():
    module = distillation(STUDENTS[0])
    assert set(module._ddp_params_and_buffers_to_ignore) == {"mimic.weight", "mimic.bias"}
    assert set(module._ddp_params_and_buffers_to_ignore) <= dict(module.named_buffers()).keys()


@pytest.mark.parametrize("student", STUDENTS)
def test_teacher_runs_only_what_the_mimic_term_needs(student):
    module = distillation(student)
    module.train()
    called = []
    for name, part in module.teacher.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    images, targets = random_batch()
    module.losses(as_float(images), targets)
    unwanted = (
        "",
        "transform",
        "rpn",
        "anchor_generator",
        "box_predictor",
        "cls_logits",
        "regression_head",
        "head",
    )
    assert any(name.startswith("backbone.body") for name in called)
    assert not [
        name for name in called if name.split(".")[0] in unwanted and "classification_head.conv" not in name
    ]
    assert not [name for name in called if name.split(".")[-1] in unwanted]


@pytest.mark.parametrize("student", STUDENTS)
def test_teacher_as_its_own_student_has_nothing_to_mimic(student):
    detector = small_detector(student, norm="frozen_bn").train()
    tap = make_tap(detector, detector)
    images, targets = random_batch()
    with tap.recording():
        detector(as_float(images), targets)
    pair = tap.pair()
    assert pair.student_ND.shape[0] > 0
    assert L2()(*pair).item() == pytest.approx(0, abs=1e-12)


def test_image_without_boxes_adds_nothing_to_the_retinanet_term():
    student, teacher = (
        small_detector(STUDENTS[1], norm="frozen_bn").train(),
        small_detector(TEACHER_OF[STUDENTS[1]]),
    )
    tap = make_tap(student, teacher.eval())

    def pair(images, targets):
        with tap.recording():
            student(as_float(images), targets)
        return tap.pair()

    images, targets = random_batch(boxless=(1,))
    both, alone = pair(images, targets), pair(images[:1], targets[:1])
    assert both.student_ND.shape == alone.student_ND.shape
    torch.testing.assert_close(L2()(*both), L2()(*alone))
    nothing = L2()(*pair(*random_batch(boxless=(0, 1))))
    nothing.backward()
    assert nothing.item() == 0


@pytest.mark.parametrize("student", STUDENTS)
def test_images_without_boxes_crash_nothing(student):
    module = distillation(student)
    module.train()
    for boxless in ((1,), (0, 1)):
        images, targets = random_batch(boxless=boxless)
        losses = module.losses(as_float(images), targets)
        total = sum(losses.values())
        total.backward()
        assert torch.isfinite(total)


def test_hooks_live_only_while_the_student_is_recorded():
    module = distillation(STUDENTS[1])
    module.train()
    images, targets = random_batch()
    module.losses(as_float(images), targets)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.detector.modules())
    assert "compute_loss" not in vars(module.detector.head)
    with pytest.raises(RuntimeError, match="on purpose"), module._tap.recording():
        raise RuntimeError("on purpose")
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.detector.modules())


def test_missing_mimic_term_stops_the_run():
    module = distillation(STUDENTS[0])
    module.eval()
    images, targets = random_batch()
    with pytest.raises(LSHFMError, match="mimic term is missing"):
        module._tap.pair()
    module.detector.eval()
    tap = distillation(STUDENTS[1])._tap
    with tap.recording():
        tap.student.eval()(as_float(images))
    with pytest.raises(LSHFMError, match="mimic term is missing"):
        tap.pair()


def test_mimic_term_of_zero_for_twenty_steps_stops_the_run():
    module = distillation(STUDENTS[1], "l2")
    zero, some = {"l2": torch.zeros(())}, {"l2": torch.ones(())}
    for _ in range(19):
        module._check_not_silent(zero)
    module._check_not_silent(some)
    for _ in range(19):
        module._check_not_silent(zero)
    with pytest.raises(LSHFMError, match="exactly 0 for 20 steps"):
        module._check_not_silent(zero)
    silent = distillation(STUDENTS[1], "l2", beta=0.0)
    for _ in range(30):
        silent._check_not_silent(zero)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (("retinanet_resnet18fpn_small", {}), "one architecture, found FasterRCNN and RetinaNet"),
        (("fasterrcnn_resnet18fpn_small", {"box_head_width": 128}), r"256 \(student\) and 128 \(teacher\)"),
        (("fasterrcnn_resnet18fpn_small", {"image_mean": [0.0, 0.0, 0.0]}), "expected one image_mean"),
    ],
)
def test_teacher_that_does_not_fit_is_told(teacher, message):
    name, changes = teacher
    with pytest.raises(LSHFMError, match=message):
        DistillationModule(
            small_detector(STUDENTS[0]), small_detector(name, **changes), L2(), short_schedule()
        )


def test_losses_are_logged_by_name(tmp_path):
    module = distillation(STUDENTS[0])
    trainer = fit(module, tmp_path)
    logged = trainer.logged_metrics
    names = {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
        "mimic_l2",
        "mimic_lsh",
    }
    assert {f"train/{name}" for name in names} <= set(logged)
    total = sum(logged[f"train/{name}"] for name in names)
    torch.testing.assert_close(logged["train/loss"], total, rtol=1e-5, atol=1e-6)
