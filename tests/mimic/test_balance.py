"""Factors of mimic terms that follow from the size of their gradients."""

import copy

import pytest
import torch
from small_detectors import STUDENTS, short_schedule, small_detector
from test_terms import HASHES, OWN, fit, losses_of, module_of

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import Moment, build_losses
from lshfm_pl.mimic.balance import Balance, Rule, gradient_norms
from lshfm_pl.training import DetectionModule

SUM = {"l2": {}, "lshl2": HASHES, "kd": {"share": 0.3}}
EVERY = {"balance": "share", "balance_rule": {"share": 0.05, "every_steps": 1}}


def alone(values):
    return values


def test_norms_are_those_of_the_gradients_on_all_maps():
    maps = [torch.randn(2, 3, size, size, requires_grad=True) for size in (4, 2)]
    unused = torch.randn(2, 3, 1, 1, requires_grad=True)
    losses = [(maps[0] * 3).sum(), maps[1].square().sum(), None]
    found = gradient_norms(losses, [*maps, unused], alone)
    expected = [3 * maps[0].numel() ** 0.5, 2 * maps[1].norm().item(), 0]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_maps_of_frozen_layers_are_left_out_and_refused_if_there_are_no_others():
    frozen, trained = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2, requires_grad=True)
    found = gradient_norms([(2 * trained + frozen).sum()], [frozen, trained], alone)
    torch.testing.assert_close(found, torch.tensor([2 * 8**0.5]))
    with pytest.raises(LSHFMError, match="distill.balance=share: .* frozen: give distill.balance=fixed"):
        gradient_norms([frozen.sum().requires_grad_()], [frozen], alone)


def test_factor_is_the_geometric_mean_of_what_measurements_ask_for():
    balance = Balance({"a": 0.5, "b": 0.1}, Rule(of_last=2))
    assert [float(factor) for factor in balance.factors().values()] == [1, 1]
    for step, sizes in enumerate([[2.0, 1.0, 4.0], [8.0, 1.0, 0.0], [1.0, 0.5, float("nan")]]):
        balance.measure(torch.tensor(sizes), step)
    factors = balance.factors()
    first = (1 * 4) ** 0.5
    assert float(factors["a"]) == pytest.approx((first * 1) ** 0.5)  # the last two steps each count half
    assert float(factors["b"]) == pytest.approx(0.05)
    for sizes in ([0.0, 1.0, 1.0], [float("inf"), 1.0, 1.0]):
        balance.measure(torch.tensor(sizes), 7)
    assert balance.factors() == factors


def test_a_step_that_is_repeated_with_the_same_state_does_not_change_the_factors():
    balance = Balance({"a": 0.1}, Rule())
    balance.measure(torch.tensor([1.0, 2.0]), 5)
    saved = copy.deepcopy(balance.state_dict())
    balance.measure(torch.tensor([1.0, 3.0]), 5)
    assert all(torch.equal(value, balance.state_dict()[key]) for key, value in saved.items())
    balance.measure(torch.tensor([1.0, 3.0]), 6)
    assert not torch.equal(saved["log_factor"], balance.state_dict()["log_factor"])


def test_factors_stay_between_the_limits_and_a_share_of_0_turns_a_term_off():
    balance = Balance({"a": 0.1, "b": 0.1, "off": 0.0}, Rule(limits=(0.01, 10.0)))
    balance.measure(torch.tensor([1.0, 1e-9, 1e9, 1.0]), 0)
    assert [round(float(factor), 6) for factor in balance.factors().values()] == [10, 0.01, 0]


def test_gradients_are_measured_in_the_first_steps_and_then_at_intervals():
    rule = Rule(first_steps=3, every_steps=5)
    assert [step for step in range(16) if rule.is_due(step)] == [0, 1, 2, 5, 10, 15]
    assert (rule.usual_step, Rule().usual_step, Rule(every_steps=1).usual_step) == (3, 21, 0)


@pytest.mark.parametrize("student", STUDENTS)
def test_each_term_has_its_share_of_the_gradient_of_the_detection_losses(student):
    module = module_of(student, SUM, **EVERY)
    maps = []
    with module._recording_maps(maps):
        values = losses_of(module)
    own = sum(value for name, value in values.items() if not name.startswith("mimic_"))
    terms = {name: value for name, value in values.items() if name.startswith("mimic_")}
    sizes = gradient_norms([own, *terms.values()], maps, alone)
    shares = dict(zip(terms, (sizes[1:] / sizes[0]).tolist(), strict=True))
    # The two parts of LSHL2 have one share together.
    expected = {"mimic_l2": 0.05, "mimic_lshl2_l2": 0.025, "mimic_lsh": 0.025, "mimic_kd": 0.3}
    expected = {name.replace("mimic_l2", "mimic_l2_l2"): share for name, share in expected.items()}
    assert shares == pytest.approx(expected, rel=1e-3)
    assert set(module.monitored()) >= {"factor_kd", "factor_lsh"}


