"""Who labels the training pictures: the annotations of the data set, or the teacher."""

from typing import Any, Literal, cast, get_args

from lshfm_pl.errors import LSHFMError

__all__ = ["OF_TEACHER", "TEACHER", "TrainLabels", "checked_train_labels", "no_set"]

TrainLabels = Literal["annotations", "teacher"]

TEACHER: TrainLabels = "teacher"
"""Value of `data.train_labels`: annotations of the training pictures have no influence and are not needed."""


OF_TEACHER = "the teacher"
"""For messages: where class names are from."""


def no_set(split: str) -> str:
    """The message of a command that needs a set which pictures without labels do not have."""
    name = {"val": "validation"}.get(split, split)
    return (
        f"data: expected a {name} set with labels, found pictures without labels: give one, such as "
        "data=voc_folder data.root=<folder>, or data=auto to find out its format"
    )


def checked_train_labels(value: Any, unlabelled: Any) -> TrainLabels:
    """The value of `data.train_labels`.

    Args:
        value: of the config.
        unlabelled: the value of `data.unlabelled`.

    Raises:
        LSHFMError: it is unknown, or `data.unlabelled` is given beside training pictures without labels.
    """
    if value not in get_args(TrainLabels):
        raise LSHFMError(
            f"data.train_labels: expected {' or '.join(get_args(TrainLabels))}, found {value!r}."
        )
    if value == TEACHER and unlabelled:
        raise LSHFMError(
            f"data.unlabelled: with data.train_labels={TEACHER} no training picture has labels to mix these with. "
            "Leave it out; data=pictures data.root=<list> takes pictures of several folders."
        )
    return cast(TrainLabels, value)
