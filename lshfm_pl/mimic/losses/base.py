"""Base classes of mimic losses: modules that compare features of a student and a teacher and return a scalar.

Shapes: N rows (sampled boxes or anchors), D features, H hash functions, K class logits; maps [B, C, h, w].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.heads import RestOfHead
from lshfm_pl.mimic.nested import Features, map_features, shapes_of, tensors_of

__all__ = [
    "Context",
    "Loss",
    "LossSum",
    "checked_point",
    "mean_over_rows",
    "require_number",
    "weights_of_locations",
]


@dataclass(frozen=True)
class Context:
    """What a loss may use besides the features.

    Attributes:
        weights: weight of each row [N], or of each location ([B, h, w] for each level) or anchor ([B, L] for each
            level), in the sum over them; None for equal weights. They sum to 1, except for logits and anchors.
        boxes: ground-truth boxes [n, 4] of each image as x1, y1, x2, y2 in pixels of the padded batch; None unless
            the loss's `wants` contains `boxes`.
        labels: ground-truth labels [n] of each image; None unless `wants` contains `boxes`.
        image_sizes: (height, width) of each image in the padded batch.
        padded_size: (height, width) of the batch.
        strides: stride in pixels of each pyramid level.
        head: continues the teacher's head from the held maps of a point inside of it; None at other points.
        unadapted: the student's maps [B, C', h', w'] of each level before the adapter; None without an adapter, and
            unless `wants` contains `unadapted`.
        generator: CPU random number generator, seeded by the step; None unless `wants` contains `generator`.
    """

    weights: Tensor | Sequence[Tensor] | None = None
    boxes: Sequence[Tensor] | None = None
    labels: Sequence[Tensor] | None = None
    image_sizes: Sequence[tuple[int, int]] = ()
    padded_size: tuple[int, int] | None = None
    strides: tuple[int, ...] | None = None
    head: RestOfHead | None = None
    unadapted: Sequence[Tensor] | None = None
    generator: torch.Generator | None = None


NO_CONTEXT = Context()
FEATURE_POINTS = ("penultimate", "pyramid")
"""Where features are rows, or the maps of levels."""


class Loss(nn.Module):
    """A loss between the features of a student and a teacher at one point.

    Subclasses implement `forward(student, teacher, context) -> Tensor`. It is called with float32 features of equal
    structure and shapes, with the teacher's detached and autocast disabled. Subclasses may own trained parameters.
    `loss(student, teacher)` without a context is enough for plain tensors.
    """

    point: str = "penultimate"
    """Where the features are read: `penultimate`, `pyramid`, `logits`, `dense_head` or `class_maps`."""

    adapts: ClassVar[bool] = False
    """Whether the loss itself takes features of other widths than the teacher's, so that it gets no adapter."""

    wants: ClassVar[frozenset[str]] = frozenset()
    """Parts of the context that the loss needs: `boxes` (with `labels`), `generator`, `unadapted`."""

    follows: ClassVar[Mapping[str, str]] = {}
    """Constructor argument → fact about the teacher (see `TeacherFacts`) that is its default."""

    calibrated: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers that `calibrate` sets."""

    is_cast: ClassVar[bool] = True
    """Whether maps are cast to float32 before `forward`. Rows always are."""

    is_last_on_maps: ClassVar[bool] = False
    """Whether to compute this loss after all others on maps, because it keeps large tensors for its gradient."""

    calibration_images: int = 0
    """Number of training images whose features `calibrate` needs before a new run; 0 for none."""

    def __init__(self) -> None:
        super().__init__()

    def __call__(self, student: Features, teacher: Features, context: Context = NO_CONTEXT) -> Any:
        """The loss as a float32 scalar.

        Raises:
            LSHFMError: the shapes of student and teacher differ.
        """
        shapes = [
            shapes_of(map_features(_one_channel, features) if self.adapts else features)
            for features in (student, teacher)
        ]
        if shapes[0] != shapes[1] or (isinstance(student, Tensor) and student.ndim != 2):
            kind = "tensors of one shape [N, D]" if isinstance(student, Tensor) else "maps of the same shapes"
            raise LSHFMError(
                f"mimic loss: expected student and teacher {kind}, found {shapes[0]} and {shapes[1]}"
            )
        teacher = map_features(Tensor.detach, teacher)
        if self.is_cast or isinstance(student, Tensor):
            student, teacher = (map_features(Tensor.float, features) for features in (student, teacher))
        # Autocast would compute products in float16 or bfloat16; exact products cost little here.
        with torch.autocast(next(tensors_of(student)).device.type, enabled=False):
            return super().__call__(student, teacher, context)

    def calibrate(self, teacher_MD: Tensor) -> None:
        """Set the buffers named in `calibrated` from teacher features [M, D] at `penultimate`."""
        raise NotImplementedError

    def monitored(self) -> dict[str, Tensor]:
        """Scalars of the last batch that are logged under these names, without gradient."""
        return {}


class LossSum(nn.Module):
    """Several losses at one point that have one name in a config. In training each is a term of its own.

    `loss_sum(student, teacher, context)` is the sum of the values of `terms(student, teacher, context)`.

    Args:
        losses: losses by the names under which they are logged.
    """

    def __init__(self, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)

    def terms(self, student: Features, teacher: Features, context: Context = NO_CONTEXT) -> dict[str, Tensor]:
        """Each loss by name."""
        return {name: loss(student, teacher, context) for name, loss in self.losses.items()}

    def forward(self, student: Features, teacher: Features, context: Context = NO_CONTEXT) -> Tensor:
        """The sum of the losses, a float32 scalar."""
        return torch.stack(list(self.terms(student, teacher, context).values())).sum()


def require_number(key: str, value: Any) -> None:
    """Check that a setting is a finite number ≥ 0.

    Raises:
        LSHFMError: it is not; the message names `distill.<key>`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value >= 0):
        raise LSHFMError(f"distill.{key}: expected a finite number ≥ 0, found {value!r}")


