"""Distillation with attention and relations between positions (FBKD, Zhang and Ma, ICLR 2021)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, require_number
from lshfm_pl.mimic.losses.statistics import attention_of_places

__all__ = ["FBKD"]

TEMPERATURE = 0.5
"""Of the spatial attention."""


class Relations(nn.Module):
    """A non-local block: x + BN(W y), where y_p is the mean over q of (θ_p · φ_q) g_q (arXiv 1711.07971).

    The norm has the statistics of the batch, and a weight of 0 at first. θ, φ and g are 1×1 convolutions. The
    outputs of φ and g are max-pooled.

    Args:
        channels: C.
        reduction: θ, φ and g have C / reduction channels.
        pooling: side of the windows of max-pooling.
    """

    def __init__(self, channels: int, reduction: int, pooling: int) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, narrow, kernel_size=1) for _ in range(3))
        self.out = nn.Conv2d(narrow, channels, kernel_size=1, bias=False)
        # Without running statistics, which would be buffers that nothing reads.
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)
        nn.init.zeros_(self.norm.weight)
        self.pooling = pooling

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Maps [B, C, h, w] of the same shape."""
        theta_BPc = self.theta(maps_BChw).flatten(2).transpose(1, 2)
        phi_BcQ = F.max_pool2d(self.phi(maps_BChw), self.pooling).flatten(2)
        g_BQc = F.max_pool2d(self.g(maps_BChw), self.pooling).flatten(2).transpose(1, 2)
        mean_BPc = theta_BPc @ (phi_BcQ @ g_BQc) / phi_BcQ.shape[2]
        return maps_BChw + self.norm(self.out(mean_BPc.transpose(1, 2).unflatten(2, maps_BChw.shape[2:])))


