"""The report of finished runs: tables, curves, pictures and an HTML page."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from lshfm_pl import __version__
from lshfm_pl.errors import LSHFMError, first_few, short_reason
from lshfm_pl.files import write_atomically
from lshfm_pl.reporting.curves import draw_comparison, draw_precision_recall, draw_training
from lshfm_pl.reporting.evaluations import evaluation_table
from lshfm_pl.reporting.finding import RunSet, find_runs, matching_folders
from lshfm_pl.reporting.groups import Group
from lshfm_pl.reporting.intervals import Resampled
from lshfm_pl.reporting.markdown import markdown_table, markdown_text
from lshfm_pl.reporting.metric_table import DEFAULT_METRICS, check_metrics
from lshfm_pl.reporting.page import Picture, write_page
from lshfm_pl.reporting.pictures import draw_group, left_pictures
from lshfm_pl.reporting.rows import line_rows, run_rows, write_csv
from lshfm_pl.reporting.summary import group_runs
from lshfm_pl.reporting.tables import cost_table, footnotes, group_difference, group_table
from lshfm_pl.runs.result_files import refuse_folder_of_run

__all__ = ["GROUPS_WITH_PICTURES", "MARKDOWN", "RUNS_TABLE", "report"]

log = logging.getLogger(__name__)


MARKDOWN, RUNS_TABLE = "report.md", "results.csv"
"""Files of a report. The folder of a comparison has a table with the second name too."""

GROUPS_WITH_PICTURES = 8
"""Further groups, which are smaller, have no pictures: drawing takes a second for each group."""


def report(
    runs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    strict_version: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    picture_images: int = 4,
    score_threshold: float = 0.5,
) -> Path:
    """Write the report of all runs below some folders.

    Args:
        runs: folders or glob patterns.
        output: folder for the report. None chooses `report` in the first folder of `runs`, or beside the folders
            that match a pattern.
        metrics: metrics of the tables, keys of `METRIC_DESCRIPTIONS`.
        strict_version: whether runs of different code versions are kept in separate tables.
        resamples: largest number of resamples of the test images.
        seed: seed of the resampling.
        picture_images: test images in a picture. It is drawn if the runs have no pictures of their own, and their
            checkpoints and data exist.
        score_threshold: detections with a lower score are not drawn.

    Returns:
        The page, `<output>/index.html`. Beside it are `report.md`, `results.csv` with a row for each run,
        `summary.csv` with a row for each line of the tables, and the pictures.

    Raises:
        LSHFMError: nothing is found at `runs`, there is no run, or a metric is unknown.
    """
    check_metrics(metrics)
    where = [runs] if isinstance(runs, str | Path) else list(runs)
    tops = [folder for item in where for folder in matching_folders(item)]
    found = find_runs(tops)
    if not found.runs and not found.aside and not found.evaluations:
        raise LSHFMError(
            f"runs: expected folders with results.json of this project, found none in {_list(where)}"
        )
    first = matching_folders(where[0])
    beside = first[0] if len(first) == 1 else first[0].parent
    folder = _writable(beside / "report" if output is None else Path(output), None if output else beside)
    resampled = Resampled(found.runs, resamples, seed)
    groups = sorted(
        group_runs(found.runs, metrics, strict_version=strict_version, resampled=resampled),
        key=lambda group: (-len(group.lines), -len(group.runs), group.title),
    )
    pictures = {
        number: _pictures(
            number,
            group,
            folder,
            tops,
            metrics=metrics,
            images=picture_images,
            score_threshold=score_threshold,
        )
        for number, group in enumerate(groups[:GROUPS_WITH_PICTURES], start=1)
    }
    title = f"Report: {first_few(Path(item).name or str(item) for item in where)}"
    made = f"Made by lshfm_pl {__version__} on {datetime.now():%Y-%m-%d %H:%M} from {_list(where)}."
    write_csv(run_rows(groups, resampled), folder / RUNS_TABLE)
    write_csv(line_rows(groups, metrics), folder / "summary.csv")
    markdown = _markdown(
        title, made, folder, groups, found, pictures, metrics=metrics, resamples=resampled.resamples
    )
    write_atomically(folder / MARKDOWN, markdown.encode("utf-8", "replace"))
    return write_page(
        folder / "index.html",
        title=title,
        made=made,
        groups=groups,
        evaluations=found.evaluations,
        aside=found.aside,
        pictures=pictures,
        metrics=metrics,
        resamples=resampled.resamples,
    )


def _writable(folder: Path, within: Path | None) -> Path:
    """Create the folder of the report and check that it can be written.

    Args:
        folder: of the report.
        within: a folder that `folder` must not leave through a link; None allows any place.

    Raises:
        LSHFMError: it cannot be written, or holds other results.
    """
    try:
        if within is not None and not folder.resolve().is_relative_to(within.resolve()):
            raise LSHFMError(
                f"output: expected a folder in {within}, found that {folder} is a link that leads out of it; "
                "give output=<folder>"
            )
        folder.mkdir(parents=True, exist_ok=True)
        refuse_folder_of_run(folder)
        if os.path.lexists(folder / RUNS_TABLE) and not os.path.lexists(folder / MARKDOWN):
            raise LSHFMError(
                f"output: {folder} holds a {RUNS_TABLE} of something else, as of a comparison, which would be "
                "replaced; give output=<another folder>"
            )
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        where = str(folder) if len(str(folder)) <= 200 else f"{str(folder)[:200]}…"
        raise LSHFMError(
            f"output: expected a folder that can be made and written to, found {where} ({reason}); "
            "give output=<folder>"
        ) from error
    return folder


def _pictures(
    number: int,
    group: Group,
    folder: Path,
    tops: Sequence[Path],
    *,
    metrics: Sequence[str],
    images: int,
    score_threshold: float,
) -> list[Picture]:
    def comparison() -> Path | None:
        return draw_comparison(group, folder / f"comparison_{number}.png", metrics)

    def training() -> Path | None:
        return draw_training(group, folder / f"training_{number}.png")

    def precision_recall() -> Path | None:
        return draw_precision_recall(group, folder / f"precision_recall_{number}.png")

    def detections() -> Path | None:
        path = folder / f"detections_{number}.png"
        return draw_group(group, path, images=images, score_threshold=score_threshold)

    drawn = [
        (
            "Each run is a dot, and the mean of each line a bar; the base line is dashed",
            _drawn(comparison, group),
        ),
        ("Training loss and validation AP, one curve for each run", _drawn(training, group)),
        (
            "Precision over recall at IoU 0.5, averaged over seeds; of many classes the mean and the most frequent",
            _drawn(precision_recall, group),
        ),
    ]
    left = [path for path in left_pictures(group, tops) if path.parent != folder.resolve()]
    if left:
        drawn += [(_caption(path, tops), path) for path in left]
    else:
        shown = f"Test images: detections with a score of {score_threshold:g} or more"
        drawn.append((shown, _drawn(detections, group)))
    return [(text, path) for text, path in drawn if path is not None]


def _drawn(draw: Callable[[], Path | None], group: Group) -> Path | None:
    """Draw a picture; None if there is nothing to draw, or if drawing fails, which is logged."""
    try:
        return draw()
    except OSError:
        raise
    except LSHFMError as error:
        log.info("no picture of %s for %s: %s", draw.__name__.replace("_", " "), group.title, error)
    except Exception as error:
        log.warning(
            "no picture of %s for %s: %s", draw.__name__.replace("_", " "), group.title, short_reason(error)
        )
    return None


def _caption(path: Path, tops: Sequence[Path]) -> str:
    """The path of a picture, relative to the folder that was searched."""
    top = next((top.resolve() for top in tops if path.is_relative_to(top.resolve())), path.parent)
    return f"{top.name}/{path.relative_to(top)}"


def _markdown(
    title: str,
    made: str,
    folder: Path,
    groups: Sequence[Group],
    found: RunSet,
    pictures: dict[int, list[Picture]],
    *,
    metrics: Sequence[str],
    resamples: int,
) -> str:
    blocks = [f"# {markdown_text(title)}", markdown_text(made)]
    for number, group in enumerate(groups, start=1):
        blocks += [f"## {number}. {markdown_text(group.title)}", f"{markdown_text(group.data)}."]
        blocks += [f"> {markdown_text(note)}" for note in (group_difference(group), *group.notes) if note]
        blocks += [group_table(group, metrics)]
        blocks += [table for table in [cost_table(group)] if table]
        own = [(text, path) for text, path in pictures.get(number, []) if path.parent == folder]
        blocks += [f"![{markdown_text(text)}]({path.name})" for text, path in own]
    if found.evaluations:
        header, rows = evaluation_table(found.evaluations, metrics)
        blocks += ["## Evaluations of single files", markdown_table(header, rows, left=3)]
    if found.aside:
        rows = [[str(item.folder), item.kind, item.reason] for item in found.aside]
        blocks += ["## Not in any table", markdown_table(["folder", "kind", "reason"], rows, left=3)]
    return "\n\n".join([*blocks, "## What the columns mean", footnotes(metrics, resamples)]) + "\n"


def _list(where: Sequence[str | Path]) -> str:
    return ", ".join(map(str, where))