def require_above_0(key: str, value: Any) -> None:
    """Check that a setting is a finite number above 0.

    Raises:
        LSHFMError: it is not; the message names `distill.<key>`.
    """
    require_number(key, value)
    if value == 0:
        raise LSHFMError(f"distill.{key}: expected a number > 0, found 0")


def checked_point(point: Any) -> str:
    """The point of a loss of features that are rows or maps; None is `penultimate`.

    Raises:
        LSHFMError: there are no such features.
    """
    point = "penultimate" if point is None else point
    if point not in FEATURE_POINTS:
        raise LSHFMError(f"distill.point: expected one of {', '.join(FEATURE_POINTS)}, found {point!r}")
    return str(point)


def _one_channel(features: Tensor) -> Tensor:
    """The first channel of maps; rows as they are."""
    return features.detach()[:, :1] if features.ndim == 4 else features


def weights_of_locations(maps: Sequence[Tensor], context: Context) -> Sequence[Tensor]:
    """The context's weights [B, h, w] of each level, or equal ones: a mean over a level, then over the levels."""
    if context.weights is not None:
        assert not isinstance(context.weights, Tensor)
        return context.weights
    locations = [level[:, 0] for level in maps]
    return [
        torch.full_like(level, 1 / (len(maps) * level.numel()), dtype=torch.float32) for level in locations
    ]


def mean_over_rows(loss_NX: Tensor, row_weights_N: Tensor | None) -> Tensor:
    """Mean over the elements of each row, then the mean over rows, or the sum weighted by `row_weights_N`."""
    if loss_NX.shape[0] == 0:
        # The mean of no rows would be NaN. The sum keeps the graph, so that DDP sees every parameter in use.
        return loss_NX.sum()
    if row_weights_N is None:
        return loss_NX.mean()
    return (loss_NX.mean(dim=1) * row_weights_N).sum()
