"""Learning-rate factors against torch's own schedulers and hand-computed values."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small_detectors import EVERY_STUDENT, as_float, random_batch, small_detector
from torch import nn

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors.bodies import body_layers
from lshfm_pl.errors import LSHFMError
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.optim import Schedule, build_optimizer, build_scheduler

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}


def rates(schedule, steps_per_epoch, images_per_step=8):
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], schedule, images_per_step)
    scheduler = build_scheduler(optimizer, schedule, steps_per_epoch)
    values = []
    for _ in range(schedule.epochs * steps_per_epoch):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_published_schedule_warms_up_then_drops_after_18_and_22_epochs():
    schedule = Schedule(epochs=24, lr=0.01, optimizer=SGD, warmup_steps=1000, milestones=(18, 22))
    values = rates(schedule, steps_per_epoch=2069)
    assert values[0] == pytest.approx(0.01 / 1000)
    assert values[500] == pytest.approx(0.01 * (0.001 * 0.5 + 0.5))
    assert values[1000] == values[18 * 2069 - 1] == pytest.approx(0.01)
    assert values[18 * 2069] == values[22 * 2069 - 1] == pytest.approx(0.001)
    assert values[22 * 2069] == values[-1] == pytest.approx(0.0001)


def test_warm_up_ends_with_the_first_epoch_on_small_data():
    schedule = Schedule(epochs=3, lr=1.0, optimizer=SGD, warmup_steps=1000, milestones=(2,))
    values = rates(schedule, steps_per_epoch=10)
    assert values[:10] == sorted(values[:10])
    assert values[9] == values[19] == pytest.approx(1.0)
    assert values[20] == pytest.approx(0.1)


@pytest.mark.parametrize("name", EVERY_STUDENT)
def test_fine_tuning_on_a_single_batch_moves_no_weight_by_more_than_the_rate_in_its_first_step(name):
    """One step an epoch leaves no room for a warm-up, but AdamW's first step has the size of the rate."""
    with initialize_config_dir(str(CONFIG_DIR / "schedule"), version_base="1.3"):
        schedule = Schedule(**OmegaConf.to_container(compose("finetune")))
    assert schedule.factor(0, steps_per_epoch=1) == 1
    module = DetectionModule(small_detector(name, norm="bn")).train()
    optimizer = build_optimizer(module.parameters(), schedule, images_per_step=8)
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    images, targets = random_batch(num_images=4)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(sum(module.losses(as_float(images), targets).values()))
        optimizer.zero_grad()
        losses[-1].backward()
        if len(losses) == 1:
            optimizer.step()
    decay = schedule.optimizer["weight_decay"]
    for key, value in module.named_parameters():
        most = schedule.lr * (1 + decay * before[key].abs())
        assert ((value - before[key]).abs() <= 1.01 * most + 1e-7).all(), key
    assert losses[1] < 1.02 * losses[0]


