"""Mapping class logits of a teacher with more classes, or another order of classes, to those of the student."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lshfm_pl.detectors.class_names import labels_by_name
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["ClassColumns", "class_columns"]

_NO_CLASSES_NEEDED = (
    "kd, kd_beta, dist and frs of dense heads compare class scores, so the teacher must know every class of the "
    "data; the other losses, such as pkd and lshl2, need no classes"
)


class ClassColumns:
    """Maps a teacher's class logits to the columns of the student's classes.

    With softmax, everything that is not a class of the student is its background: the probabilities of the
    teacher's background and of its other classes are added, so the logit is their logsumexp. The probabilities of
    the student's classes stay the same. With sigmoid, each class is a column of its own, and other classes are
    dropped.

    Args:
        labels: for each column of the student, the teacher's column; 0 for the background, if there is one.
        num_columns: number of columns of the teacher's logits.
        activation: `softmax` or `sigmoid`, which turns logits into scores.
    """

    def __init__(
        self, labels: Sequence[int], num_columns: int, activation: Literal["softmax", "sigmoid"]
    ) -> None:
        others = [label for label in range(num_columns) if label not in labels]
        self._num_columns = num_columns
        self._labels = torch.tensor(labels)
        #: Columns that form the student's background together; empty if it is a single column or there is none.
        self._background = torch.tensor(
            [0, *others] if activation == "softmax" and others else [], dtype=torch.long
        )

    def of(self, features: Any) -> Any:
        """Rows [N, K], or maps with `logits` [B, anchors · K, h, w] of each level, with the student's columns."""
        if isinstance(features, Tensor):
            return self(features)
        levels = [
            level.unflatten(1, (-1, self._num_columns)).movedim(2, -1) for level in features["logits"]
        ]  # [B, anchors, h, w, K]
        mapped = [
            self(level.flatten(0, 3)).unflatten(0, level.shape[:4]).movedim(-1, 2).flatten(1, 2)
            for level in levels
        ]
        return {**features, "logits": mapped}

    def __call__(self, logits_NK: Tensor) -> Tensor:
        """Logits [N, K] of the teacher → [N, number of the student's columns]."""
        if (
            self._labels.device != logits_NK.device
        ):  # only once: a list as index would be copied in every step
            self._labels, self._background = (
                columns.to(logits_NK.device) for columns in (self._labels, self._background)
            )
        columns_NC = logits_NK.index_select(1, self._labels)
        if not len(self._background):
            return columns_NC
        background_N1 = logits_NK.index_select(1, self._background).float().logsumexp(dim=1, keepdim=True)
        return torch.cat([background_N1.to(columns_NC.dtype), columns_NC[:, 1:]], dim=1)


def class_columns(
    student: Sequence[str],
    teacher: Sequence[str],
    num_columns: tuple[int, int],
    activation: Literal["softmax", "sigmoid"],
) -> ClassColumns | None:
    """The mapping of a teacher's class logits to a student's classes; None if they are the same.

    Args:
        student: names of the student's labels 1, 2, …; empty if unknown.
        teacher: names of the teacher's labels, likewise.
        num_columns: number of class logits per box or anchor of student and teacher.
        activation: `softmax` or `sigmoid`, the teacher's activation.

    Raises:
        LSHFMError: the teacher lacks a class of the student, or names are unknown and the numbers differ.
    """
    if not (student and teacher):
        if num_columns[0] != num_columns[1]:
            raise LSHFMError(
                f"distill: expected the same number of class logits, found {num_columns[0]} (student) and "
                f"{num_columns[1]} (teacher), whose classes are unknown; {_NO_CLASSES_NEEDED}"
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
