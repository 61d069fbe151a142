"""What every mimic loss is: a module that sees tensors of a student and a teacher and returns a scalar.

Shapes: N rows (sampled boxes or anchors), D features, H hash functions, K class logits; maps [B, C, h, w].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.nested import Features, mapped, shapes_of, tensors_of

__all__ = ["Context", "Loss", "LossSum", "mean_over_rows", "require_number"]


@dataclass(frozen=True)
class Context:
    """What a loss may know besides the features.

    Attributes:
        weights: what each row [N] or location ([B, h, w] of each level) counts in a sum; None: all the same. They
            sum to 1 but for class logits.
        boxes: ground truth [n, 4] of each image as x1, y1, x2, y2 in pixels of the padded batch; None for a loss
            whose `wants` lacks `boxes`.
        labels: [n] of each image; None likewise.
        image_sizes: (height, width) of each image in the padded batch.
        padded_size: (height, width) of the batch.
        strides: pixels from one location of a map to the next, of each level of the pyramid.
        generator: of random numbers on the CPU, seeded by the step; None for a loss whose `wants` lacks
            `generator`.
    """

    weights: Tensor | Sequence[Tensor] | None = None
    boxes: Sequence[Tensor] | None = None
    labels: Sequence[Tensor] | None = None
    image_sizes: Sequence[tuple[int, int]] = ()
    padded_size: tuple[int, int] | None = None
    strides: tuple[int, ...] | None = None
    generator: torch.Generator | None = None


NO_CONTEXT = Context()


class Loss(nn.Module):
    """A loss between the features of a student and a teacher at one point.

    Sub-classes implement `forward(student, teacher, context) -> Tensor`, which is called with float32 features in
    the same structure and of the same shapes, the teacher's without gradient, and autocast off. They may own
    trained parameters. `loss(student, teacher)` without a context is for plain tensors.
    """

    point: ClassVar[str] = "penultimate"
    """Where the features are read: `penultimate`, `pyramid`, `logits` or `dense_head`."""

    wants: ClassVar[frozenset[str]] = frozenset()
    """Of the context: `boxes` (with `labels`), `generator`."""

    follows: ClassVar[Mapping[str, str]] = {}
    """Argument of the constructor → fact about the teacher (`TeacherFacts`) that it takes where none is given."""

    calibrated: ClassVar[tuple[str, ...]] = ()
    """Buffers that `calibrate` sets."""

    is_cast: ClassVar[bool] = True
    """Whether maps of other types are made float32 first; rows always are."""

    is_last_on_maps: ClassVar[bool] = False
    """Whether it is computed after the others on maps, as it keeps much that would add to their peak of memory."""

    calibration_images: int = 0
    """Training images from which `calibrate` is to be given features before a new run; 0 for none."""

    def __init__(self) -> None:
        super().__init__()

    def __call__(self, student: Features, teacher: Features, context: Context = NO_CONTEXT) -> Any:
        """The loss as a float32 scalar.

        Raises:
            LSHFMError: the shapes of student and teacher differ.
        """
        shapes = [shapes_of(features) for features in (student, teacher)]
        if shapes[0] != shapes[1] or (isinstance(student, Tensor) and student.ndim != 2):
            kind = "tensors of one shape [N, D]" if isinstance(student, Tensor) else "maps of the same shapes"
            raise LSHFMError(
                f"mimic loss: expected student and teacher {kind}, found {shapes[0]} and {shapes[1]}"
            )
        teacher = mapped(Tensor.detach, teacher)
        if self.is_cast or isinstance(student, Tensor):
            student, teacher = (mapped(Tensor.float, features) for features in (student, teacher))
        # Autocast would make float16 or bfloat16 of the products; the loss is cheap to keep exact.
        with torch.autocast(next(tensors_of(student)).device.type, enabled=False):
            return super().__call__(student, teacher, context)

    def calibrate(self, teacher_MD: Tensor) -> None:
        """Set the buffers named in `calibrated` from a sample of the teacher's features at `penultimate` [M, D]."""
        raise NotImplementedError

    def monitored(self) -> dict[str, Tensor]:
        """Scalars of the last batch to be logged under their names, without gradient."""
        return {}


class LossSum(nn.Module):
    """Several losses at one point under one name in a config; each is a term of its own in training.

    `loss_sum(student, teacher, context)` is the sum of `terms(student, teacher, context)`.

    Args:
        losses: by the names under which they are logged.
    """

    def __init__(self, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)

    def terms(self, student: Features, teacher: Features, context: Context = NO_CONTEXT) -> dict[str, Tensor]:
        """Each loss by its name."""
        return {name: loss(student, teacher, context) for name, loss in self.losses.items()}

    def forward(self, student: Features, teacher: Features, context: Context = NO_CONTEXT) -> Tensor:
        """The sum of the losses, a float32 scalar."""
        return torch.stack(list(self.terms(student, teacher, context).values())).sum()


def require_number(key: str, value: Any) -> None:
    """Refuse what is no finite number ≥ 0.

    Raises:
        LSHFMError: names `distill.<key>`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value >= 0):
        raise LSHFMError(f"distill.{key}: expected a finite number ≥ 0, found {value!r}")


def mean_over_rows(loss_NX: Tensor, row_weights_N: Tensor | None) -> Tensor:
    """Mean over the elements of each row, then over the rows, or their sum weighted by `row_weights_N`."""
    if loss_NX.shape[0] == 0:
        # A mean over nothing would be NaN; the sum keeps the graph, so that DDP sees every parameter used.
        return loss_NX.sum()
    if row_weights_N is None:
        return loss_NX.mean()
    return (loss_NX.mean(dim=1) * row_weights_N).sum()
