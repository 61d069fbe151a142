"""The 95 % interval of the difference between two lines of runs, and its verdict.

A difference would change if the experiment were repeated with other seeds, or with other test images.

- Seeds: if both sides have seeds in common, the difference is computed seed by seed, over these seeds. With three
  or more of them, Student's t distribution gives the interval of its mean. A teacher is one fixed detector for all
  of its students; its difference is computed to the plain student of each seed.
- Images: if the runs kept an `evaluation.npz`, AP and AP50 are computed again on resampled test images (bootstrap).
  Both sides and all seeds use the same resamples. The percentiles of the mean difference give the interval. This
  needs at least 15 images with an object.

If both intervals are known, they are combined: on either side of the mean the width is the root of the sum of the
squared widths, as for independent errors. The interaction of seeds and images enters both parts, so the interval is
rather too wide than too narrow. With fewer than three seeds the interval covers other images only, and the table
says so: the difference may then be due to the seed. If neither is known, there is no interval, and the verdict is
`cannot tell`.

Intervals are not corrected for the number of lines and metrics in a table: of twenty true differences of zero, one
is expected to be called `helps` or `hurts`.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lshfm_pl.cores import usable_cores
from lshfm_pl.metrics.bootstrap import (
    BOOTSTRAP_FIGURES,
    Interval,
    draw_images,
    percentile_interval,
    resampled_figures,
    resampled_positives,
)
from lshfm_pl.metrics.record import EvaluationRecord
from lshfm_pl.reporting.runs import Run, metric_of_run

__all__ = [
    "FEWEST_IMAGES",
    "FEWEST_SEEDS",
    "IMAGES",
    "Gain",
    "Resampled",
    "gain_over",
    "has_enough_images",
    "mean_per_seed",
    "seed_interval",
    "verdict",
]

FEWEST_SEEDS = 3
"""With two seeds the t interval extends 12.7 standard errors to either side, which is too wide to be useful."""

SEEDS, IMAGES, BOTH = "seeds", "test images", "seeds and test images"
"""What an interval covers."""

STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, … degrees of freedom."""

FEWEST_IMAGES = 15
"""Images with an object. With ten of them the bootstrap calls equal detectors different one time in eight, with
three of them one time in six, and with one image whenever the metrics differ at all."""

MAX_WORK = 1.5e9
"""Numbers that all resamples of a report together may process, which takes about ten seconds."""

FEWEST_RESAMPLES = 100
"""Resamples that are made even if they take longer."""


class Gain(NamedTuple):
    """A difference to the base line in points, its 95 % interval and what that covers; None if unknown."""

    value: float
    interval: Interval | None
    covers: str | None


class Resampled:
    """AP and AP50 of runs on resampled test images. All runs with the same test set use the same resamples.

    Args:
        runs: all runs of a report, whose work is limited together.
        resamples: wanted number of resamples. If the test sets are large, the attribute `resamples` is smaller.
        seed: seed of the resampling.
    """

    def __init__(self, runs: Iterable[Run], resamples: int, seed: int) -> None:
        records = {id(run): run.record for run in runs}
        work = sum(
            len(record.image) + 10 * int(record.num_positives.sum()) + record.num_positives.size
            for record in records.values()
            if record
        )
        affordable = int(MAX_WORK / max(work, 1))
        self.resamples = min(resamples, max(FEWEST_RESAMPLES, affordable)) if work else 0
        usable = {
            key: record
            for key, record in records.items()
            if record and self.resamples > 1 and has_enough_images(record)
        }
        self._test_sets = {key: record.test_set() for key, record in usable.items()}
        sizes = {self._test_sets[key]: len(record.image_ids) for key, record in usable.items()}
        drawn = {test_set: draw_images(size, self.resamples, seed) for test_set, size in sizes.items()}
        of_test_set = {self._test_sets[key]: record for key, record in usable.items()}
        positives = {
            test_set: resampled_positives(record, drawn[test_set]) for test_set, record in of_test_set.items()
        }

        def figures(key: int) -> npt.NDArray[np.float64]:
            test_set = self._test_sets[key]
            return resampled_figures(usable[key], drawn[test_set], positives[test_set])

        with ThreadPoolExecutor(usable_cores()) as pool:  # numpy's long operations run side by side
            self._figures = dict(zip(usable, pool.map(figures, usable), strict=True))

    def interval(self, runs: Sequence[Run], plain: Sequence[Run], metric: str) -> Interval | None:
        """The interval of the difference of the means over the seeds.

        None if a run has no record or another test set, or if the metric is not AP or AP50.
        """
        if metric not in BOOTSTRAP_FIGURES or not runs or not plain:
            return None
        ids = {id(run) for run in (*runs, *plain)}
        if not ids <= self._figures.keys() or len({self._test_sets[key] for key in ids}) > 1:
            return None
        means = []
        for side in (runs, plain):
            per_seed = _per_seed(side, lambda run: self._figures[id(run)][BOOTSTRAP_FIGURES.index(metric)])
            means.append(np.mean([np.mean(values, axis=0) for values in per_seed.values()], axis=0))
        return percentile_interval(means[0] - means[1])


