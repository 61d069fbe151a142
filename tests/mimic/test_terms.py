"""Sums of named terms: weights, warm-up, end, adapters, and trained parts of losses."""

import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from small_detectors import (
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
from torch import nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import (
    L2,
    LSH,
    LSHL2,
    Batch,
    Context,
    Loss,
    Moment,
    Pair,
    Term,
    Terms,
    build_losses,
    make_tap,
)
from lshfm_pl.mimic.adapters import resize_to_larger, resized_weights
from lshfm_pl.mimic.features.places import feature_grids, ground_truth_features
from lshfm_pl.training import DetectionModule, DistillationModule
from lshfm_pl.training.distillation import ZERO_STEPS_ALLOWED

FASTER_RCNN, RETINANET = STUDENTS
WIDER = {FASTER_RCNN: {"box_head_width": 128, "fpn_channels": 32}, RETINANET: {"fpn_channels": 32}}


class OfPyramid(Loss):
    """Mean squared error of the maps after a trained convolution of each level's own."""

    point = "pyramid"
    wants = frozenset({"boxes", "generator"})
    follows: ClassVar = {"channels": "channels"}

    def __init__(self, channels, gain=1.0):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 1) for width in channels)
        self.gain = gain
        self.contexts = []

    def forward(self, student, teacher, context):
        self.contexts.append(context)
        return self.gain * sum(
            F.mse_loss(layer(ours), theirs)
            for layer, ours, theirs in zip(self.layers, student, teacher, strict=True)
        )


class OfDenseHead(Loss):
    """Mean squared error of the maps of all towers."""

    point = "dense_head"

    def forward(self, student, teacher, context):
        return sum(
            F.mse_loss(ours, theirs)
            for name in student
            for ours, theirs in zip(student[name], teacher[name], strict=True)
        )


OWN = {
    "of_pyramid": {"_target_": f"{__name__}.OfPyramid"},
    "of_dense_head": {"_target_": f"{__name__}.OfDenseHead"},
}
HASHES = {"num_hashes": 32}
ADAPTING = {"frs": FRS_WEIGHTS, "dist": {"mimic_weight": 0.01}, "fbkd": {}}
"""Losses with their own adapters."""
ALL = {"l2": {}, "lsh": HASHES, "lshl2": HASHES, "kd": {}, **OWN}
ON_MAPS = {
    "pkd": {"levels": 4, "scale_weight": 1.0},
    "cwd": {},
    "fgd": {"levels": 4, "beta": 0.05},
    "mgd": {"levels": 4},
}
"""Losses on the maps of the pyramid. Not all of their trained parameters have a gradient other than 0 at first."""


def module_of(student, losses, changes=(), teacher=None, seed=0, **settings):
    changes = dict(changes)
    detector = small_detector(student, **changes)
    frozen = small_detector(teacher or TEACHER_OF[student], seed=1)
    if isinstance(losses, dict):
        settings["terms"], losses = losses, "+".join(losses)
    terms = build_losses(losses, frozen, student=detector, **settings)
    return DistillationModule(detector, frozen, terms, short_schedule(), seed=seed).train()


def losses_of(module, seed=0, boxless=()):
    torch.manual_seed(seed)
    images, targets = random_batch(boxless=boxless)
    return module.losses(as_float(images), targets)


def fit(module, tmp_path, epochs, **settings):
    """Two steps an epoch."""
    trainer = quiet_trainer(tmp_path, max_epochs=epochs)
    trainer.fit(module, datamodule=RandomData(2), **settings)
    assert trainer.global_step == 2 * epochs
    return trainer


