"""Losses from config values, and hash matrices from files."""

from importlib.metadata import EntryPoint

import pytest
import torch
from small_detectors import STUDENTS, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import L2, LSH, build_losses, tap_of


@pytest.fixture(scope="module")
def teacher():
    return small_detector(STUDENTS[0])


def build_lsh(teacher, name="lsh", **settings):
    return build_losses(name, teacher, **settings)["lsh"].loss


def test_std_defaults_to_the_teachers_classifier(teacher):
    by_default = build_lsh(teacher, num_hashes=4000, std=None, seed=3)
    given = build_lsh(teacher, num_hashes=4000, std=0.5, seed=3)
    std = tap_of(teacher).classifier_std
    assert by_default.weight.std().item() == pytest.approx(std, rel=0.02)
    torch.testing.assert_close(given.weight, 0.5 / std * by_default.weight)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda hash_: hash_,
        lambda hash_: {"state_dict": prefixed(hash_, "mimic.")},
        lambda hash_: {"state_dict": prefixed(hash_, "mimic.lsh.loss.")},
    ],
)
def test_hash_weights_are_shared_through_a_file(teacher, tmp_path, wrap):
    source = LSH(256, num_hashes=7, seed=9)
    torch.save(wrap(source.state_dict()), tmp_path / "hash.pt")
    loss = build_lsh(teacher, "lshl2", num_hashes=None, hash_weights=tmp_path / "hash.pt", seed=1)
    assert torch.equal(loss.weight, source.weight)


def prefixed(state, prefix):
    trained = {"detector.weight": torch.zeros(1), "mimic.l2.adapter.layers.weight": torch.zeros(3, 4)}
    return {**trained, **{f"{prefix}{key}": value for key, value in state.items()}}


def test_number_of_hashes_follows_the_file(teacher, tmp_path):
    torch.save(LSH(256, num_hashes=7).state_dict(), tmp_path / "hash.pt")
    with pytest.raises(LSHFMError, match="distill.num_hashes: the file of distill.hash_weights sets it"):
        build_lsh(teacher, num_hashes=9, hash_weights=tmp_path / "hash.pt", seed=1)


def test_unknown_name_and_unfit_files_are_reported(teacher, tmp_path):
    with pytest.raises(LSHFMError, match="expected one of .*kd, l2, lsh, lshl2, .* found 'kl'"):
        build_losses("kl", teacher)
    with pytest.raises(LSHFMError, match="absent"):
        build_lsh(teacher, hash_weights=tmp_path / "absent.pt")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(LSHFMError, match="other.pt holds no hash matrix"):
        build_lsh(teacher, hash_weights=tmp_path / "other.pt")
    torch.save({"weight": torch.zeros(4, 13)}, tmp_path / "long.pt")
    with pytest.raises(LSHFMError, match=r"long.pt.*\[H, 256\], found \[4, 13\]"):
        build_lsh(teacher, hash_weights=tmp_path / "long.pt")


@pytest.mark.parametrize(
    ("bias", "expected"), [(0, None), ("0", None), ("mean", "mean"), ("median", "median")]
)
def test_bias_setting_becomes_a_calibration(teacher, bias, expected):
    loss = build_lsh(teacher, num_hashes=8, bias=bias, bias_images=30)
    assert (loss.centre, loss.calibration_images) == (expected, 30 if expected else 0)


def test_median_of_an_even_number_can_be_the_published_one(teacher):
    loss = build_lsh(teacher, num_hashes=8, bias="median", bias_images=30, bias_even_median="lower")
    loss.calibrate(torch.eye(256)[:2])
    expected = torch.minimum(loss.weight[:, 0], loss.weight[:, 1])
    torch.testing.assert_close(loss.bias, -expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": "mode"}, "distill.bias: expected 0, mean or median, found 'mode'"),
        (
            {"bias": "median", "bias_even_median": "upper"},
            "bias_even_median: expected mean or lower, found 'upper'",
        ),
        ({"bias": "mean", "bias_images": 0}, "distill.bias_images: expected a whole number of at least 1"),
        ({"num_hashs": 3}, "distill.num_hashs: lsh has no such setting; expected one of num_hashes, beta"),
        ({"num_hashes": True}, "distill.num_hashes: expected a whole number ≥ 1, found True"),
        ({"beta": True}, "distill.beta: expected a finite number ≥ 0, found True"),
        ({"kd_beta": -1}, "distill.kd_beta: expected a finite number"),
        ({"kd_beta": 1, "temperature": 0}, "distill.temperature: expected a number > 0"),
    ],
)
def test_wrong_settings_are_reported(teacher, settings, message):
    with pytest.raises(LSHFMError, match=message):
        build_losses("lsh", teacher, **settings)


def test_bias_of_a_loss_without_hash_is_refused(teacher):
    with pytest.raises(LSHFMError, match="distill.bias: l2 has no such setting; expected one of beta"):
        build_losses("l2", teacher, bias="mean")


def test_loss_of_another_package_is_found_by_its_entry_point(teacher, monkeypatch):
    found = EntryPoint("theirs", "lshfm_pl.mimic.losses.l2:L2", "lshfm_pl.losses")
    monkeypatch.setattr(
        "lshfm_pl.mimic.build.entry_points",
        lambda *, group, name: [found] if (group, name) == (found.group, found.name) else [],
    )
    terms = build_losses("theirs", teacher, beta=3.0)
    assert list(terms) == ["theirs"]
    assert isinstance(terms["theirs"].loss, L2)
