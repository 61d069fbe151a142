"""The points at which a student and a teacher can be compared."""

from collections.abc import Iterable

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.features.base import DetectorTap, points_with_examples
from lshfm_pl.mimic.features.levels import common_levels
from lshfm_pl.mimic.heads import place_of

__all__ = ["POINTS", "refuse_unpaired"]

POINTS = ("penultimate", "pyramid", "logits", "dense_head", "class_maps")


def refuse_unpaired(points: Iterable[str], student: DetectorTap, teacher: DetectorTap) -> None:
    """Stop if the features of a student and a teacher cannot be paired at one of the points.

    Raises:
        LSHFMError: they cannot; the message tells at which points they can.
    """
    for point in points:
        reason = _reason_against(point, student, teacher)
        if reason is None:
            continue
        possible = [other for other in student.layouts if _reason_against(other, student, teacher) is None]
        told = points_with_examples(possible)
        family = type(student.detector).__name__
        if point not in student.layouts and place_of(point) is None and type(student) is type(teacher):
            raise LSHFMError(f"mimicking: expected a point of {family}, found {point}; it has {told}")
        raise LSHFMError(f"{reason}; the two can be compared at {told}")


def _reason_against(point: str, student: DetectorTap, teacher: DetectorTap) -> str | None:
    """Why features at a point cannot be paired; None if they can."""
    taps = student, teacher
    families = [type(tap.detector).__name__ for tap in taps]
    place = place_of(point)
    without = [tap for tap in taps if place is not None and not tap.holds(place)]
    if without:
        return (
            f"mimicking: {point} is inside of a dense head with towers of convolutions, and a "
            f"{architecture_of(without[0].detector).title} has no such place"
        )
    found = [tap.layouts.get("dense_head" if place else point) for tap in taps]
    lacking = [family for family, layout in zip(families, found, strict=True) if layout is None]
    if lacking:
        return f"mimicking: expected features at {point} in both detectors, found none in {' and '.join(lacking)}"
    if found[0] != found[1]:
        return (
            f"mimicking: for features at {point} expected detectors whose features belong to the same places, "
            f"found {' and '.join(families)}"
        )
    if point not in student.row_points and not common_levels(student.levels(), teacher.levels())[0]:
        strides = [[level.stride for level in tap.levels()] for tap in taps]
        return (
            f"mimicking: for maps at {point} expected a stride that both pyramids have, found {strides[0]} "
            f"(student) and {strides[1]} (teacher)"
        )
    try:
        student.refuse_mismatch(teacher, frozenset({point}))
    except LSHFMError as error:
        return str(error)
    return None
