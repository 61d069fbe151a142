"""The properties of student, teacher and mimic term in distillation."""

import pytest
import torch
from small_detectors import (
    CLASS_NAMES,
    FRS_WEIGHTS,
    STUDENTS,
    TEACHER_OF,
    RandomData,
    as_float,
    quiet_trainer,
    random_batch,
    short_schedule,
    small_detector,
)
from torchvision.models.detection import roi_heads
from torchvision.ops import box_iou

from lshfm_pl.detectors import load_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import L2, Context, Terms, build_losses, make_tap
from lshfm_pl.mimic.calibration import collect_features
from lshfm_pl.training import DetectionModule, DistillationModule
from lshfm_pl.training.distillation import ZERO_STEPS_ALLOWED
from lshfm_pl.training.optim import build_optimizer

MIMIC = ("l2", "lsh", "lshl2", "kd", "pkd", "cwd", "fgd", "mgd", "frs", "dist", "fbkd")
ONLY_OF = {STUDENTS[1]: ("crosskd",)}
WITH_TRAINED_PARTS = {"fgd": {}, "mgd": {}, "frs": FRS_WEIGHTS, "dist": {"mimic_weight": 1.0}, "fbkd": {}}
"""Losses that own trained layers → settings for them."""
HASH = {"mimic.lsh.loss.weight", "mimic.lsh.loss.bias"}


def distillation(student_name, distill="lshl2", beta=1.0, **settings):
    teacher = small_detector(TEACHER_OF[student_name], seed=1)
    settings = {"num_hashes": 64, **settings} if "lsh" in distill else settings
    losses = build_losses(distill, teacher, beta=beta, **settings)
    return DistillationModule(small_detector(student_name), teacher, losses, short_schedule())


def l2_of(pair):
    return L2()(pair.student, pair.teacher, Context(pair.weights))


def fit(module, tmp_path, **settings):
    torch.manual_seed(7)
    trainer = quiet_trainer(tmp_path, **settings)
    trainer.fit(module, datamodule=RandomData())
    return trainer


@pytest.mark.parametrize("student", STUDENTS)
def test_beta_zero_is_bit_equal_to_plain_training(tmp_path, student):
    plain = DetectionModule(small_detector(student), short_schedule())
    fit(plain, tmp_path)
    for distill in (*MIMIC, *ONLY_OF.get(student, ())):
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


@pytest.mark.parametrize("student", STUDENTS)
def test_teacher_of_a_run_in_mixed_precision_keeps_its_weights_in_the_type_of_autocast(tmp_path, student):
    terms = []
    for dtype in (None, torch.bfloat16):
        teacher = small_detector(TEACHER_OF[student], seed=1)
        losses = build_losses("lshl2", teacher, num_hashes=64, bias="mean", bias_images=4)
        module = DistillationModule(
            small_detector(student), teacher, losses, short_schedule(), teacher_dtype=dtype
        )
        trainer = fit(module, tmp_path, max_steps=1, precision="bf16-mixed")
        terms.append({key: value.item() for key, value in trainer.logged_metrics.items() if "mimic" in key})
        assert module.mimic["lsh"].loss.bias.any()
        assert module.mimic["lsh"].loss.weight.dtype == torch.float32
        assert module.teacher.backbone.body.conv1.weight.dtype == (dtype or torch.float32)
    assert terms[1] == pytest.approx(terms[0], rel=0.01)


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
    expected = {f"detector.{key}" for key in module.detector.state_dict()} | HASH
    assert set(saved) == expected
    assert torch.equal(saved["mimic.lsh.loss.weight"], module.mimic["lsh"].loss.weight)


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
    assert set(module._ddp_params_and_buffers_to_ignore) == HASH
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
    with tap.recording() as record:
        detector(as_float(images), targets)
    pair = tap.pairs(record)["penultimate"]
    assert (pair.student if student == STUDENTS[0] else pair.student[0]).shape[0] > 0
    assert l2_of(pair).item() == pytest.approx(0, abs=1e-12)


