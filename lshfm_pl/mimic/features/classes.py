"""Class logits of a teacher that knows more classes than the student, or has them in another order."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lshfm_pl.detectors.class_names import labels_by_name
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["ClassColumns", "class_columns"]

_NO_CLASSES_NEEDED = (
    "l2, lsh and lshl2 compare features and need no classes of the teacher; kd needs a teacher that knows every "
    "class of the data"
)


class ClassColumns:
    """From a teacher's class logits to those of the student's classes.

    With a softmax the student's background is all that is no class of the student's: the probabilities of the
    teacher's background and of its other classes are added, whose logit is their logsumexp. The probabilities of
    the student's classes stay what they are. With sigmoids each class is a column of its own, and no other counts.

    Args:
        labels: of the teacher for each class of the student, 0 for the background where there is a column of it.
        num_columns: of the teacher's logits.
        activation: what makes scores of the logits.
    """

    def __init__(
        self, labels: Sequence[int], num_columns: int, activation: Literal["softmax", "sigmoid"]
    ) -> None:
        self.labels = list(labels)
        others = [label for label in range(num_columns) if label not in self.labels]
        #: Columns that together are the student's background; empty where it is one column like any other.
        self.background = [0, *others] if activation == "softmax" and others else []

    def __call__(self, logits_NK: Tensor) -> Tensor:
        """Logits [N, K] of the teacher → [N, number of the student's columns]."""
        columns_NC = logits_NK[:, self.labels]
        if not self.background:
            return columns_NC
        background_N1 = logits_NK[:, self.background].float().logsumexp(dim=1, keepdim=True)
        return torch.cat([background_N1.to(columns_NC.dtype), columns_NC[:, 1:]], dim=1)


def class_columns(
    student: Sequence[str],
    teacher: Sequence[str],
    num_columns: tuple[int, int],
    activation: Literal["softmax", "sigmoid"],
) -> ClassColumns | None:
    """The columns by which a teacher's class logits become those of a student's classes; None: they are.

    Args:
        student: names of its labels 1, 2, …; empty where they are not known.
        teacher: the same.
        num_columns: class logits of a place, student and teacher.
        activation: of the teacher.

    Raises:
        LSHFMError: a class of the student is none of the teacher's, or names are not known and the numbers differ.
    """
    if not (student and teacher):
        if num_columns[0] != num_columns[1]:
            raise LSHFMError(
                f"distill: expected as many class logits of both, found {num_columns[0]} (student) and "
                f"{num_columns[1]} (teacher), which do not say their classes; {_NO_CLASSES_NEEDED}"
            )
        return None
    if tuple(student) == tuple(teacher):
        return None
    labels = labels_by_name(student, teacher)
    missing = [name for name, label in zip(student, labels, strict=True) if label is None]
    if missing:
        raise LSHFMError(
            f"distill: class logits are paired by the names of the classes, and the teacher has no "
            f"{first_few(missing)} (it has {first_few(teacher, 8)}). {_NO_CLASSES_NEEDED}"
        )
    has_background = num_columns[1] == len(teacher) + 1
    found = [label if has_background else label - 1 for label in labels if label is not None]
    return ClassColumns([0, *found] if has_background else found, num_columns[1], activation)
