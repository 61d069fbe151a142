"""Mimic losses on plain tensors: features (or class logits) in, loss out.

Shapes: N feature vectors (sampled RoIs or map locations), D features, H hash functions, K class logits.
Source: "Distilling Knowledge by Mimicking Features" (arXiv 2011.01424); for KD see there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.hashing import (
    HASH_LOSSES,
    HashLoss,
    exact_products,
    hash_loss_of_maps,
    hash_loss_of_rows,
)
from lshfm_pl.winograd import SIDE

__all__ = [
    "KD",
    "L2",
    "LSH",
    "LSHL2",
    "Activation",
    "Centre",
    "FeatureHead",
    "HashLoss",
    "MimicHead",
    "require_number",
]

Activation = Literal["softmax", "sigmoid"]
Centre = Literal["mean", "median"]
EvenMedian = Literal["mean", "lower"]

PROJECTED_AT_ONCE = 2**24
"""Elements of the projections [N, h] that exist at once while a median is found: 64 MB."""


class MimicHead(nn.Module, ABC):
    """A loss that pulls the student's features towards the teacher's.

    `head(student_ND, teacher_ND)` is the sum of `head.terms(...)`, each already multiplied by β and by its
    own weight. Sub-classes implement `_parts`.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        require_number("beta", beta)
        self.beta = float(beta)

    def terms(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss by name, each a float32 scalar.

        Args:
            student_ND: [N, D], with gradient.
            teacher_ND: [N, D], treated as constant.
            row_weights_N: [N] weights of the rows, which should sum to 1; without them every row counts 1/N.

        Raises:
            LSHFMError: the two shapes differ, or D is not the number of features the head was made for.
        """
        if student_ND.ndim != 2 or student_ND.shape != teacher_ND.shape:
            raise LSHFMError(
                "mimic loss: expected student and teacher tensors of one shape [N, D], found "
                f"{list(student_ND.shape)} and {list(teacher_ND.shape)}"
            )
        # Autocast would make float16/bfloat16 of the products; the loss is cheap to keep exact.
        with torch.autocast(student_ND.device.type, enabled=False):
            return self._weighted(self._parts(student_ND.float(), teacher_ND.detach().float(), row_weights_N))

    def forward(self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None = None) -> Tensor:
        """The whole mimic loss, a float32 scalar; arguments and errors as `terms`."""
        return torch.stack(list(self.terms(student_ND, teacher_ND, row_weights_N).values())).sum()

    @abstractmethod
    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Name → (weight of the part, its unweighted value) for float32 features."""

    def _weighted(self, parts: dict[str, tuple[float, Tensor]]) -> dict[str, Tensor]:
        return {name: self.beta * weight * value for name, (weight, value) in parts.items()}


class FeatureHead(MimicHead):
    """A loss of features, which also takes maps whose locations' 3×3 neighbourhoods are the features.

    `head(student_maps, teacher_maps, location_weights)` is what the head would be of the neighbourhoods as rows,
    without making them: they have nine times the maps' elements.
    """

    def terms(
        self,
        student: Tensor | Sequence[Tensor],
        teacher: Tensor | Sequence[Tensor],
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """As `MimicHead.terms` for rows [N, D]; for sequences of maps the same of their neighbourhoods.

        Args:
            student: of maps [B, C, h, w] of each level, with gradient; zero padding around them.
            teacher: maps of the same shapes, treated as constant.
            weights: [B, h, w] of each level; they should sum to 1 over all levels.

        Raises:
            LSHFMError: shapes differ, or D (9 · C) is not the number of features the head was made for.
        """
        if isinstance(student, Tensor):
            return super().terms(student, cast(Tensor, teacher), cast(Tensor | None, weights))
        assert weights is not None
        shapes = [[list(level.shape) for level in maps] for maps in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise LSHFMError(
                "mimic loss: expected student and teacher maps of the same shapes, found "
                f"{shapes[0]} and {shapes[1]}"
            )
        with torch.autocast(student[0].device.type, enabled=False):
            return self._weighted(
                self._map_parts(
                    student, [level.detach() for level in teacher], [level.float() for level in weights]
                )
            )

    def forward(
        self,
        student: Tensor | Sequence[Tensor],
        teacher: Tensor | Sequence[Tensor],
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The whole mimic loss, a float32 scalar; arguments and errors as `terms`."""
        return torch.stack(list(self.terms(student, teacher, weights).values())).sum()

    @abstractmethod
    def _map_parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        """Name → (weight of the part, its unweighted value)."""


def require_number(key: str, value: Any) -> None:
    """Refuse what is no finite number ≥ 0.

    Raises:
        LSHFMError: names `distill.<key>`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value >= 0):
        raise LSHFMError(f"distill.{key}: expected a finite number ≥ 0, found {value!r}")


def _mean_over_rows(loss_NX: Tensor, row_weights_N: Tensor | None) -> Tensor:
    if loss_NX.shape[0] == 0:
        # A mean over nothing would be NaN; the sum keeps the graph, so that DDP sees every parameter used.
        return loss_NX.sum()
    if row_weights_N is None:
        return loss_NX.mean()
    return (loss_NX.mean(dim=1) * row_weights_N).sum()


def _mean_squared_error(student_NX: Tensor, teacher_NX: Tensor, row_weights_N: Tensor | None) -> Tensor:
    return _mean_over_rows((student_NX - teacher_NX).square(), row_weights_N)


def _mean_squared_error_of_maps(
    student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
) -> Tensor:
    """MSE of 3×3 neighbourhoods. A place counts in the neighbourhoods around it, so its weights add up there."""
    levels = []
    for student_BChw, teacher_BChw, weights_Bhw in zip(student, teacher, location_weights, strict=True):
        counts_Bhw = F.avg_pool2d(weights_Bhw, SIDE, stride=1, padding=SIDE // 2)  # the sum / 9
        squares_BChw = (student_BChw.float() - teacher_BChw.float()).square()
        levels.append((squares_BChw.mean(dim=1) * counts_Bhw).sum())
    return torch.stack(levels).sum()


class KD(MimicHead):
    """β · T² · KL(teacher ‖ student) of the class scores softened by the temperature T, summed over classes.

    Source: arXiv 1503.02531, section 2: T² keeps the gradient's size independent of T. With `softmax` the classes
    exclude each other (Faster R-CNN, background included); with `sigmoid` each class is a yes or no of its own,
    as in the focal loss (RetinaNet). `head(student_NK, teacher_NK, row_weights_N)`; the weights need not sum to 1.

    Args:
        beta: weight of the loss.
        temperature: T.
        activation: what makes scores of the logits.
    """

    def __init__(
        self, beta: float = 1.0, *, temperature: float = 2.0, activation: Activation = "softmax"
    ) -> None:
        super().__init__(beta)
        require_number("temperature", temperature)
        if temperature == 0:
            raise LSHFMError("distill.temperature: expected a number > 0, found 0")
        if activation not in get_args(Activation):
            raise ValueError(f"activation: expected softmax or sigmoid, got {activation!r}")
        self.temperature = float(temperature)
        self.activation = activation

    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        student_NK, teacher_NK = student_ND / self.temperature, teacher_ND / self.temperature
        if self.activation == "softmax":
            log_student, log_teacher = student_NK.log_softmax(dim=1), teacher_NK.log_softmax(dim=1)
            divergence_N = _divergence(log_student, log_teacher).sum(dim=1)
        else:
            yes_NK = _divergence(F.logsigmoid(student_NK), F.logsigmoid(teacher_NK))
            no_NK = _divergence(F.logsigmoid(-student_NK), F.logsigmoid(-teacher_NK))
            divergence_N = (yes_NK + no_NK).sum(dim=1)
        return {"kd": (self.temperature**2, _mean_over_rows(divergence_N[:, None], row_weights_N))}


def _divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """p_t · log(p_t / p_s), elementwise."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True)


class L2(FeatureHead):
    """β · MSE(f_s, f_t), the mean over all elements.

    Args:
        beta: weight of the whole loss.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__(beta)

    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        return {"l2": (1.0, _mean_squared_error(student_ND, teacher_ND, row_weights_N))}

    def _map_parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        return {"l2": (1.0, _mean_squared_error_of_maps(student, teacher, location_weights))}


class LSH(FeatureHead):
    """β · BCE-with-logits(W f_s + b, 1[W f_t + b > 0]), the mean over all elements.

    W [H, D] holds H random hash functions with entries from N(0, std²), b [H] is zero; both are frozen and
    belong to the state dict. Only the direction of a feature is constrained, its length is free.

    Args:
        num_features: D.
        num_hashes: H; 4 · D if None, as published.
        beta: weight of the whole loss.
        std: standard deviation of the entries of W. The published value is that of the teacher's classifier
            weight (`lshfm_pl.mimic.features.mimic_size` reads it).
        hash_loss: `bce` on the teacher's bits, or `l1` / `l2` between the two projections.
        hashes_per_step: draw so many of the hash functions anew for each loss: its expectation is the loss with all
            of them. None takes all.
        seed: of the random W: the same seed and sizes give the same W on every machine and process.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        num_features: int,
        num_hashes: int | None = None,
        *,
        beta: float = 1.0,
        std: float = 0.01,
        hash_loss: HashLoss = "bce",
        hashes_per_step: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(beta)
        num_hashes = 4 * num_features if num_hashes is None else num_hashes
        self.hashes_per_step = hashes_per_step
        numbers = [("num_hashes", num_hashes, 1), ("seed", seed, 0)]
        if hashes_per_step is not None:
            numbers.append(("hashes_per_step", hashes_per_step, 1))
        for key, value, least in numbers:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise LSHFMError(f"distill.{key}: expected a whole number ≥ {least}, found {value!r}")
        require_number("std", std)
        if std == 0:
            raise LSHFMError("distill.std: expected a number > 0, found 0")
        normalized = str(hash_loss).lower()
        if normalized not in HASH_LOSSES:
            raise LSHFMError(
                f"distill.hash_loss: expected one of {', '.join(HASH_LOSSES)}, found {hash_loss!r}"
            )
        self.hash_loss: HashLoss = normalized
        #: Share of the last batch's bits on which student and teacher agree, weighted as the loss; a scalar tensor.
        self.bit_agreement: Tensor | None = None
        # A generator of its own: adding a mimic head must not shift the random numbers of the run.
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", std * torch.randn(num_hashes, num_features, generator=generator))
        self.register_buffer("bias", torch.zeros(num_hashes))

    def load_hash(self, weights: Mapping[str, Any], source: str) -> None:
        """Take W (and b, if there) from `weights` with the keys `weight` [H, D] and optionally `bias` [H].

        H follows the file, so that a run can share the hash functions of another.

        Raises:
            LSHFMError: no such tensors, or another number of features; the message names `source`.
        """
        weight, bias = weights.get("weight"), weights.get("bias")
        features = self.weight.shape[1]
        if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] != features:
            found = list(weight.shape) if isinstance(weight, Tensor) else "none"
            raise LSHFMError(
                f"{source}: expected a hash matrix 'weight' of shape [H, {features}], found {found}"
            )
        if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
            raise LSHFMError(f"{source}: expected a hash bias of shape [{weight.shape[0]}], found another")
        self.weight = weight.detach().to(self.weight)
        self.bias = self.weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().to(self.weight)

    @exact_products()
    def centre_bias(self, features_ND: Tensor, centre: Centre, even_median: EvenMedian = "mean") -> None:
        """Set b = −mean or −median of W f per hash over the given features [N, D], N ≥ 1.

        With the median half of the features have bit 1, so that every hash tells the most it can. The projections
        are made a block of hashes at a time.

        Args:
            features_ND: the teacher's features.
            centre: mean or median, per hash.
            even_median: which median of an even number N: the `mean` of the two middle values, or the `lower` one
                as in the published code. With `lower` the feature that is the median has a projection of 0,
                hence bit 0.

        Raises:
            LSHFMError: no feature is given, or one is not finite.
        """
        if len(features_ND) == 0:
            raise LSHFMError("distill.bias: no teacher feature to find the centre of; have the images boxes?")
        if not torch.isfinite(features_ND).all():
            raise LSHFMError("distill.bias: the teacher's features are not finite; is it trained?")
        features_ND = features_ND.to(self.weight)
        if centre == "mean":
            # In float64: W f is linear, so its mean is W times the mean, and cancellation costs no digits.
            centres_H = self.weight.double() @ features_ND.double().mean(dim=0)
        else:
            block = max(1, PROJECTED_AT_ONCE // len(features_ND))
            lower, upper = (len(features_ND) - 1) // 2, len(features_ND) // 2
            middle = [lower, upper] if even_median == "mean" else [lower]
            centres_H = torch.cat(
                [
                    F.linear(features_ND, rows).sort(dim=0).values[middle].mean(dim=0)
                    for rows in self.weight.split(block)
                ]
            )
        self.bias.copy_(-centres_H)

    @exact_products()
    def project(self, features_ND: Tensor) -> Tensor:
        """W f + b, [N, H]."""
        return F.linear(features_ND, self.weight, self.bias)

    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        self._require_features(student_ND.shape[1])
        loss, self.bit_agreement = hash_loss_of_rows(
            student_ND, teacher_ND, *self._functions_of_step(), row_weights_N, self.hash_loss
        )
        return {"lsh": (1.0, loss)}

    def _map_parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        self._require_features(student[0].shape[1] * SIDE**2)
        loss, self.bit_agreement = hash_loss_of_maps(
            student, teacher, location_weights, *self._functions_of_step(), self.hash_loss
        )
        return {"lsh": (1.0, loss)}

    def _functions_of_step(self) -> tuple[Tensor, Tensor]:
        """W and b of the hash functions that this loss is of."""
        if self.hashes_per_step is None or self.hashes_per_step >= len(self.weight):
            return self.weight, self.bias
        drawn = torch.randperm(len(self.weight), device=self.weight.device)[: self.hashes_per_step]
        return self.weight[drawn], self.bias[drawn]

    def _require_features(self, num_features: int) -> None:
        if num_features != self.weight.shape[1]:
            raise LSHFMError(
                f"mimic loss: the hash matrix is for {self.weight.shape[1]} features, found {num_features}"
            )


class LSHL2(LSH):
    """β · (w_l2 · MSE + w_lsh · LSH term); both weights are 1 as published: one β for the sum.

    Args:
        l2_weight: w_l2.
        lsh_weight: w_lsh.
        Others: as `LSH`.
    """

    def __init__(
        self,
        num_features: int,
        num_hashes: int | None = None,
        *,
        beta: float = 1.0,
        l2_weight: float = 1.0,
        lsh_weight: float = 1.0,
        std: float = 0.01,
        hash_loss: HashLoss = "bce",
        hashes_per_step: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_features,
            num_hashes,
            beta=beta,
            std=std,
            hash_loss=hash_loss,
            hashes_per_step=hashes_per_step,
            seed=seed,
        )
        require_number("l2_weight", l2_weight)
        require_number("lsh_weight", lsh_weight)
        self.l2_weight, self.lsh_weight = float(l2_weight), float(lsh_weight)

    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        l2 = _mean_squared_error(student_ND, teacher_ND, row_weights_N)
        return self._both(l2, super()._parts(student_ND, teacher_ND, row_weights_N))

    def _map_parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        lsh = super()._map_parts(student, teacher, location_weights)
        # Last, as it keeps the differences for its gradient: they would add to the peak of the hash term.
        return self._both(_mean_squared_error_of_maps(student, teacher, location_weights), lsh)

    def _both(self, l2: Tensor, lsh: dict[str, tuple[float, Tensor]]) -> dict[str, tuple[float, Tensor]]:
        return {"l2": (self.l2_weight, l2), "lsh": (self.lsh_weight, lsh["lsh"][1])}