@pytest.mark.parametrize("is_wider", [False, True])
@pytest.mark.parametrize("loss", {**ALL, **ON_MAPS, **ADAPTING})
@pytest.mark.parametrize("student", STUDENTS)
def test_every_loss_trains_every_family_with_and_without_an_adapter(student, loss, is_wider):
    module = module_of(
        student, loss, WIDER[student] if is_wider else (), **{**ALL, **ON_MAPS, **ADAPTING}[loss]
    )
    values = losses_of(module)
    mimic = {name: value for name, value in values.items() if name.startswith("mimic_")}
    assert list(mimic) == [f"mimic_{name}" for name in module.mimic]
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in mimic.values())
    sum(mimic.values()).backward()
    assert module.detector.backbone.body.conv1.weight.grad.abs().max() > 0
    assert bool(module.mimic.adapters()) == (is_wider and loss not in ("kd", *ADAPTING))
    least = 0 if loss in (*ON_MAPS, "fbkd") else torch.finfo(torch.float32).tiny
    assert all(parameter.grad.abs().max() >= least for parameter in module.mimic.parameters())
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


@pytest.mark.parametrize("student", STUDENTS)
def test_sum_is_the_sum_of_single_losses(student):
    together = losses_of(module_of(student, ALL))
    expected = {}
    for name, settings in ALL.items():
        single = losses_of(module_of(student, name, **settings))
        expected |= {f"{name}: {key}": value for key, value in single.items() if key.startswith("mimic_")}
    found = {
        "l2: mimic_l2": "mimic_l2_l2",
        "lsh: mimic_lsh": "mimic_lsh_lsh",
        "lshl2: mimic_l2": "mimic_lshl2_l2",
        "lshl2: mimic_lsh": "mimic_lshl2_lsh",
        "kd: mimic_kd": "mimic_kd",
        "of_pyramid: mimic_of_pyramid": "mimic_of_pyramid",
        "of_dense_head: mimic_of_dense_head": "mimic_of_dense_head",
    }
    assert set(found) == set(expected)
    for alone, name in found.items():
        assert torch.equal(together[name], expected[alone]), name


def test_lshl2_is_the_sum_of_l2_and_lsh():
    student, teacher = torch.randn(6, 12), torch.randn(6, 12)
    both = LSHL2(12, 20, beta=2.0, l2_weight=0.5, lsh_weight=3.0, seed=4)
    parts = L2(1.0), LSH(12, 20, beta=6.0, seed=4)
    assert torch.equal(both.weight, parts[1].weight)
    assert both(student, teacher) == sum(loss(student, teacher) for loss in parts)
    assert list(Terms.of(lshl2=both)) == ["l2", "lsh"]


def test_weight_warm_up_and_end_of_a_term_are_its_own():
    terms = build_losses(
        "sum",
        small_detector(TEACHER_OF[FASTER_RCNN]),
        terms={
            "l2": {"weight": 0.5, "beta": 3.0, "warmup_steps": 4},
            "kd": {"until": 2},
        },
    )
    l2, kd = terms["l2"], terms["kd"]
    assert [l2.factor(Moment(step)) for step in (0, 1, 3, 9)] == [0.125, 0.25, 0.5, 0.5]
    assert [kd.factor(Moment(9, epoch)) for epoch in (0, 1, 2)] == [1, 1, 0]
    assert l2.strength(Moment()) == 1.5
    assert kd.strength(Moment(0, 2)) == 0


def test_factor_multiplies_the_loss_of_its_step_and_an_ended_term_is_zero():
    module = module_of(FASTER_RCNN, {"l2": {"beta": 2.0, "warmup_steps": 10}, "kd": {"until": 1}})
    plain = losses_of(module_of(FASTER_RCNN, "l2", beta=2.0))["mimic_l2"]
    module.moment = Moment(step=4, epoch=1)
    values = losses_of(module)
    torch.testing.assert_close(values["mimic_l2"], 0.5 * plain)
    assert values["mimic_kd"] == 0
    ended = module_of(FASTER_RCNN, "kd", until=1)
    ended.moment = Moment(epoch=1)
    for _ in range(ZERO_STEPS_ALLOWED + 1):
        ended._check_not_silent({"kd": torch.zeros((), requires_grad=True)}, has_boxes=True)


def calls(*parts):
    """Counts of the calls of modules from now on."""
    counts = [[] for _ in parts]
    for part, seen in zip(parts, counts, strict=True):
        part.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
    return lambda: [len(seen) for seen in counts]


