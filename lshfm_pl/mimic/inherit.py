"""Starting a student with the teacher's neck and head.

FGD (arXiv 2111.11837) and MGD (arXiv 2205.01529) call this the inheriting strategy.
"""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.build import Detector
from lshfm_pl.detectors.class_names import common_labels
from lshfm_pl.detectors.class_rows import with_rows
from lshfm_pl.detectors.load_report import LoadedTensor, LoadReport
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["PARTS", "differing_anchors", "fits_whole", "head_of", "inherit"]

PARTS = ("neck", "head")
"""Parts of a detector that can be inherited."""

OF_ANCHORS = ("anchor_sizes", "anchor_aspect_ratios", "fpn_strides")
"""Keys of a detector's config that decide what the outputs of its head mean."""


def inherit(student: Detector, teacher: Detector, parts: Collection[str]) -> LoadReport:
    """Copy the tensors of some parts of the teacher into the student, as far as they fit.

    A tensor fits if the teacher has one with the same name and shape. If the classes differ, class layers get the
    rows of the background and of the classes that both have by name.

    Args:
        student: detector in which tensors are replaced.
        teacher: trained detector. It is not changed.
        parts: names from `PARTS`.

    Returns:
        What happened to each tensor of these parts, and why.

    Raises:
        LSHFMError: a part is unknown, or no tensor of the parts fits.
    """
    for part in parts:
        if part not in PARTS:
            raise LSHFMError(f"student.inherit: expected parts of {', '.join(PARTS)}, found {part}")
    given = teacher.state_dict()
    taken: dict[str, Tensor] = {}
    tensors = []
    for name, own in student.state_dict().items():
        if _part_of(student, name) in parts:
            value, told = _inherited(student, teacher, name, own, given)
            tensors.append(told)
            if value is not None:
                taken[name] = value
    if not taken:
        reason = tensors[0].told if tensors else "the student has no such part"
        raise LSHFMError(
            f"student.inherit: no tensor of {' and '.join(parts)} fits ({reason}); give the student the "
            "teacher's architecture and fpn_channels, or leave student.inherit out"
        )
    student.load_state_dict(taken, strict=False)
    source = f"{' and '.join(parts)} of the teacher {teacher.config['name']}"
    return LoadReport(source, "inherited", len(taken), teacher.class_names, tensors=tuple(tensors))


def differing_anchors(student: Detector, teacher: Detector) -> str | None:
    """The first setting in which the anchors of both differ; None if there is none."""
    keys = (key for key in OF_ANCHORS if student.config.get(key) != teacher.config.get(key))
    return next(keys, None)


def fits_whole(student: Detector, teacher: Detector) -> bool:
    """Whether each tensor of the student's neck and head could be inherited, and would mean the same."""
    given, own = teacher.state_dict(), student.state_dict()
    parts = [name for name in own if _part_of(student, name) in PARTS]
    return (
        bool(parts)
        and differing_anchors(student, teacher) is None
        and all(_inherited(student, teacher, name, own[name], given)[0] is not None for name in parts)
    )


def head_of(detector: Detector) -> list[nn.Parameter]:
    """The parameters of a detector's head: those of neither backbone nor neck."""
    return [value for name, value in detector.named_parameters() if _part_of(detector, name) == "head"]


def _part_of(detector: Detector, name: str) -> str:
    family = architecture_of(detector)
    if not name.startswith(f"{family.body_modules[0]}."):
        return "head"
    return "neck" if name.startswith(family.neck) else "body"


def _inherited(
    student: Detector, teacher: Detector, name: str, own: Tensor, given: Mapping[str, Tensor]
) -> tuple[Tensor | None, LoadedTensor]:
    """The value that a tensor gets, None to keep its own, and what to report."""
    shape = tuple(own.shape)
    theirs = given.get(name)
    if theirs is None:
        return None, LoadedTensor(name, shape, "kept", told="the teacher has no tensor of this name")
    family = architecture_of(student)
    if not name.startswith(family.class_layers) or student.class_names == teacher.class_names:
        if theirs.shape == own.shape:
            return theirs, LoadedTensor(name, shape, "taken", name)
        return None, LoadedTensor(name, shape, "kept", told=_other_shape(theirs))
    labels = common_labels(student.class_names, teacher.class_names)
    mixed = with_rows(
        own,
        theirs,
        labels,
        (student.num_classes, teacher.num_classes),
        is_class_first=name.startswith(family.class_first_layers),
    )
    if mixed is None:
        return None, LoadedTensor(name, shape, "kept", told=_other_shape(theirs))
    told = first_few(("background", *student.class_names)[label] for label in labels)
    return mixed, LoadedTensor(name, shape, "rows taken", name, told)


def _other_shape(theirs: Tensor) -> str:
    return f"the teacher's has the shape {'x'.join(map(str, theirs.shape))}"