@pytest.mark.parametrize(("overall", "balanced"), [(None, {"l2"}), ("share", {"l2", "kd"}), ("fixed", set())])
def test_each_loss_of_a_sum_has_its_own_way_unless_one_is_given_for_all(overall, balanced):
    rule = EVERY["balance_rule"]
    terms = {"l2": {"balance": "share", "beta": 2.0}, "kd": {"beta": 3.0}}
    module = module_of(STUDENTS[0], terms, balance=overall, balance_rule=rule)
    fixed = losses_of(module_of(STUDENTS[0], terms, balance="fixed"))
    found = losses_of(module)
    factors = {name for name in module.monitored() if name.startswith("factor_")}
    assert factors == {f"factor_{name}" for name in balanced}
    same = {name for name in terms if torch.equal(found[f"mimic_{name}"], fixed[f"mimic_{name}"])}
    assert same == terms.keys() - balanced


@pytest.mark.parametrize("student", STUDENTS)
def test_weight_and_beta_do_not_change_the_loss_but_a_warm_up_does(student):
    plain = losses_of(module_of(student, "l2", **EVERY))["mimic_l2"]
    other = losses_of(module_of(student, "l2", beta=7.0, weight=3.0, **EVERY))["mimic_l2"]
    rising = losses_of(module_of(student, "l2", warmup_steps=4, **EVERY))["mimic_l2"]
    torch.testing.assert_close(other, plain)
    torch.testing.assert_close(rising, plain / 4)


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"share": 0.0}])
def test_term_that_is_off_leaves_plain_training_bit_equal(tmp_path, settings):
    student = STUDENTS[0]
    plain = DetectionModule(small_detector(student), short_schedule())
    fit(plain, tmp_path, 1)
    module = module_of(student, "l2", **EVERY, **settings)
    fit(module, tmp_path, 1)
    for key, value in plain.detector.state_dict().items():
        assert torch.equal(value, module.detector.state_dict()[key]), key


@pytest.mark.parametrize("student", STUDENTS)
def test_run_is_resumed_bit_identically_with_its_factors(tmp_path, student):
    def module():
        return module_of(
            student,
            {"l2": {"until": 0.7}, "of_pyramid": {**OWN["of_pyramid"], "match_scale": True}},
            seed=5,
            **EVERY,
        )

    whole = module()
    fit(whole, tmp_path, 3)
    fit(module(), tmp_path, 1).save_checkpoint(tmp_path / "last.ckpt")
    resumed = module()
    fit(resumed, tmp_path, 3, ckpt_path=tmp_path / "last.ckpt")
    assert whole.balance.count.min() > 1
    assert (whole.mimic["of_pyramid"].scale != 1).all()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_batch_without_boxes_is_no_crash():
    for student in STUDENTS:
        module = module_of(student, "l2", **EVERY)
        values = losses_of(module, boxless=(0, 1))
        assert all(value.isfinite() for value in values.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": "even"}, "distill.balance: expected fixed or share, found 'even'"),
        ({"balance_rule": {"steps": 3}}, "distill.balance_rule.steps: expected one of share, first_steps"),
        (
            {"balance_rule": {"every_steps": 0}},
            "distill.balance_rule.every_steps: expected a whole number ≥ 1",
        ),
        ({"balance_rule": {"limits": [2.0, 1.0]}}, "distill.balance_rule.limits: expected the smallest and"),
        ({"balance_rule": {"share": -1}}, "distill.balance_rule.share: expected a finite number"),
        ({"share": -1}, "distill.share: expected a finite number"),
    ],
)
def test_wrong_setting_is_refused(settings, message):
    with pytest.raises(LSHFMError, match="^" + message.replace("[", r"\[")):
        build_losses("l2", small_detector(STUDENTS[0]), **settings)


def test_wrong_way_is_refused_by_the_key_where_it_stands():
    with pytest.raises(LSHFMError, match=r"^distill\.balance: expected fixed or share"):
        build_losses("a+b", small_detector(STUDENTS[0]), terms={"l2": {}, "kd": {}}, balance="even")
    with pytest.raises(LSHFMError, match=r"^distill\.terms\.kd\.balance: expected fixed or share"):
        build_losses("a+b", small_detector(STUDENTS[0]), terms={"l2": {}, "kd": {"balance": "even"}})


def test_fall_of_a_term_and_times_as_shares_of_the_run():
    def course(step, **settings):
        term = build_losses("l2", small_detector(STUDENTS[0]), **settings)["l2"]
        return term.course(Moment(step, step // 10, steps=40, epochs=4))

    steps = (0, 10, 19, 20, 25, 30, 39)
    assert [course(step, until=0.5) for step in steps] == [1, 1, 1, 0, 0, 0, 0]
    assert [course(step, until=2) for step in steps] == [1, 1, 1, 0, 0, 0, 0]
    assert [course(step, decay_from=0.5) for step in steps] == pytest.approx([1, 1, 1, 1, 0.75, 0.5, 0.05])
    assert [course(step, decay_from=1, until=3) for step in steps] == pytest.approx(
        [1, 1, 0.55, 0.5, 0.25, 0, 0]
    )
    assert course(0, until=0) == 0
    with pytest.raises(LSHFMError, match="decay_from: expected a time before distill.until=0.5, found 0.8"):
        build_losses("l2", small_detector(STUDENTS[0]), decay_from=0.8, until=0.5)
