"""Heads from config values, and hash matrices from files."""

import pytest
import torch
from small_detectors import STUDENTS, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import LSH, BiasCalibration, build_losses, build_mimic_head
from lshfm_pl.mimic.features import MimicSize

SIZE = MimicSize(num_features=12, classifier_std=0.25)


def test_std_defaults_to_the_teachers_classifier():
    by_default = build_mimic_head("lsh", SIZE, num_hashes=4000, std=None, seed=3)
    given = build_mimic_head("lsh", SIZE, num_hashes=4000, std=0.5, seed=3)
    assert by_default.weight.std().item() == pytest.approx(0.25, rel=0.02)
    torch.testing.assert_close(given.weight, 2 * by_default.weight)


@pytest.mark.parametrize("wrap", [lambda hash_: hash_, lambda hash_: {"state_dict": prefixed(hash_)}])
def test_hash_weights_are_shared_through_a_file(tmp_path, wrap):
    source = LSH(12, num_hashes=7, seed=9)
    torch.save(wrap(source.state_dict()), tmp_path / "hash.pt")
    head = build_mimic_head("lshl2", SIZE, num_hashes=None, hash_weights=tmp_path / "hash.pt", seed=1)
    assert torch.equal(head.weight, source.weight)


def prefixed(state):
    return {f"mimic.{key}": value for key, value in state.items()} | {"detector.weight": torch.zeros(1)}


def test_number_of_hashes_follows_the_file(tmp_path):
    torch.save(LSH(12, num_hashes=7).state_dict(), tmp_path / "hash.pt")
    with pytest.raises(LSHFMError, match="distill.num_hashes: the file of distill.hash_weights sets it"):
        build_mimic_head("lsh", SIZE, num_hashes=9, hash_weights=tmp_path / "hash.pt", seed=1)


def test_unknown_name_and_unfit_files_are_told(tmp_path):
    with pytest.raises(LSHFMError, match="expected one of kd, l2, lsh, lshl2, found 'kl'"):
        build_mimic_head("kl", SIZE)
    with pytest.raises(LSHFMError, match="absent"):
        build_mimic_head("lsh", SIZE, hash_weights=tmp_path / "absent.pt")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(LSHFMError, match="other.pt holds no hash matrix"):
        build_mimic_head("lsh", SIZE, hash_weights=tmp_path / "other.pt")
    torch.save({"weight": torch.zeros(4, 13)}, tmp_path / "long.pt")
    with pytest.raises(LSHFMError, match=r"long.pt.*\[H, 12\], found \[4, 13\]"):
        build_mimic_head("lsh", SIZE, hash_weights=tmp_path / "long.pt")


@pytest.mark.parametrize(
    ("bias", "expected"), [(0, None), ("0", None), ("mean", "mean"), ("median", "median")]
)
def test_bias_setting_becomes_a_calibration(bias, expected):
    losses = build_losses("lsh", small_detector(STUDENTS[0]), num_hashes=8, bias=bias, bias_images=30)
    assert losses.bias == (expected and BiasCalibration(expected, 30))


def test_median_of_an_even_number_can_be_the_published_one():
    settings = {"num_hashes": 8, "bias": "median", "bias_images": 30}
    losses = build_losses("lsh", small_detector(STUDENTS[0]), bias_even_median="lower", **settings)
    assert losses.bias == BiasCalibration("median", 30, "lower")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": "mode"}, "distill.bias: expected 0, mean or median, found 'mode'"),
        (
            {"bias": "median", "bias_even_median": "upper"},
            "bias_even_median: expected mean or lower, found 'upper'",
        ),
        ({"bias": "mean", "bias_images": 0}, "distill.bias_images: expected a whole number of at least 1"),
        ({"num_hashs": 3}, "distill: .*num_hashs"),
        ({"num_hashes": True}, "distill.num_hashes: expected a whole number ≥ 1, found True"),
        ({"beta": True}, "distill.beta: expected a finite number ≥ 0, found True"),
        ({"kd_beta": -1}, "distill.kd_beta: expected a finite number"),
        ({"kd_beta": 1, "temperature": 0}, "distill.temperature: expected a number > 0"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(LSHFMError, match=message):
        build_losses("lsh", small_detector(STUDENTS[0]), **settings)


def test_bias_of_a_loss_without_hash_is_refused():
    with pytest.raises(LSHFMError, match="distill.bias: l2 has no hash"):
        build_losses("l2", small_detector(STUDENTS[0]), bias="mean")