class Connectors(nn.Module):
    """The trained layers of a level.

    Args:
        student: width of the student's maps.
        teacher: width of the teacher's maps.
        reduction: as in `Relations`.
        pooling: as in `Relations`.
    """

    def __init__(self, student: int, teacher: int, reduction: int, pooling: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.features = nn.Conv2d(student, teacher, kernel_size=1)
        self.channels = nn.Linear(student, teacher)
        self.positions = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.relations = Relations(student, reduction, pooling)
        self.adapter_of_relations = nn.Conv2d(student, teacher, kernel_size=1)
        self.relations_of_teacher = Relations(teacher, reduction, pooling)

    def fits(self, maps_BChw: Tensor) -> bool:
        """Whether maps are as large as a window of max-pooling, and norms have more than one value per channel."""
        return min(maps_BChw.shape[2:]) >= self.pooling and maps_BChw[:, 0].numel() > 1

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The four unweighted parts [4] for maps [B, C, h, w]; 0 with a graph for maps that are too small."""
        if not self.fits(student):
            zero = torch.stack([(parameter * 0).sum() for parameter in self.parameters()]).sum()
            return (zero + student[:0].sum()).repeat(4)
        ours_Bhw, theirs_Bhw = (
            attention_of_places(maps.detach().abs().mean(dim=1), TEMPERATURE) for maps in (student, teacher)
        )
        weights_B1hw = ((ours_Bhw + theirs_Bhw) / 2)[:, None].sqrt()
        differences = (
            weights_B1hw * (teacher - self.features(student)),
            teacher.mean(dim=(2, 3)) - self.channels(student.mean(dim=(2, 3))),
            teacher.mean(dim=1, keepdim=True) - self.positions(student.mean(dim=1, keepdim=True)),
            self.relations_of_teacher(teacher) - self.adapter_of_relations(self.relations(student)),
        )
        # A norm has the gradient 0 at 0, where that of a square root is NaN.
        return torch.stack([torch.linalg.vector_norm(difference) for difference in differences])


class FBKD(Loss):
    """Feature maps weighted by attention, means over positions and over channels, and relations between positions.

    The value is β · Σ over levels of the four weights times the norms over the batch of: √M · (f_t − A f_s), where
    M is the mean of the spatial attention of both; the difference of the means over the positions, after a linear
    layer; of the means over the channels, after a 3×3 convolution; and of the outputs of a non-local block for each
    side, after a 1×1 convolution. All layers are trained, those on the teacher's side too. Source: Zhang and Ma,
    ICLR 2021, in the form of open-mmlab/mmrazor. Norms are over the whole batch: N equal images give √N times the
    loss.

    A level is left out in a batch in which its maps are smaller than its windows of max-pooling. If all levels are,
    in the first batch, `forward` raises an `LSHFMError`: nothing would be learned.

    Args:
        student_channels: width of each level of the student.
        channels: width of each level of the teacher.
        beta: weight β of the sum.
        feature_weight: weight of the feature maps.
        channel_weight: weight of the means over positions.
        spatial_weight: weight of the means over channels.
        relation_weight: weight of the relations.
        reductions: of each level from the finest one on, see `Relations`; no further levels are compared. Those of
            levels that the detectors do not have are unused.
        poolings: likewise.

    Raises:
        LSHFMError: a setting is out of range.
    """

    point = "pyramid"
    adapts = True
    follows: ClassVar[Mapping[str, str]] = {"student_channels": "student_channels", "channels": "channels"}

    def __init__(
        self,
        student_channels: Sequence[int],
        channels: Sequence[int],
        *,
        beta: float = 1.0,
        feature_weight: float = 7e-5,
        channel_weight: float = 4e-3,
        spatial_weight: float = 4e-3,
        relation_weight: float = 7e-5,
        reductions: Sequence[int] = (4, 4, 2, 2),
        poolings: Sequence[int] = (16, 8, 4, 4),
    ) -> None:
        super().__init__()
        weights = {
            "feature_weight": feature_weight,
            "channel_weight": channel_weight,
            "spatial_weight": spatial_weight,
            "relation_weight": relation_weight,
        }
        for key, value in {"beta": beta, **weights}.items():
            require_number(key, value)
        _require_sizes("reductions", reductions)
        _require_sizes("poolings", poolings)
        if len(reductions) != len(poolings):
            raise LSHFMError(
                f"distill.poolings: expected as many as distill.reductions, found {len(poolings)} and "
                f"{len(reductions)}"
            )
        self.beta = float(beta)
        self.weights = tuple(map(float, weights.values()))
        self.connectors = nn.ModuleList(
            Connectors(*sizes)
            for sizes in zip(student_channels, channels, reductions, poolings, strict=False)
        )
        self._has_compared = False

    def forward(self, student: list[Tensor], teacher: list[Tensor], context: Context = NO_CONTEXT) -> Tensor:
        """The loss between maps [B, C, h, w] of each level, a scalar."""
        if not self._has_compared:
            self._refuse_small_maps(student)
            self._has_compared = True
        levels = zip(self.connectors, student, teacher, strict=False)
        parts_4 = torch.stack([connectors(ours, theirs) for connectors, ours, theirs in levels]).sum(dim=0)
        values = [weight * part for weight, part in zip(self.weights, parts_4, strict=True)]
        return self.beta * torch.stack(values).sum()

    def _refuse_small_maps(self, student: list[Tensor]) -> None:
        levels = cast(list[Connectors], list(self.connectors))
        if not any(each.fits(maps) for each, maps in zip(levels, student, strict=False)):
            sizes = ", ".join("×".join(map(str, maps.shape[2:])) for maps in student)
            windows = ", ".join(str(each.pooling) for each in levels)
            raise LSHFMError(
                f"distill=fbkd: expected a level with maps as large as its distill.poolings ({windows}), found "
                f"maps of {sizes}: train with larger images, or give smaller distill.poolings"
            )


def _require_sizes(key: str, sizes: Any) -> None:
    """Check a setting of each level: whole numbers of at least 1.

    Raises:
        LSHFMError: they are not.
    """
    numbers = list(sizes) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else []
    if not numbers or any(type(number) is not int or number < 1 for number in numbers):
        raise LSHFMError(f"distill.{key}: expected whole numbers ≥ 1, one a level, found {sizes!r}")