def test_term_of_no_weight_gives_features_no_gradient_and_trained_parts_one_of_zero():
    for term in (Term(OfPyramid([2]), weight=0.0), Term(L2(beta=0.0))):
        has_maps = isinstance(term.loss, OfPyramid)
        feature = torch.randn(*((1, 2, 4, 4) if has_maps else (5, 3)), requires_grad=True)
        features = [feature, torch.randn_like(feature)]
        pair = Pair(*([each] if has_maps else each for each in features))
        value = term(pair, Batch([], [], [], (4, 4)), Moment(), 0)
        (value + torch.zeros((), requires_grad=True)).backward()
        assert value == 0
        assert feature.grad is None
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in term.parameters())


@pytest.mark.parametrize("student", STUDENTS)
def test_ended_term_is_not_computed_and_the_teacher_runs_for_the_others_alone(student):
    module = module_of(student, {"l2": {"until": 1}, "of_pyramid": OWN["of_pyramid"]}, WIDER[student])
    heads = ("roi_heads.box_head",) if student == FASTER_RCNN else ("head.classification_head.conv",)
    tower = module.teacher.get_submodule(heads[0])
    counted = calls(module.mimic["l2"].loss, module.mimic["of_pyramid"].loss, module.teacher.backbone, tower)
    losses_of(module)
    at_first = counted()
    assert all(at_first)
    module.moment = Moment(epoch=1)
    values = losses_of(module)
    assert counted() == [at_first[0], 2, 2, at_first[3]]
    assert [key for key in values if key.startswith("mimic_")] == ["mimic_l2", "mimic_of_pyramid"]
    assert values["mimic_l2"] == 0
    assert values["mimic_of_pyramid"] > 0
    # Every trained parameter has a gradient, which is what processes of one run wait for.
    sum(values.values()).backward()
    ended, running = (list(module.mimic[name].parameters()) for name in ("l2", "of_pyramid"))
    assert ended
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in ended)
    assert all(parameter.grad.abs().max() > 0 for parameter in running)


@pytest.mark.parametrize("student", STUDENTS)
def test_once_all_terms_have_ended_the_teacher_does_not_run(student):
    module = module_of(student, "lshl2", until=1, **HASHES)
    counted = calls(module.teacher.backbone)
    module.moment = Moment(epoch=1)
    values = losses_of(module)
    assert counted() == [0]
    assert (values["mimic_l2"], values["mimic_lsh"]) == (0, 0)
    assert module.mimic.monitored() == {}
    plain = DetectionModule(small_detector(student), short_schedule()).train()
    expected = losses_of(plain)
    assert all(torch.equal(values[name], loss) for name, loss in expected.items())
    sum(values.values()).backward()
    sum(expected.values()).backward()
    for ours, theirs in zip(module.detector.parameters(), plain.detector.parameters(), strict=True):
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad)


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_run_is_resumed_bit_identically_across_the_end_of_a_term(tmp_path, student):
    def module():
        losses = {"l2": {"until": 1}, "of_pyramid": {**OWN["of_pyramid"], "until": 2}}
        return module_of(student, losses, WIDER[student], seed=5)

    whole = module()
    fit(whole, tmp_path, 3)
    for epochs in (1, 2):
        fit(module(), tmp_path, epochs).save_checkpoint(tmp_path / "last.ckpt")
        resumed = module()
        fit(resumed, tmp_path, 3, ckpt_path=tmp_path / "last.ckpt")
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("student", STUDENTS)
def test_hash_sees_the_adapted_feature(student):
    module = module_of(student, "lsh", WIDER[student], **HASHES)
    seen = []
    module.mimic["lsh"].loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[:2]))
    losses_of(module)
    ours, theirs = seen[0]
    features = ours.shape[1] if student == FASTER_RCNN else 9 * ours[0].shape[1]
    assert module.mimic["lsh"].loss.weight.shape == (32, features)
    adapter = module.mimic["lsh"].adapter
    layer = nn.Linear if student == FASTER_RCNN else nn.Conv2d
    assert isinstance(adapter.layers, layer)
    (ours if student == FASTER_RCNN else ours[0]).sum().backward()
    assert adapter.layers.weight.grad.abs().max() > 0


