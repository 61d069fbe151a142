"""The table of single evaluations, such as those of a checkpoint and of the files exported from it."""

from collections.abc import Iterable, Mapping, Sequence

from lshfm_pl.reporting.costs import COST_COLUMNS, cost_of_run
from lshfm_pl.reporting.runs import Run, metric_of_run
from lshfm_pl.reporting.tables import UNKNOWN

__all__ = ["evaluation_table"]

_COSTS = ("weights_bytes", "ms_per_image")


def evaluation_table(evaluations: Iterable[Run], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each evaluation; those of one detector on the same test images follow each other.

    Args:
        evaluations: results of `evaluate`.
        metrics: metrics to show, keys of `METRIC_DESCRIPTIONS`.
    """
    header = ["file", "model", "test set", *metrics, *(COST_COLUMNS[key][0] for key in _COSTS)]
    ordered = sorted(evaluations, key=lambda run: (run.test_set or "", run.model, run.results["checkpoint"]))
    return header, [_row(run, metrics) for run in ordered]


def _row(run: Run, metrics: Sequence[str]) -> list[str]:
    figures = [metric_of_run(run, metric) for metric in metrics]
    cost = cost_of_run(run)
    columns = [(cost.get(key), *COST_COLUMNS[key][1:3]) for key in _COSTS]
    return [
        run.results["checkpoint"],
        run.model,
        _test_set(run),
        *(UNKNOWN if figure is None else f"{figure:.1f}" for figure in figures),
        *(UNKNOWN if value is None else f"{value / unit:.{digits}f}" for value, unit, digits in columns),
    ]


def _test_set(run: Run) -> str:
    summary = run.results.get("test_set")
    images = summary.get("images") if isinstance(summary, Mapping) else None
    known = f"{images} images, " if isinstance(images, int) and 0 <= images < 10**9 else ""
    return f"{known}{run.test_set}" if run.test_set else UNKNOWN