def test_image_without_boxes_adds_nothing_to_the_retinanet_term():
    student, teacher = (
        small_detector(STUDENTS[1], norm="frozen_bn").train(),
        small_detector(TEACHER_OF[STUDENTS[1]]),
    )
    tap = make_tap(student, teacher.eval())

    def pair(images, targets):
        with tap.recording() as record:
            student(as_float(images), targets)
        return tap.pairs(record)["penultimate"]

    images, targets = random_batch(boxless=(1,))
    both, alone = pair(images, targets), pair(images[:1], targets[:1])
    assert [int((level > 0).sum()) for level in both.weights] == [
        int((level > 0).sum()) for level in alone.weights
    ]
    torch.testing.assert_close(l2_of(both), l2_of(alone))
    nothing = l2_of(pair(*random_batch(boxless=(0, 1))))
    nothing.backward()
    assert nothing.item() == 0


@pytest.mark.parametrize(
    ("student", "distill"),
    [
        (student, distill)
        for student in STUDENTS
        for distill in ("lshl2", *WITH_TRAINED_PARTS, *ONLY_OF.get(student, ()))
    ],
)
def test_images_without_boxes_crash_nothing_and_leave_no_trained_part_without_a_gradient(student, distill):
    module = distillation(student, distill, **WITH_TRAINED_PARTS.get(distill, {}))
    module.train()
    for boxless in ((1,), (0, 1)):
        module.zero_grad()
        images, targets = random_batch(boxless=boxless)
        losses = module.losses(as_float(images), targets)
        total = sum(losses.values())
        total.backward()
        assert torch.isfinite(total)
        gradients = [parameter.grad for parameter in module.mimic.parameters()]
        assert bool(gradients) is (distill in WITH_TRAINED_PARTS)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("student", "distill"),
    [
        (student, distill)
        for student in STUDENTS
        for distill in (*WITH_TRAINED_PARTS, *ONLY_OF.get(student, ()))
    ],
)
def test_loss_with_trained_parts_or_a_head_is_computed_in_float32_in_mixed_precision(
    tmp_path, student, distill
):
    values = []
    for precision, dtype in (("32-true", None), ("bf16-mixed", torch.bfloat16)):
        teacher = small_detector(TEACHER_OF[student], seed=1)
        losses = build_losses(distill, teacher, **WITH_TRAINED_PARTS.get(distill, {}))
        dtypes = []
        for _, term in losses.named():
            term.loss.register_forward_hook(lambda *args, dtypes=dtypes: dtypes.append(args[-1].dtype))
        module = DistillationModule(
            small_detector(student), teacher, losses, short_schedule(), teacher_dtype=dtype
        )
        trainer = fit(module, tmp_path, max_steps=1, precision=precision)
        values.append({key: value.item() for key, value in trainer.logged_metrics.items() if "mimic" in key})
        assert set(dtypes) == {torch.float32}
        assert all(parameter.dtype == torch.float32 for parameter in losses.parameters())
    assert values[1] == pytest.approx(values[0], rel=0.1)


@pytest.mark.parametrize("student", STUDENTS)
def test_losses_beside_lshl2_have_the_values_that_they_have_alone(student):
    images, targets = random_batch()
    values = {}
    new = {
        name: {} for name in ("pkd", "cwd", "fgd", "mgd", "frs", "dist", "fbkd", *ONLY_OF.get(student, ()))
    }
    for name in (*new, "together"):
        teacher = small_detector(TEACHER_OF[student], seed=1)
        terms = {"lshl2": {"num_hashes": 16}, **new} if name == "together" else {name: {}}
        losses = build_losses("+".join(terms), teacher, terms=terms)
        module = DistillationModule(small_detector(student), teacher, losses, short_schedule()).train()
        torch.manual_seed(3)
        values[name] = module.losses(as_float(images), targets)
    assert {"mimic_l2", "mimic_lsh"} <= set(values["together"])
    for name in new:
        torch.testing.assert_close(values["together"][f"mimic_{name}"], values[name][f"mimic_{name}"])


def test_hooks_live_only_while_the_student_is_recorded():
    module = distillation(STUDENTS[1])
    module.train()
    images, targets = random_batch()
    module.losses(as_float(images), targets)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.detector.modules())
    assert "compute_loss" not in vars(module.detector.head)
    with pytest.raises(RuntimeError, match="on purpose"), module.tap.recording():
        raise RuntimeError("on purpose")
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.detector.modules())


def test_missing_mimic_term_stops_the_run():
    module = distillation(STUDENTS[0])
    module.eval()
    images, targets = random_batch()
    with pytest.raises(LSHFMError, match="mimic term is missing"):
        module.tap.pairs({})
    module.detector.eval()
    tap = distillation(STUDENTS[1]).tap
    with tap.recording() as record:
        tap.student.eval()(as_float(images))
    with pytest.raises(LSHFMError, match="mimic term is missing"):
        tap.pairs(record)
    with pytest.raises(LSHFMError, match="mimic term is missing"), tap.pairing(lambda pairs, batch: None):
        tap.student.eval()(as_float(images))


