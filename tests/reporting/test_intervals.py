"""Intervals of gains over seeds, over test images and over both, and the verdicts."""

import json
import math

import numpy as np
import pytest
from run_files import make_record, make_results, write_run

from lshfm_pl.metrics.bootstrap import Interval, draw_images, percentile_interval, resampled_figures
from lshfm_pl.reporting import comparison_table
from lshfm_pl.reporting.intervals import FEWEST_IMAGES, Resampled, gain_over, seed_interval, verdict
from lshfm_pl.reporting.runs import Run, read_run


def runs_of(loss, values, *, role="student", first_seed=0):
    """One run for each value, with consecutive seeds, without folders."""
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
    assert (two.value, two.interval, two.covers) == (2.0, None, None)


def test_seeds_that_one_side_alone_has_do_not_enter_a_paired_gain():
    gain = gain_over(runs_of("none", [40.0, 50.0, 60.0]), runs_of("l2", [43.0, 53.0, 63.0, 0.0]), "AP", None)
    assert (gain.value, gain.interval) == (3.0, (3.0, 3.0))


def test_one_seed_is_compared_with_the_same_seed_alone(tmp_path):
    plain = [read_run(write_run(tmp_path / f"n{seed}", found=0.5, seed=seed)) for seed in range(4)]
    (one,) = [read_run(write_run(tmp_path / "l2", "l2", found=0.6, seed=2))]
    resampled = Resampled([*plain, one], 100, seed=0)
    gain = gain_over(plain, [one], "AP", resampled)
    of_seed = [run.results["metrics"]["AP"] for run in plain]
    assert gain.value == pytest.approx(one.results["metrics"]["AP"] - of_seed[2])
    assert gain.interval == resampled.interval([one], plain[2:3], "AP")
    text = comparison_table([*plain, one], ["AP"])
    assert "These gains use only the seeds in common with the plain student: L2 (1 of 4)." in text
    # Without a common seed nothing can be paired.
    (other,) = runs_of("l2", [50.0], first_seed=7)
    assert gain_over(plain, [other], "AP", None).value == pytest.approx(50 - np.mean(of_seed))


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


def test_a_noisy_comparison_on_few_images_shows_neither_a_gain_nor_a_share(tmp_path):
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
    assert ("The validation set is also the test set" in comparison_table(runs)) == told


@pytest.mark.parametrize("seeds", [3, 5])
def test_interval_over_seeds_holds_the_true_gain_nineteen_times_in_twenty(seeds):
    generator, true, held, repeats = np.random.default_rng(seeds), 1.5, 0, 4000
    for differences in generator.normal(true, 2.0, (repeats, seeds)):
        low, high = seed_interval(differences.tolist())
        held += low <= true <= high
    assert held / repeats == pytest.approx(0.95, abs=0.015)


def test_interval_over_images_holds_the_true_gain_about_nineteen_times_in_twenty():
    truth = np.subtract(*(make_record(found, images=8000, seed=seed).figures()["AP50"]
                          for seed, found in ((1, 0.7), (0, 0.5))))  # fmt: skip
    held = claimed = 0
    for repeat in range(100):
        plain, better, equal = (
            make_record(found, images=40, seed=10 + 3 * repeat + index)
            for index, found in enumerate((0.5, 0.7, 0.5))
        )
        counts = draw_images(40, 100, seed=repeat)
        of_plain, of_better, of_equal = (
            resampled_figures(each, counts)[1] for each in (plain, better, equal)
        )
        low, high = percentile_interval(of_better - of_plain)
        held += low <= truth <= high
        claimed += verdict(percentile_interval(of_equal - of_plain)) != "cannot tell"
    assert held >= 85
    assert claimed <= 15


def runs_with_records(folder, loss, founds, *, images, role="student"):
    runs = []
    for seed, found in enumerate(founds):
        record = make_record(found, images=images, seed=50 + seed)
        path = folder / f"{role}_{loss}{seed}"
        path.mkdir()
        record.save(path / "evaluation.npz")
        results = make_results(loss, role=role, seed=seed, record=record, metrics=record.figures())
        (path / "results.json").write_text(json.dumps(results))
        runs.append(read_run(path))
    return runs