def test_cosine_equals_torchs():
    schedule = Schedule(epochs=4, lr=1.0, optimizer=SGD, decay="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(schedule, steps_per_epoch=10) == pytest.approx(expected, abs=1e-9)


def test_one_cycle_equals_torchs():
    schedule = Schedule(epochs=4, lr=1.0, optimizer=SGD, decay="one_cycle", warmup_steps=5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=40, cycle_momentum=False
    )
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(schedule, steps_per_epoch=10) == pytest.approx(expected, abs=1e-9)
    assert rates(Schedule(epochs=1, lr=1.0, optimizer=SGD, decay="one_cycle"), 1) == [1.0]


@pytest.mark.parametrize("steps", [4, 15])
def test_rate_of_the_backbone_follows_its_factor_also_on_a_loaded_state(steps):
    schedule = Schedule(epochs=2, lr=0.02, optimizer=SGD, milestones=(1,), backbone_lr_factor=0.1)

    def made():
        of_head, of_body = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        optimizer = build_optimizer([of_body, of_head], schedule, 8, backbone=[[of_body]])
        return of_head, of_body, optimizer, build_scheduler(optimizer, schedule, 10)

    of_head, of_body, optimizer, scheduler = made()
    assert [group["params"] for group in optimizer.param_groups] == [[of_head], [of_body]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    rate = 0.02 if steps < 10 else 0.002
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, rate / 10])
    _, _, again, scheduler_again = made()
    again.load_state_dict(optimizer.state_dict())
    scheduler_again.load_state_dict(scheduler.state_dict())
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("num_layers", "rates"),
    [(3, [0.25, 0.5, 1.0]), (12, [0.5 ** (11 - layer) for layer in range(12)]), (24, None)],
)
def test_rate_decays_from_each_group_of_layers_to_the_one_before_it(num_layers, rates):
    schedule = Schedule(epochs=1, lr=2.0, optimizer=SGD, layer_decay=0.5, backbone_lr_factor=0.1)
    layers = [[nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))] for _ in range(num_layers)]
    head = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([*(p for layer in layers for p in layer), head], schedule, 8, backbone=layers)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(head)] == 2.0
    rates = rates or [0.5 ** (11 - layer // 2) for layer in range(24)]
    assert [rate[id(layer[0])] for layer in layers] == pytest.approx([0.2 * value for value in rates])
    assert [rate[id(layer[1])] for layer in layers] == [rate[id(layer[0])] for layer in layers]


@pytest.mark.parametrize("value", [0, 1.2, "fast"])
def test_layer_decay_of_no_sense_is_refused(value):
    with pytest.raises(LSHFMError, match="schedule.layer_decay: expected a number above 0"):
        Schedule(epochs=1, lr=1.0, optimizer=SGD, layer_decay=value)


@pytest.mark.parametrize("name", [*EVERY_STUDENT, "fasterrcnn_resnet50c4"])
def test_backbone_is_all_but_neck_and_heads(name):
    with torch.device("meta"):
        detector = small_detector(name, backbone_weights=None)
    own = {id(parameter) for layer in body_layers(detector) for parameter in layer}
    names = [key for key, parameter in detector.named_parameters() if id(parameter) in own]
    others = [key for key, parameter in detector.named_parameters() if id(parameter) not in own]
    assert names
    assert others
    is_cut = name.endswith("c4")
    starts = ("backbone.", "roi_heads.box_head.0.") if is_cut else ("backbone.",)
    assert all(key.startswith(starts) for key in names)
    assert not any(key.startswith(("backbone.body.", "backbone.features.")) for key in others)
    assert any(key.startswith("roi_heads.box_head.0.") for key in names) == is_cut


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"_target_": "torch.optim.NAdam", "weight_decay": 0.01}, torch.optim.NAdam),
        ({"_target_": "torch.optim.RMSprop", "name": "sgd", "momentum": 0.9}, torch.optim.RMSprop),
        ({"_target_": "torch.optim.Adafactor"}, torch.optim.Adafactor),
    ],
)
def test_any_optimizer_of_torch_by_its_import_path(settings, kind):
    schedule = Schedule(epochs=1, lr=0.1, optimizer=settings)
    optimizer = build_optimizer([nn.Parameter(torch.ones(2, 3))], schedule, 8, fused=True)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "torch.optim.Nadam"}, "such as torch.optim.NAdam, found nothing of this name at"),
        ({"_target_": "torch.nn.Linear"}, "found no optimizer at torch.nn.Linear"),
        ({"_target_": "torch.optim.LBFGS"}, "does not fit, since it computes the loss several times"),
        ({"_target_": "torch.optim.NAdam", "nesterov": True}, "by ~schedule.optimizer.nesterov"),
    ],
)
def test_wrong_optimizers_are_reported_in_one_line(settings, message):
    with pytest.raises(LSHFMError, match=rf"^schedule.optimizer[^\n]+{message}[^\n]*$"):
        build_optimizer([nn.Parameter(torch.zeros(1))], Schedule(epochs=1, lr=0.1, optimizer=settings), 8)


def test_rate_scales_with_the_images_a_step():
    schedule = Schedule(epochs=1, lr=0.01, optimizer=SGD)
    assert schedule.scaled_lr(8) == pytest.approx(0.01)
    assert schedule.scaled_lr(2) == pytest.approx(0.0025)


def test_frozen_parameters_are_left_out_and_settings_reach_the_optimizer():
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)]
    optimizer = build_optimizer(parameters, Schedule(epochs=1, lr=1.0, optimizer=SGD), 8)
    assert optimizer.param_groups[0]["params"] == parameters[:1]
    assert optimizer.defaults["weight_decay"] == 1e-4
    adamw = build_optimizer(parameters, Schedule(epochs=1, lr=1.0, optimizer={"name": "adamw"}), 8)
    assert isinstance(adamw, torch.optim.AdamW)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimizers_do_what_the_others_do_and_the_config_goes_first(name):
    settings = SGD if name == "sgd" else {"name": "adamw", "weight_decay": 0.01}
    schedule = Schedule(epochs=1, lr=0.1, optimizer=settings)
    values = []
    for fused in (False, True):
        parameters = [nn.Parameter(torch.linspace(-1, 1, 20)), nn.Parameter(torch.ones(3, 2))]
        optimizer = build_optimizer(parameters, schedule, 8, fused=fused)
        assert bool(optimizer.defaults["fused"]) is fused
        for step in range(3):
            for parameter in parameters:
                parameter.grad = (step + 1) * parameter.detach().cos()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        before = [parameter.clone() for parameter in parameters]
        optimizer.step()  # without gradients no weight changes, as in a skipped step
        assert all(map(torch.equal, parameters, before))
        values.append(parameters)
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-7)
    for key, value in (("fused", False), ("foreach", True)):
        asked = Schedule(epochs=1, lr=0.1, optimizer={**settings, key: value})
        defaults = build_optimizer(values[0], asked, 8, fused=True).defaults
        assert defaults[key] is value
        assert not defaults["fused"]