@pytest.mark.parametrize("student", STUDENTS)
def test_pairs_are_given_once_before_the_students_own_losses_and_as_recorded(student, monkeypatch):
    tap = distillation(student).tap
    tap.student.train()
    images, targets = random_batch()
    order, given = [], []
    if student == STUDENTS[0]:
        where, name = roi_heads, "fastrcnn_loss"
    else:
        where, name = tap.student.head.classification_head, "compute_loss"
    original = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args: order.append("loss") or original(*args))

    def use(pairs, batch):
        order.append("pairs")
        given.append(pairs["penultimate"])

    torch.manual_seed(0)
    with tap.pairing(use):
        tap.student(as_float(images), targets)
    assert order == ["pairs", "loss"]
    torch.manual_seed(0)
    with tap.recording() as record:
        tap.student(as_float(images), targets)
    for one, other in zip(given[0][:2], tap.pairs(record)["penultimate"][:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_mimic_term_of_zero_for_twenty_steps_stops_the_run():
    module = distillation(STUDENTS[1], "l2")
    zero, some = ({"l2": value.requires_grad_()} for value in (torch.zeros(()), torch.ones(())))
    for _ in range(19):
        module._check_not_silent(zero, has_boxes=True)
    module._check_not_silent(some, has_boxes=True)
    for _ in range(19):
        module._check_not_silent(zero, has_boxes=True)
    for _ in range(30):
        module._check_not_silent(zero, has_boxes=False)
    with pytest.raises(LSHFMError, match="exactly 0 in 20 consecutive steps"):
        module._check_not_silent(zero, has_boxes=True)
    silent = distillation(STUDENTS[1], "l2", beta=0.0)
    for _ in range(30):
        silent._check_not_silent(zero, has_boxes=True)


@pytest.mark.parametrize("loss", ["lshl2", "kd"])
def test_maps_that_another_rounding_makes_smaller_are_resized_and_their_logits_reported(loss):
    teacher = small_detector(TEACHER_OF[STUDENTS[1]], seed=1)
    rounding_down = {"backbone": "vgg11", "width": 0.25, "norm": "bn", "size_divisible": 1, "min_size": [101]}
    student = small_detector(STUDENTS[1], **rounding_down)
    losses = build_losses(loss, teacher, **({"num_hashes": 16} if loss != "kd" else {}))
    module = DistillationModule(student, teacher, losses, short_schedule()).train()
    images, targets = random_batch()
    if loss == "kd":  # paired anchor by anchor
        with pytest.raises(LSHFMError, match="expected"):
            module.losses(as_float(images), targets)
        return
    values = module.losses(as_float(images), targets)
    assert all(torch.isfinite(values[name]) and values[name] > 0 for name in ("mimic_l2", "mimic_lsh"))


def test_images_without_boxes_do_not_stop_a_retinanet():
    module = distillation("retinanet_resnet10fpn_tiny", "l2").train()
    images, targets = random_batch()
    empty = [
        {key: value[:0] if value.dim() else value for key, value in target.items()} for target in targets
    ]
    for _ in range(ZERO_STEPS_ALLOWED + 1):
        assert module.losses(as_float(images), empty)["mimic_l2"] == 0


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (("retinanet_resnet18fpn_small", {}), "to the same places, found FasterRCNN and RetinaNet"),
    ],
)
def test_teacher_that_does_not_fit_is_reported(teacher, message):
    name, changes = teacher
    with pytest.raises(LSHFMError, match=message):
        DistillationModule(
            small_detector(STUDENTS[0]),
            small_detector(name, **changes),
            Terms.of(l2=L2()),
            short_schedule(),
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


def reference_kd(student, teacher, images, targets, temperature):
    """The loss on class logits, computed from the detectors' outputs without a tap."""
    batch = []
    student.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, inputs: batch.append(inputs[1:]))
    student.roi_heads.box_predictor.register_forward_hook(lambda _, __, output: batch.append(output[0]))
    student(images, targets)
    (boxes, sizes), logits = batch
    resized = student.transform(images, targets)[0].tensors
    heads = teacher.roi_heads
    with torch.no_grad():
        pooled = heads.box_roi_pool(teacher.backbone(resized), boxes, sizes)
        target = (heads.box_predictor(heads.box_head(pooled))[0] / temperature).softmax(dim=1)
    scores = (logits / temperature).softmax(dim=1)
    return temperature**2 * (target * (target / scores).log()).sum(dim=1).mean()