@pytest.mark.parametrize("images", [1, 2, FEWEST_IMAGES - 1])
@pytest.mark.parametrize("seeds", [1, 2])
def test_few_test_images_tell_nothing_of_others_however_large_the_difference_is(tmp_path, images, seeds):
    plain = runs_with_records(tmp_path, "none", [0.0] * seeds, images=images)
    other = runs_with_records(tmp_path, "l2", [1.0] * seeds, images=images)
    gain = gain_over(plain, other, "AP50", Resampled([*plain, *other], 100, seed=0))
    assert gain.value > 20
    assert (gain.interval, gain.covers) == (None, None)
    text = comparison_table([*plain, *other], ["AP50"])
    assert "cannot tell | – |" in text
    assert f"Fewer than {FEWEST_IMAGES} test images have an object to find" in text


def test_three_seeds_on_one_image_cover_the_seeds_alone_and_the_table_says_so(tmp_path):
    plain = runs_with_records(tmp_path, "none", [0.0] * 3, images=1)
    other = runs_with_records(tmp_path, "l2", [1.0] * 3, images=1)
    gain = gain_over(plain, other, "AP50", Resampled([*plain, *other], 100, seed=0))
    assert gain.covers == "seeds"
    assert "no interval covers other test images" in comparison_table([*plain, *other], ["AP50"])


def test_word_that_is_of_other_images_alone_is_marked_and_the_mark_explained(tmp_path):
    plain = runs_with_records(tmp_path, "none", [0.2] * 3, images=40)
    other = runs_with_records(tmp_path, "l2", [0.9] * 3, images=40)
    two = comparison_table([*plain[:2], *other[:2]], ["AP50"])
    (line,) = [line for line in two.splitlines() if line.startswith("| L2")]
    assert "] helps † |" in line
    assert "- †: fewer than 3 seeds: the verdict covers only other test images" in two
    three = comparison_table([*plain, *other], ["AP50"])
    assert "] helps | " in three
    assert "] helps †" not in three


def test_equal_figures_tell_nothing(tmp_path):
    plain = runs_of("none", [40.0, 40.0, 40.0])
    gain = gain_over(plain, runs_of("l2", [40.0, 40.0, 40.0]), "AP", None)
    assert (gain.value, gain.interval, verdict(gain.interval)) == (0.0, (0.0, 0.0), "cannot tell")
    records = runs_with_records(tmp_path, "none", [0.5], images=40) + runs_with_records(
        tmp_path, "l2", [0.5], images=40
    )
    gain = gain_over(records[:1], records[1:], "AP", Resampled(records, 100, seed=0))
    assert verdict(gain.interval) == "cannot tell"


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_run_whose_figure_is_not_known_does_not_enter(unknown):
    plain, other = runs_of("none", [40.0, 50.0, 60.0, unknown]), runs_of("l2", [41.0, 51.5, 60.5, 70.0])
    gain = gain_over(plain, other, "AP", None)
    assert (gain.value, gain.covers) == (1.0, "seeds")
    assert gain_over(runs_of("none", [unknown]), other, "AP", None) is None
    assert gain_over(plain, runs_of("l2", [unknown]), "AP", None) is None
    assert gain_over([], other, "AP", None) is None


def test_teacher_below_the_plain_student_has_no_share(tmp_path):
    teacher = runs_with_records(tmp_path, "none", [0.2], images=40, role="teacher")
    plain = runs_with_records(tmp_path, "none", [0.5, 0.6], images=40)
    other = runs_with_records(tmp_path, "l2", [0.9, 0.9], images=40)
    text = comparison_table([*teacher, *plain, *other], ["AP50"])
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert lines["Teacher"].split("|")[5].strip().startswith("-")
    assert lines["L2"].endswith("helps † | – |")


def test_losses_with_other_numbers_of_seeds_are_paired_where_they_can_be_and_the_table_says_so():
    plain = runs_of("none", [40.0, 50.0, 60.0])
    more = runs_of("l2", [42.0, 52.1, 61.9, 90.0, 95.0])
    text = comparison_table([*plain, *more], ["AP"])
    assert "These gains use only the seeds in common with the plain student: L2 (3 of 5)." in text
    assert "| 68.2 ± " in text
    assert "| +2.0 [+1.8, +2.2] helps |" in text
    assert "These gains use" not in comparison_table([*plain, *more[:3]], ["AP"])