@pytest.mark.parametrize("wrong", [{"momentum": -1}, {"nesterov": True, "momentum": 0}, {"beta": 1}])
def test_what_the_optimizer_does_not_take_is_reported_in_one_line(wrong):
    schedule = Schedule(epochs=1, lr=0.1, optimizer={"name": "sgd", **wrong})
    with pytest.raises(LSHFMError, match=r"^schedule.optimizer: sgd does not accept these arguments: .+$"):
        build_optimizer([nn.Parameter(torch.zeros(1))], schedule, 8)


def saved_after(steps, schedule, steps_per_epoch=10):
    """A parameter, its optimizer and scheduler after some steps."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([parameter], schedule, 8)
    scheduler = build_scheduler(optimizer, schedule, steps_per_epoch)
    for _ in range(steps):
        parameter.grad = parameter.detach().cos()
        optimizer.step()
        scheduler.step()
    return parameter, optimizer, scheduler


SCHEDULES = [
    {"optimizer": SGD, "warmup_steps": 7, "milestones": (1,)},
    {"optimizer": {"name": "adamw", "weight_decay": 0.05}, "decay": "cosine"},
]


@pytest.mark.parametrize("steps", [4, 15])
@pytest.mark.parametrize("settings", SCHEDULES)
def test_loaded_state_with_the_same_settings_is_the_saved_one_to_the_bit(settings, steps):
    schedule = Schedule(epochs=3, lr=0.013, **settings)
    _, optimizer, scheduler = saved_after(steps, schedule)
    _, again, scheduler_again = saved_after(0, schedule)
    again.load_state_dict(optimizer.state_dict())
    scheduler_again.load_state_dict(scheduler.state_dict())
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert scheduler_again.state_dict() == scheduler.state_dict()


@pytest.mark.parametrize("steps", [4, 15])
@pytest.mark.parametrize("settings", SCHEDULES)
def test_other_settings_take_effect_on_a_loaded_state(settings, steps):
    parameter, optimizer, scheduler = saved_after(steps, Schedule(epochs=3, lr=0.013, **settings))
    saved, saved_scheduler = optimizer.state_dict(), scheduler.state_dict()
    weight_decay = saved["param_groups"][0]["weight_decay"]
    other = {**settings, "optimizer": {**settings["optimizer"], "weight_decay": 0.5}}
    _, lower, lower_scheduler = saved_after(0, Schedule(epochs=3, lr=0.002, **other))
    lower.load_state_dict(saved)
    lower_scheduler.load_state_dict(saved_scheduler)
    for further in range(3):
        _, expected, _ = saved_after(steps + further, Schedule(epochs=3, lr=0.002, **other))
        assert lower.state_dict()["param_groups"] == expected.state_dict()["param_groups"]
        assert lower_scheduler.get_last_lr() == [lower.param_groups[0]["lr"]]
        lower.step()
        lower_scheduler.step()
    assert lower.param_groups[0]["weight_decay"] == 0.5
    (momenta,), (before,) = lower.state.values(), optimizer.state.values()
    assert all(torch.equal(momenta[key], before[key]) for key in momenta)
    assert saved["param_groups"][0]["weight_decay"] == weight_decay  # the content of the file does not change


def test_state_of_another_network_is_still_refused():
    _, optimizer, _ = saved_after(1, Schedule(epochs=1, lr=0.1, optimizer=SGD))
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({**state, "param_groups": state["param_groups"] * 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "poly"}, "schedule.decay: expected multistep, cosine, one_cycle, found 'poly'"),
        (
            {"optimizer": {"name": "lion"}},
            "schedule.optimizer.name: expected one of sgd, adamw, found 'lion'",
        ),
        ({"epochs": 0}, "schedule.epochs"),
        ({"lr": -1.0}, "schedule.lr"),
        ({"lr": "abc"}, "schedule.lr: expected a number > 0, found 'abc'"),
        ({"milestones": None}, "schedule.milestones: expected a list of epochs, found None"),
        ({"warmup_steps": -1}, "schedule.warmup_steps"),
    ],
)
def test_bad_schedules_are_reported(changes, message):
    with pytest.raises(LSHFMError, match=message):
        Schedule(**{"epochs": 1, "lr": 1.0, "optimizer": SGD, **changes})


def test_nothing_trainable_is_reported():
    with pytest.raises(LSHFMError, match="no trainable parameter"):
        build_optimizer([], Schedule(epochs=1, lr=1.0, optimizer=SGD), 8)