def test_faster_rcnn_logit_loss_is_the_divergence_of_the_softened_roi_scores():
    module = distillation(STUDENTS[0], "kd", beta=0.5, temperature=3.0).train()
    images, targets = random_batch()
    torch.manual_seed(3)
    losses = module.losses(as_float(images), targets)
    torch.manual_seed(3)
    expected = reference_kd(module.detector, module.teacher, as_float(images), targets, 3.0)
    assert losses["mimic_kd"].item() == pytest.approx(0.5 * expected.item(), rel=1e-4)
    assert set(losses) == {
        "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "mimic_kd",
    }  # fmt: skip


def test_retinanet_logit_loss_is_normalised_like_the_focal_loss():
    """Compared with a loop over the images, in which anchors are matched again."""
    module = distillation(STUDENTS[1], "kd", temperature=2.0).train()
    student, teacher = module.detector, module.teacher
    images, targets = random_batch(num_images=3, boxless=(1,))
    value = module.losses(as_float(images), targets)["mimic_kd"]

    resized, resized_targets = student.transform(as_float(images), targets)
    maps = {name: list(d.backbone(resized.tensors).values()) for name, d in (("s", student), ("t", teacher))}
    logits = {
        "s": student.head.classification_head(maps["s"]),
        "t": teacher.head.classification_head(maps["t"]),
    }
    anchors = student.anchor_generator(resized, maps["s"])
    total = torch.zeros(())
    for index, target in enumerate(resized_targets):
        if not len(target["boxes"]):
            continue
        matches = student.proposal_matcher(box_iou(target["boxes"], anchors[index]))
        counted = matches != -2
        soft_s, soft_t = (torch.sigmoid(logits[name][index][counted].double() / 2) for name in "st")
        divergence = soft_t * (soft_t / soft_s).log() + (1 - soft_t) * ((1 - soft_t) / (1 - soft_s)).log()
        total = total + 4 * divergence.sum() / max(1, int((matches >= 0).sum()))
    assert value.item() == pytest.approx(total.item() / 3, rel=1e-4)


@pytest.mark.parametrize("distill", MIMIC)
@pytest.mark.parametrize("student", STUDENTS)
def test_every_term_reaches_the_first_layer_of_the_student(student, distill):
    module = distillation(student, distill).train()
    images, targets = random_batch()
    for name, loss in module.losses(as_float(images), targets).items():
        if name.startswith("mimic_"):
            first = module.detector.backbone.body.conv1.weight
            (gradient,) = torch.autograd.grad(loss, first, retain_graph=True)
            assert gradient.abs().max() > 0, name


def test_mimic_term_without_gradient_stops_the_run():
    module = distillation(STUDENTS[1], "kd")
    with pytest.raises(LSHFMError, match="mimic term kd has no gradient"):
        module._check_not_silent({"kd": torch.ones(())}, has_boxes=True)


@pytest.mark.parametrize("student", STUDENTS)
def test_logit_loss_goes_beside_a_feature_loss(student):
    images, targets = random_batch()
    values = {}
    kd = {"temperature": 2.0}
    for name, settings in {"l2": {}, "kd": kd, "both": {"kd_beta": 1.0, **kd}}.items():
        module = distillation(student, "l2" if name == "both" else name, **settings).train()
        torch.manual_seed(3)
        values[name] = module.losses(as_float(images), targets)
    assert {"mimic_l2", "mimic_kd"} <= set(values["both"])
    for term, alone in (("mimic_l2", "l2"), ("mimic_kd", "kd")):
        torch.testing.assert_close(values["both"][term], values[alone][term])
    assert "mimic_kd" not in values["l2"]
    assert "mimic_l2" not in values["kd"]


