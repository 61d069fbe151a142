"""How sure a gain is: over seeds, over test images, over both; and the word for it."""

import json
import math

import numpy as np
import pytest
from run_files import make_results, write_run

from lshfm_pl.metrics.bootstrap import Interval
from lshfm_pl.reporting import comparison_table
from lshfm_pl.reporting.intervals import Resampled, gain_over, seed_interval, verdict
from lshfm_pl.reporting.runs import Run, read_run


def runs_of(loss, values, *, role="student", first_seed=0):
    """A run a value, of consecutive seeds, without folders."""
    runs = []
    for seed, value in enumerate(values, start=first_seed):
        results = make_results(loss, role=role, seed=seed)
        results["metrics"]["AP"] = value
        runs.append(Run(results))
    return runs


@pytest.mark.parametrize(
    ("count", "quantile"),
    [(2, 12.7062), (3, 4.3027), (10, 2.2622), (31, 2.0423), (32, 2.0395), (101, 1.9840)],
)
def test_the_interval_over_seeds_is_students(count, quantile):
    values = np.random.default_rng(count).normal(3.0, 2.0, count).tolist()
    mean, half = np.mean(values), quantile * np.std(values, ddof=1) / math.sqrt(count)
    assert seed_interval(values) == pytest.approx((mean - half, mean + half), abs=2e-3 * half)


def test_three_seeds_are_paired_and_two_are_not_enough():
    plain = runs_of("none", [40.0, 50.0, 60.0])
    # Each seed gains 2 ± 0.1, though seeds differ by 10.
    gain = gain_over(plain, runs_of("l2", [42.0, 52.1, 61.9]), "AP", None)
    assert gain.value == pytest.approx(2.0)
    assert gain.interval == pytest.approx(
        (2 - 4.3027 * 0.1 / math.sqrt(3), 2 + 4.3027 * 0.1 / math.sqrt(3)), abs=1e-3
    )
    assert gain.covers == "seeds"
    two = gain_over(plain, runs_of("l2", [42.0, 52.0]), "AP", None)
    assert (two.value, two.interval, two.covers) == (-3.0, None, None)


def test_seeds_that_one_side_alone_has_do_not_enter_a_paired_gain():
    gain = gain_over(runs_of("none", [40.0, 50.0, 60.0]), runs_of("l2", [43.0, 53.0, 63.0, 0.0]), "AP", None)
    assert (gain.value, gain.interval) == (3.0, (3.0, 3.0))


def test_a_teacher_of_one_seed_is_compared_with_the_plain_student_of_each_seed():
    plain, teacher = runs_of("none", [48.0, 50.0, 52.0]), runs_of("none", [60.0], role="teacher")
    gain = gain_over(plain, teacher, "AP", None)
    assert gain.value == 10.0
    assert gain.interval == pytest.approx((10 - 4.969, 10 + 4.969), abs=1e-3)


def test_seeds_and_images_add_as_independent_errors(tmp_path):
    plain = [read_run(write_run(tmp_path / f"n{seed}", found=0.4, seed=seed)) for seed in range(3)]
    other = [read_run(write_run(tmp_path / f"l{seed}", "l2", found=0.7, seed=seed)) for seed in range(3)]
    resampled = Resampled([*plain, *other], 300, seed=0)
    gain = gain_over(plain, other, "AP50", resampled)
    images = resampled.interval(other, plain, "AP50")
    differences = [
        b.results["metrics"]["AP50"] - a.results["metrics"]["AP50"] for a, b in zip(plain, other, strict=True)
    ]
    seeds = seed_interval(differences)
    assert gain.covers == "seeds and test images"
    assert gain.value == pytest.approx(np.mean(differences))
    assert gain.value - gain.interval.low == pytest.approx(
        math.hypot(gain.value - seeds.low, gain.value - images.low)
    )
    assert gain.interval.high - gain.value == pytest.approx(
        math.hypot(seeds.high - gain.value, images.high - gain.value)
    )
    few = gain_over(plain[:2], other[:2], "AP50", resampled)
    assert (few.interval, few.covers) == (resampled.interval(other[:2], plain[:2], "AP50"), "test images")
    assert gain_over(plain[:2], other[:2], "voc07_mAP", resampled).interval is None


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.1, 2), "helps"),
        ((-2, -0.1), "hurts"),
        ((-1, 1), "cannot tell"),
        ((0, 1), "cannot tell"),
        (None, "cannot tell"),
    ],
)
def test_the_word_is_by_whether_the_interval_excludes_0(interval, word):
    assert verdict(None if interval is None else Interval(*interval)) == word


def test_a_noisy_comparison_on_few_images_tells_neither_a_gain_nor_a_share(tmp_path):
    """Differences of a few points between equal detectors, as 15 images of two seeds give them."""
    runs = [write_run(tmp_path / "teacher", role="teacher", found=0.62, seed=9)]
    for seed in (0, 1):
        runs.append(write_run(tmp_path / f"none{seed}", found=0.6, seed=seed))
        runs.append(write_run(tmp_path / f"l2{seed}", "l2", found=0.6, seed=seed + 20))
        results = json.loads((runs[-1] / "results.json").read_text())
        (runs[-1] / "results.json").write_text(json.dumps({**results, "seed": seed}))
    text = comparison_table([read_run(run) for run in runs], ["AP50"])
    teacher, _, l2 = [
        line for line in text.splitlines() if line.startswith(("| Teacher", "| Student", "| L2"))
    ]
    assert l2.endswith("] cannot tell | – |")
    assert "cannot tell" not in teacher
    assert "Fewer than 3 seeds in common with the plain student" in text


@pytest.mark.parametrize(
    ("also", "data", "told"),
    [
        (True, {}, True),
        (False, {"val_split": "val", "test_split": None}, False),
        (None, {"val_split": "val", "test_split": None}, True),
        (None, {"val_split": "a", "test_split": "a"}, True),
        (None, {"val_annotations": "a.json", "test_annotations": None}, True),
        (None, {"val_split": "val", "test_split": "test"}, False),
        (None, {"num_val": 3}, False),
    ],
)
def test_every_table_says_where_validation_images_are_the_test_images(also, data, told):
    runs = [make_results(), make_results("l2")]
    for results in runs:
        results["data"] = data
        results["test_set"] = {} if also is None else {"also_validation": also}
    assert ("The validation set serves as the test set too" in comparison_table(runs)) == told
