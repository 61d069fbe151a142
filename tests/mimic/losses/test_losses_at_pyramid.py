"""l2, lsh and lshl2 between the maps of feature pyramids."""

import pytest
import torch
import torch.nn.functional as F
from small_detectors import EVERY_STUDENT, TEACHER_OF, as_float, random_batch, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import L2, LSH, LSHL2, Context, build_losses
from lshfm_pl.mimic.features.towers import neighbourhoods
from lshfm_pl.training import DistillationModule

SSD = EVERY_STUDENT[3]


def maps(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 8, side, side + 1, generator=generator) for side in (7, 4, 2)]


def test_levels_count_the_same_and_so_do_the_locations_of_a_level():
    student, teacher = maps(0), maps(1)
    head = LSH(72, 16, std=1.0, point="pyramid")
    for loss in (L2(2.0, point="pyramid"), head):
        found = loss(student, teacher)
        of_levels = []
        for levels in zip(student, teacher, strict=True):
            rows = [neighbourhoods([level]).flatten(0, 1) for level in levels]
            of_levels.append(loss(*rows))
        torch.testing.assert_close(found, torch.stack(of_levels).mean())


def test_sum_of_both_is_at_the_point_of_its_parts():
    both = LSHL2(72, 16, std=1.0, point="pyramid")
    assert {loss.point for loss in both.losses.values()} == {"pyramid"}
    student, teacher = maps(0), maps(1)
    expected = L2()(student, teacher, Context()) + both.lsh(student, teacher)
    torch.testing.assert_close(both(student, teacher), expected)


@pytest.mark.parametrize("name", ["l2", "lsh", "lshl2"])
@pytest.mark.parametrize("student", EVERY_STUDENT)
def test_student_of_another_family_learns_from_the_maps_of_a_teacher(student, name):
    other = EVERY_STUDENT[EVERY_STUDENT.index(student) - 1]
    detector = small_detector(student, **({} if student == SSD else {"fpn_channels": 48})).train()
    teacher = small_detector(TEACHER_OF[other], seed=1)
    settings = {} if name == "l2" else {"num_hashes": 32}
    losses = build_losses(name, teacher, student=detector, point="pyramid", **settings)
    module = DistillationModule(detector, teacher, losses).train()
    images, targets = random_batch()
    terms = module.losses(as_float(images), targets)
    mimic = sum(value for key, value in terms.items() if key.startswith("mimic_"))
    mimic.backward()
    assert len(losses.adapters()) == (2 if name == "lshl2" else 1)
    assert torch.isfinite(mimic)
    assert next(detector.parameters()).grad.any()


WIDTHS = (8, 3, 8)


def maps_of_several_widths(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = zip(WIDTHS, (7, 4, 1), strict=True)
    return [torch.randn(2, width, side, side + 1, generator=generator) for width, side in sizes]


@pytest.mark.parametrize("hash_loss", ["bce", "l1", "l2"])
def test_each_width_has_its_own_hash(hash_loss):
    student, teacher = maps_of_several_widths(0), maps_of_several_widths(1)
    head = LSH([9 * width for width in WIDTHS], 16, std=0.2, hash_loss=hash_loss, beta=2.0, point="pyramid")
    levels = [level.requires_grad_() for level in student]
    value = head(levels, teacher)
    value.backward()
    reference = {
        "bce": lambda found, wanted: F.binary_cross_entropy_with_logits(found, (wanted > 0).double()),
        "l1": F.l1_loss,
        "l2": F.mse_loss,
    }[hash_loss]
    again = [level.detach().double().requires_grad_() for level in student]
    parts, same = [], []
    for ours, theirs in zip(again, teacher, strict=True):
        weight = head.get_buffer(f"weight_{9 * ours.shape[1]}").double()
        found, wanted = (neighbourhoods([level]) @ weight.T for level in (ours, theirs.double()))
        parts.append(reference(found, wanted))
        same.append(((found > 0) == (wanted > 0)).double().mean())
    expected = 2 * torch.stack(parts).mean()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert head.bit_agreement.item() == pytest.approx(torch.stack(same).mean().item(), rel=1e-5)
    for level, in_float64 in zip(levels, again, strict=True):
        torch.testing.assert_close(level.grad.double(), in_float64.grad, rtol=1e-4, atol=1e-7)


def test_hashes_of_several_widths_are_fixed_by_seed_and_width():
    first, second = (LSH([72, 27], seed=5, point="pyramid") for _ in range(2))
    assert set(first.state_dict()) == {"weight_72", "bias_72", "weight_27", "bias_27"}
    assert first.weight_72.shape == (4 * 27, 72)
    assert first.weight_27.shape == (4 * 27, 27)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert not torch.equal(first.weight_72, LSH([72, 27], seed=6, point="pyramid").weight_72)
    # The same width at all levels is as one number: names and values are those of before.
    same = LSH([72, 72], 16, seed=5, point="pyramid").state_dict()
    alone = LSH(72, 16, seed=5).state_dict()
    assert same.keys() == alone.keys()
    assert torch.equal(same["weight"], alone["weight"])


def test_hashes_of_several_widths_come_from_a_file(tmp_path):
    source = LSH([72, 27], 9, seed=4, point="pyramid")
    source.bias_27.fill_(0.25)
    state = {f"mimic.lsh.loss.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    head = LSH([27, 72], hash_weights=tmp_path / "last.ckpt", point="pyramid")
    for key, value in source.state_dict().items():
        assert torch.equal(value, head.state_dict()[key])
    with pytest.raises(LSHFMError, match=r"last.ckpt: expected a hash matrix 'weight' of shape \[H, 72\]"):
        LSH(72, hash_weights=tmp_path / "last.ckpt", point="pyramid")


def test_some_of_the_hashes_of_each_width_are_drawn():
    head = LSH([72, 27], 16, hashes_per_step=5, point="pyramid")
    assert [head._functions_of_step(width)[0].shape for width in (72, 27)] == [(5, 72), (5, 27)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"point": "neck"}, "distill.point: expected one of penultimate, pyramid, found 'neck'"),
        ({"point": "pyramid", "bias": "mean"}, "distill.bias: expected 0 at pyramid, found 'mean'"),
        ({"num_features": [8, 9]}, r"expected one number of features at penultimate, found \[8, 9\]"),
    ],
)
def test_wrong_settings_are_reported(settings, message):
    with pytest.raises(LSHFMError, match=message):
        LSH(**{"num_features": 72, "num_hashes": 8, **settings})