@pytest.mark.parametrize("student", STUDENTS)
def test_two_families_meet_at_the_pyramid(student):
    (other,) = {*STUDENTS} - {student}
    module = module_of(student, "of_pyramid", WIDER[student], TEACHER_OF[other], **OWN["of_pyramid"])
    values = losses_of(module)
    values["mimic_of_pyramid"].backward()
    assert len(module.mimic["of_pyramid"].adapter.layers) == 4
    assert module.detector.backbone.body.conv1.weight.grad.abs().max() > 0
    context = module.mimic["of_pyramid"].loss.contexts[0]
    assert context.strides == (8, 16, 32, 64)
    assert [boxes.shape for boxes in context.boxes] == [(3, 4), (3, 4)]


def test_smaller_map_is_resized_to_the_larger():
    small, large = torch.rand(2, 3, 4, 5, requires_grad=True), torch.rand(2, 3, 5, 5)
    for ours, theirs in ((small, large), (large, small)):
        student, teacher = resize_to_larger([ours], [theirs])
        assert student[0].shape == teacher[0].shape == large.shape
    student, _ = resize_to_larger([small], [large])
    student[0].sum().backward()
    assert small.grad is not None
    rows = torch.rand(4, 3), torch.rand(4, 3)
    assert resize_to_larger(*rows)[0] is rows[0]


def batch_of(size):
    return Batch([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)], [size], size)


def weighted_squares(student, teacher, weights):
    """The L2 term of maps by its definition: each location's 3×3 neighbourhood, zeros around the map."""
    total = 0.0
    for ours, theirs, weight in zip(student, teacher, weights, strict=True):
        squares = F.pad((ours - theirs).square().mean(dim=1), (1, 1, 1, 1))
        for image, row, column in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
            around = squares[image, row : row + 3, column : column + 3]
            total += weight[image, row, column] * around.mean()
    return total


@pytest.mark.parametrize("is_student_small", [True, False])
def test_maps_of_locations_that_differ_in_size_are_compared_at_the_larger_ones_locations(is_student_small):
    torch.manual_seed(0)
    small, large = torch.rand(2, 5, 3, 4), torch.rand(2, 5, 6, 8)
    same = torch.rand(2, 5, 2, 2), torch.rand(2, 5, 2, 2)
    ours, theirs = (small, large) if is_student_small else (large, small)
    weights = [torch.rand(2, *ours.shape[-2:]), torch.rand(2, 2, 2)]
    pair = Pair([ours, same[0]], [theirs, same[1]], weights)
    found = Term(L2())(pair, batch_of((96, 128)), Moment(), 0)

    grown = F.interpolate(small, (6, 8), mode="bilinear", align_corners=False)
    ours, theirs = (grown, large) if is_student_small else (large, grown)
    if is_student_small:  # each location became four, of a quarter of its weight
        weights[0] = weights[0].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2) / 4
    expected = weighted_squares([ours, same[0]], [theirs, same[1]], weights)
    torch.testing.assert_close(found, expected)
    lsh = Term(LSH(9 * 5, 8))(pair, batch_of((96, 128)), Moment(), 0)
    torch.testing.assert_close(
        lsh, LSH(9 * 5, 8)([ours, same[0]], [theirs, same[1]], Context(weights=weights))
    )


def test_weights_of_an_image_keep_their_sum_in_any_size():
    weights = torch.rand(3, 4, 5)
    weights[1] = 0
    (grown,) = resized_weights([weights], [torch.rand(3, 2, 7, 9)])
    assert grown.shape == (3, 7, 9)
    torch.testing.assert_close(grown.sum(dim=(1, 2)), weights.sum(dim=(1, 2)))
    assert not grown[1].any()
    assert resized_weights([weights], [torch.rand(3, 2, 4, 5)])[0] is weights