def test_logit_loss_alone_takes_a_teacher_of_another_width_and_checkpoints_no_hash(tmp_path):
    teacher = small_detector("fasterrcnn_resnet18fpn_small", box_head_width=128, fpn_channels=32)
    losses = build_losses("kd", teacher)
    module = DistillationModule(small_detector(STUDENTS[0]), teacher, losses, short_schedule())
    trainer = fit(module, tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(key.startswith("detector.") for key in saved)


def test_retinanets_of_other_levels_are_compared_at_the_common_stride():
    single = {"backbone": "vgg11", "neck": "none", "width": 0.25, "fpn_channels": None, "norm": "none"}
    anchors = {"anchor_sizes": [[20, 40, 80]], "anchor_aspect_ratios": [[0.5, 1, 2]]}
    teacher = small_detector(TEACHER_OF[STUDENTS[1]], fpn_channels=128)
    student = small_detector(STUDENTS[1], **single, **anchors).train()
    module = DistillationModule(student, teacher, build_losses("l2", teacher, student=student)).train()
    assert module.tap.levels.told() == (
        "levels of strides 16 are compared; left out: 8, 32, 64, 128 of the teacher"
    )
    images, targets = random_batch()
    assert module.losses(as_float(images), targets)["mimic_l2"] > 0
    with pytest.raises(LSHFMError, match="same strides, found .16. .* can be compared at penultimate .as by"):
        DistillationModule(student, teacher, build_losses("kd", teacher, student=student))


def test_logit_loss_refuses_other_anchors():
    teacher = small_detector(TEACHER_OF[STUDENTS[1]], anchor_sizes=[[s] * 3 for s in (20, 30, 50, 80, 128)])
    with pytest.raises(LSHFMError, match="need the same anchor_sizes"):
        DistillationModule(small_detector(STUDENTS[1]), teacher, build_losses("kd", teacher))


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("bias", ["mean", "median"])
def test_bias_is_centred_before_training_and_travels_in_the_checkpoint(tmp_path, student, bias):
    module = distillation(student, "lsh", bias=bias, bias_images=10)
    assert not module.mimic["lsh"].loss.bias.any()
    trainer = fit(module, tmp_path, max_steps=1)
    (features,) = collect_features([module.teacher], RandomData().sample_dataloader(10))
    assert 100 < len(features) <= 160
    projections = features.double() @ module.mimic["lsh"].loss.weight.double().T
    centre = projections.mean(dim=0) if bias == "mean" else projections.quantile(0.5, dim=0)
    torch.testing.assert_close(module.mimic["lsh"].loss.bias.double(), -centre, rtol=1e-4, atol=1e-6)
    ones = (module.mimic["lsh"].loss.project(features) > 0).double().mean(dim=0)
    if bias == "median":
        torch.testing.assert_close(ones, torch.full_like(ones, 0.5), rtol=0, atol=1.01 / len(features))

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = distillation(student, "lsh", bias=bias, bias_images=2)
    resumed_trainer = quiet_trainer(tmp_path, max_steps=2)
    resumed_trainer.fit(resumed, datamodule=RandomData(), ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(resumed.mimic["lsh"].loss.bias, module.mimic["lsh"].loss.bias)


def test_bias_pass_leaves_the_random_numbers_of_training_alone(tmp_path):
    states = []
    for bias in (0, "median"):
        module = distillation(STUDENTS[0], "lsh", beta=0.0, bias=bias, bias_images=4)
        fit(module, tmp_path, max_steps=3)
        states.append(module.detector.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_bias_of_images_without_boxes_is_reported(tmp_path):
    module = distillation(STUDENTS[1], "lsh", bias="median", bias_images=2)
    data = RandomData()
    data.batches = [random_batch(boxless=(0, 1))]
    with pytest.raises(LSHFMError, match="found no teacher features to centre on"):
        quiet_trainer(tmp_path).fit(module, datamodule=data)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_for_a_fused_optimizer(tmp_path, monkeypatch, precision):
    # Fused as on GPUs. Lightning alone would refuse to clip gradients for it in bf16-mixed.
    monkeypatch.setattr(
        "lshfm_pl.training.detection.build_optimizer",
        lambda *args, **settings: build_optimizer(*args, **{**settings, "fused": True}),
    )
    norms = []
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, closure: (
            closure(),
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]])),
        ),
    )
    module = distillation(STUDENTS[0], "l2")
    trainer = quiet_trainer(tmp_path, precision=precision, max_steps=1, gradient_clip_val=0.125)
    trainer.fit(module, datamodule=RandomData())
    assert trainer.optimizers[0].defaults["fused"]
    assert float(norms[0]) == pytest.approx(0.125, rel=1e-3)
