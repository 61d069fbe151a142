"""The notes above a table: what a reader must know to interpret it."""

from collections.abc import Iterable, Sequence

from lshfm_pl.errors import first_few
from lshfm_pl.reporting.comparability import compared_settings
from lshfm_pl.reporting.groups import Line
from lshfm_pl.reporting.intervals import FEWEST_IMAGES, FEWEST_SEEDS, IMAGES, Resampled, has_enough_images
from lshfm_pl.reporting.runs import Run

__all__ = ["group_notes"]


def group_notes(
    lines: Sequence[Line],
    teachers: Sequence[Run],
    plain: Sequence[Run],
    distilled: Sequence[Run],
    resampled: Resampled | None,
) -> Iterable[str]:
    """The notes of a group.

    Args:
        lines: of its table.
        teachers: runs of its teacher.
        plain: runs of its plain student.
        distilled: runs of its distilled students.
        resampled: the resampled test images; None if no intervals are wanted.
    """
    if distilled and not plain:
        yield _without_plain_student(lines)
    if plain and all(run.has_teachers_labels for run in (*plain, *distilled)):
        yield (
            "No labels of the training pictures were read: they are the teacher's detections. The plain student "
            "learns from these labels alone."
        )
    base = "plain student" if plain else "base line"
    if distilled and not teachers:
        yield "There is no run of the teacher on this test set, so the gap is unknown."
    if len([line for line in lines if line.runs[0].role == "teacher"]) > 1:
        yield "There are several teachers with this name, so the gap is unknown."
    if any(run.test_is_validation for run in (*teachers, *plain, *distilled)):
        yield (
            "The validation set is also the test set: what was chosen by validation, such as best.ckpt, was chosen "
            "on the same images as these figures."
        )
    if not plain and not distilled:
        yield "This is a teacher without students."
    versions = sorted({run.version for run in (*plain, *distilled)})
    if len(versions) > 1:
        yield f"This table has runs of different code versions, as requested: {', '.join(versions)}."
        known = [compared_settings(run) for run in (*plain, *distilled)]
        if partly_known := sorted(
            {key for each in known for key in each if any(key not in other for other in known)}
        ):
            yield (
                "These settings were not compared, because not all runs have recorded them: "
                f"{', '.join(partly_known)}."
            )
    older = sorted({run.version for run in teachers} - set(versions))
    if older and versions:
        yield f"The teacher was trained with another code version: {', '.join(older)}."
    for line in lines:
        if len(line.runs) > line.seeds:
            yield (
                f"{line.title}: {len(line.runs)} runs with {line.seeds} seed(s); runs with the same seed are "
                "averaged first."
            )
    if any(line.base for line in lines) and resampled is not None:
        if images := _lines_covering(lines, IMAGES):
            yield (
                f"Fewer than {FEWEST_SEEDS} seeds in common with the {base}: the intervals of "
                f"{first_few(images)} cover other test images, but not other seeds, which may change a "
                "figure by as much."
            )
        without = [line.title for line in lines if any(run.record is None for run in line.runs)]
        if len(without) == len(lines):
            yield "There are no intervals over test images: these runs have no evaluation.npz."
        elif without:
            yield (
                "There are no intervals over test images for lines with a run that has no evaluation.npz: "
                f"{first_few(without)}."
            )
        if any(
            run.record is not None and not has_enough_images(run.record)
            for line in lines
            for run in line.runs
        ):
            yield (
                f"Fewer than {FEWEST_IMAGES} test images have an object to find: no interval covers other test "
                "images, on which any difference may change."
            )
    yield from _unpaired(lines, base)


def _without_plain_student(lines: Sequence[Line]) -> str:
    """What the lines of a table without a plain student are compared to."""
    text = "There is no plain student with the same data, schedule and code version to compare with."
    bases = [line for line in lines if line.is_reference]
    if not bases:
        return text
    titles = first_few((f"{line.title} [{','.join(line.runs[0].inherited)}]" for line in bases), len(bases))
    return (
        f"{text} So Δ is the difference to a student without a loss that also started with these parts of the "
        f"teacher: {titles}."
    )


def _unpaired(lines: Iterable[Line], base: str) -> Iterable[str]:
    """A note on lines with other seeds than the base line: their gain is not the difference of the means."""
    partly = []
    for line in lines:
        own, others = ({run.results["seed"] for run in runs} for runs in (line.runs, line.base))
        if line.runs[0].role == "student" and own & others and own != others:
            partly.append(f"{line.title} ({len(own & others)} of {len(own | others)})")
    if partly:
        yield f"These gains use only the seeds in common with the {base}: {first_few(partly)}."


def _lines_covering(lines: Iterable[Line], covered: str) -> list[str]:
    return [
        line.title
        for line in lines
        if any(figure.gain and figure.gain.covers == covered for figure in line.figures.values())
    ]
