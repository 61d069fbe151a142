"""Copying rows of class layers, so that a detector gets what another one has learned about the same classes."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["with_rows"]


def with_rows(
    own: Tensor,
    given: Tensor,
    labels: Mapping[int, int],
    num_classes: tuple[int, int],
    *,
    is_class_first: bool,
) -> Tensor | None:
    """A tensor of a class layer in which the rows of some classes are copied from another one.

    Args:
        own: [R, …], tensor of the detector that gets the rows; it is not changed.
        given: [S, …], tensor of the detector that has the rows.
        labels: label in `own` → label in `given`; 0 is the background.
        num_classes: numbers of classes of both, background included.
        is_class_first: True if the rows of a class are adjacent (box deltas of Faster R-CNN), False if the rows of
            an anchor are, each with all classes.

    Returns:
        A new tensor like `own`; None if the two differ in more than the number of classes.
    """
    rows, rest = divmod(len(own) if own.ndim else 0, num_classes[0])
    if rest or not rows or given.shape != (rows * num_classes[1], *own.shape[1:]):
        return None
    mixed = own.clone()
    sizes = [(number, rows) if is_class_first else (rows, number) for number in num_classes]
    to, of = mixed.unflatten(0, sizes[0]), given.unflatten(0, sizes[1])
    for label, other in labels.items():
        if is_class_first:
            to[label] = of[other]
        else:
            to[:, label] = of[:, other]
    return mixed