class HalfSize(nn.Module):
    """A body whose maps have twice the strides."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, images):
        return {name: F.avg_pool2d(level, 2, ceil_mode=True) for name, level in self.body(images).items()}


@pytest.mark.parametrize("is_student_small", [True, False])
def test_towers_of_other_strides_are_compared(is_student_small):
    student = small_detector(RETINANET, **WIDER[RETINANET], tower_norm="none")
    detectors = student, small_detector(TEACHER_OF[RETINANET], seed=1)
    changed = detectors[0 if is_student_small else 1]
    changed.backbone = HalfSize(changed.backbone)
    terms = build_losses("lshl2", detectors[1], student=detectors[0], **HASHES)
    values = losses_of(DistillationModule(*detectors, terms, short_schedule()).train())
    mimic = [values["mimic_l2"], values["mimic_lsh"]]
    assert all(torch.isfinite(value) and value > 0 for value in mimic)
    sum(mimic).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in terms.parameters())
    with pytest.raises(
        LSHFMError, match="logits are paired anchor by anchor, so expected maps of the same st"
    ):
        make_tap(*detectors, {"logits"})
    features = ground_truth_features(
        [detector.eval() for detector in detectors], *batch_and_targets(), rows_per_image=4,
        generator=torch.Generator(),
    )  # fmt: skip
    assert len(features[0]) == len(features[1]) > 0
    assert all(len({tuple(level.shape[1:]) for level in grid.maps}) == 1 for grid in grids_of(detectors))


def batch_and_targets():
    images, targets = random_batch()
    return as_float(images), targets


def grids_of(detectors):
    return feature_grids(detectors, as_float(random_batch()[0])[0])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l2", "of_pyramid", *ON_MAPS, *ADAPTING])
@pytest.mark.parametrize("student", STUDENTS)
def test_adapters_and_trained_parts_are_trained_saved_for_resuming_and_in_no_file_that_leaves(
    tmp_path, student, loss
):
    def module():
        return module_of(student, loss, WIDER[student], seed=5, **{**ALL, **ON_MAPS, **ADAPTING}[loss])

    whole = module()
    before = {key: value.clone() for key, value in whole.mimic.state_dict().items()}
    names = [name for name, _ in whole.mimic.named_parameters()]
    assert any("adapter" in name for name in names)
    assert any(".loss." in name for name in names) == (loss in ("of_pyramid", "fgd", "mgd", *ADAPTING))
    trainer = fit(whole, tmp_path, 2)
    trained = whole.mimic.state_dict()
    for part in ("adapter", "loss"):
        changed = [not torch.equal(trained[name], before[name]) for name in names if f".{part}." in name]
        assert any(changed) if loss in (*ON_MAPS, "fbkd") and changed else all(changed)
    (group,) = trainer.optimizers[0].param_groups
    detectors = [parameter for parameter in whole.detector.parameters() if parameter.requires_grad]
    assert [id(parameter) for parameter in group["params"]] == [
        id(parameter) for parameter in [*detectors, *whole.mimic.parameters()]
    ]
    trainer.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {f"detector.{key}" for key in whole.detector.state_dict()}

    first = module()
    fit(first, tmp_path, 1).save_checkpoint(tmp_path / "last.ckpt")
    resumed = module()
    fit(resumed, tmp_path, 2, ckpt_path=tmp_path / "last.ckpt")
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_adapter_of_no_weight_changes_nothing_that_is_trained(tmp_path, student):
    states = []
    for losses in (
        {"l2": {"beta": 0.0}},
        {"l2": {"beta": 0.0}, "of_pyramid": {**OWN["of_pyramid"], "weight": 0.0}},
    ):
        module = module_of(student, losses, WIDER[student])
        fit(module, tmp_path, 1)
        states.append(module.detector.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_first_weights_of_trained_parts_depend_on_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    build = {"losses": "of_pyramid", "changes": WIDER[FASTER_RCNN], **OWN["of_pyramid"]}
    modules = []
    for seed in (3, 3, 4):
        torch.set_rng_state(state)
        modules.append(module_of(FASTER_RCNN, seed=seed, init_seed=seed, **build).mimic.state_dict())
    first, again, other = modules
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    weights = [key for key in first if key.endswith("weight")]
    assert all(not torch.equal(first[key], other[key]) for key in weights)


def test_generator_of_a_term_is_seeded_by_the_step_and_its_name():
    module = module_of(FASTER_RCNN, {"one": OWN["of_pyramid"], "two": OWN["of_pyramid"]})
    draws = {}
    for seed in (0, 0, 1):
        module.moment = Moment(seed=seed)
        losses_of(module)
    for name, term in module.mimic.named():
        draws[name] = [float(torch.rand((), generator=context.generator)) for context in term.loss.contexts]
    assert draws["one"][0] == draws["one"][1] != draws["one"][2]
    assert draws["one"][0] != draws["two"][0]


@pytest.mark.parametrize("name", ["lsh", "lshl2"])
def test_checkpoint_of_before_there_were_terms_is_resumed(tmp_path, name):
    module = module_of(FASTER_RCNN, name, **HASHES)
    fit(module, tmp_path, 1).save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    older = {
        key.replace("mimic.lsh.loss.", "mimic."): value for key, value in checkpoint["state_dict"].items()
    }
    assert {"mimic.weight", "mimic.bias"} < older.keys()
    assert module.renamed_state(older).keys() == module.state_dict().keys()
    torch.save({**checkpoint, "state_dict": older}, tmp_path / "older.ckpt")
    states = []
    for file in ("last.ckpt", "older.ckpt"):
        resumed = module_of(FASTER_RCNN, name, **HASHES)
        fit(resumed, tmp_path, 2, ckpt_path=tmp_path / file)
        states.append(resumed.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_monitored_figures_of_several_hashes_have_the_names_of_their_terms():
    module = module_of(
        FASTER_RCNN, {"a": {"name": "lsh", **HASHES}, "b": {"name": "lsh", **HASHES, "seed": 1}}
    )
    assert module.mimic.monitored() == {}
    losses_of(module)
    assert set(module.mimic.monitored()) == {"a_bit_agreement", "b_bit_agreement"}
    single = module_of(FASTER_RCNN, "lsh", **HASHES)
    losses_of(single)
    assert set(single.mimic.monitored()) == {"bit_agreement"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"terms": {"l2": {}}, "beta": 7},
            r"distill.beta: with several losses.* give distill.terms.l2.beta=…",
        ),
        ({"terms": {"l2": {}, "kd": {"beta": -1}}}, "distill.terms.kd.beta: expected a finite number"),
        ({"terms": {"l2": {"until": -1}, "kd": {}}}, "distill.terms.l2.until: expected a finite number"),
        ({"terms": {"l2": {}, "none": {}}}, "expected one of .*kd, l2, lsh, lshl2, .* found 'none'"),
        ({"_target_": "nowhere.Loss"}, "distill._target_: nowhere.Loss cannot be imported"),
        (
            {"_target_": "torch.nn.MSELoss"},
            "expected a subclass of lshfm_pl.mimic.Loss, found torch.nn.MSELoss",
        ),
        (
            {**OWN["of_pyramid"], "weigth": 2},
            "distill.weigth: mine has no such setting; expected one of gain",
        ),
        ({"weight": math.inf}, "distill.weight: expected a finite number"),
    ],
)
def test_wrong_settings_are_reported(settings, message):
    name = "mine" if "pyramid" in settings.get("_target_", "").lower() else "l2"
    with pytest.raises(LSHFMError, match=message):
        build_losses(name, small_detector(TEACHER_OF[FASTER_RCNN]), **settings)


def test_term_is_given_rows_or_maps_in_float32_and_only_what_it_wants():
    class Seen(Loss):
        def forward(self, student, teacher, context):
            self.seen = student.dtype, teacher.requires_grad, context, torch.is_autocast_enabled("cpu")
            return student.sum()

    loss = Seen()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(torch.ones(2, 3).bfloat16(), torch.ones(2, 3, requires_grad=True), Context())
    assert loss.seen == (torch.float32, False, Context(), False)
    assert Term(loss).strength(Moment()) == 1