def has_enough_images(record: EvaluationRecord) -> bool:
    """Whether a test set has enough images with objects for resampling, see `FEWEST_IMAGES`."""
    return int(record.num_positives.any(axis=1).sum()) >= FEWEST_IMAGES


def gain_over(
    plain: Sequence[Run], runs: Sequence[Run], metric: str, resampled: Resampled | None
) -> Gain | None:
    """The gain of the runs of a line over those of its base line; None if either side does not have the metric.

    It is the mean difference over the seeds that both have; if there are none, the difference of the means.
    """
    runs, plain = ([run for run in side if metric_of_run(run, metric) is not None] for side in (runs, plain))
    if not runs or not plain:
        return None
    own, of_plain = mean_per_seed(runs, metric), mean_per_seed(plain, metric)
    if runs[0].role == "teacher":
        fixed = statistics.fmean(own.values())
        pairs = {seed: fixed - value for seed, value in of_plain.items()}
        paired = runs
    else:
        pairs = {seed: value - of_plain[seed] for seed, value in own.items() if seed in of_plain}
        paired = [run for run in runs if run.results["seed"] in pairs]
    if not pairs:
        images = None if resampled is None else resampled.interval(runs, plain, metric)
        value = statistics.fmean(own.values()) - statistics.fmean(of_plain.values())
        return Gain(value, images, None if images is None else IMAGES)
    value = statistics.fmean(pairs.values())
    others = [run for run in plain if run.results["seed"] in pairs]
    images = None if resampled is None else resampled.interval(paired, others, metric)
    if len(pairs) < FEWEST_SEEDS:
        return Gain(value, images, None if images is None else IMAGES)
    seeds = seed_interval(list(pairs.values()))
    if images is None:
        return Gain(value, seeds, SEEDS)
    low = math.hypot(value - seeds.low, max(value - images.low, 0.0))
    high = math.hypot(seeds.high - value, max(images.high - value, 0.0))
    return Gain(value, Interval(value - low, value + high), BOTH)


def seed_interval(differences: Sequence[float]) -> Interval:
    """The 95 % interval of the mean of at least two independent values, by Student's t distribution."""
    mean = statistics.fmean(differences)
    freedom = len(differences) - 1
    half = _student_t(freedom) * statistics.stdev(differences) / math.sqrt(len(differences))
    return Interval(mean - half, mean + half)


def verdict(interval: Interval | None) -> str:
    """`helps` or `hurts` if the interval of a gain excludes 0, else `cannot tell`."""
    if interval is not None and interval.low > 0:
        return "helps"
    return "hurts" if interval is not None and interval.high < 0 else "cannot tell"


def mean_per_seed(runs: Iterable[Run], metric: str) -> dict[Any, float]:
    """Seed → the mean of a metric over the runs of that seed that have it."""
    known = [run for run in runs if metric_of_run(run, metric) is not None]
    per_seed = _per_seed(known, lambda run: metric_of_run(run, metric))
    return {seed: statistics.fmean(values) for seed, values in per_seed.items()}


def _student_t(freedom: int) -> float:
    """97.5 % quantile. Beyond the table it is two terms of the Cornish–Fisher expansion, accurate to 0.001."""
    if freedom <= len(STUDENT_T):
        return STUDENT_T[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _per_seed(runs: Iterable[Run], value: Callable[[Run], Any]) -> dict[Any, list[Any]]:
    per_seed: dict[Any, list[Any]] = {}
    for run in runs:
        per_seed.setdefault(run.results["seed"], []).append(value(run))
    return per_seed
