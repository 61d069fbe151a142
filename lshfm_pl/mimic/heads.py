"""Mimic losses on plain tensors: features (or class logits) in, loss out.

Shapes: N feature vectors (sampled RoIs or map locations), D features, H hash functions, K class logits.
Source: "Distilling Knowledge by Mimicking Features" (arXiv 2011.01424); for KD see there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError

__all__ = ["KD", "L2", "LSH", "LSHL2", "Activation", "Centre", "HashLoss", "MimicHead"]

HashLoss = Literal["bce", "l1", "l2"]
HASH_LOSSES: tuple[HashLoss, ...] = ("bce", "l1", "l2")
Activation = Literal["softmax", "sigmoid"]
Centre = Literal["mean", "median"]

PROJECTED_AT_ONCE = 2**24
"""Elements of the projections [N, h] that exist at once while a median is found: 64 MB."""

BITS_ROWS, BITS_HASHES = 256, 1024
"""What `LSH.bit_agreement` looks at, at most."""


class MimicHead(nn.Module, ABC):
    """A loss that pulls the student's features towards the teacher's.

    `head(student_ND, teacher_ND)` is the sum of `head.terms(...)`, each already multiplied by β and by its
    own weight. Sub-classes implement `_parts`.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        _require_number("beta", beta)
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
            student_ND, teacher_ND = student_ND.float(), teacher_ND.detach().float()
            return {
                name: self.beta * weight * value
                for name, (weight, value) in self._parts(student_ND, teacher_ND, row_weights_N).items()
            }

    def forward(self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None = None) -> Tensor:
        """The whole mimic loss, a float32 scalar; arguments and errors as `terms`."""
        return torch.stack(list(self.terms(student_ND, teacher_ND, row_weights_N).values())).sum()

    @abstractmethod
    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Name → (weight of the part, its unweighted value) for float32 features."""


def _require_number(key: str, value: Any) -> None:
    if not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
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
        _require_number("temperature", temperature)
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


class L2(MimicHead):
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


class LSH(MimicHead):
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
        seed: int = 0,
    ) -> None:
        super().__init__(beta)
        num_hashes = 4 * num_features if num_hashes is None else num_hashes
        for key, value, least in (("num_hashes", num_hashes, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise LSHFMError(f"distill.{key}: expected a whole number ≥ {least}, found {value!r}")
        _require_number("std", std)
        if std == 0:
            raise LSHFMError("distill.std: expected a number > 0, found 0")
        normalized = str(hash_loss).lower()
        if normalized not in HASH_LOSSES:
            raise LSHFMError(
                f"distill.hash_loss: expected one of {', '.join(HASH_LOSSES)}, found {hash_loss!r}"
            )
        self.hash_loss = normalized
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

    def centre_bias(self, features_ND: Tensor, centre: Centre) -> None:
        """Set b = −mean or −median of W f per hash over the given features [N, D], N ≥ 1.

        With the median (of an even number: the middle of the two) half of the features have bit 1, so that every
        hash tells the most it can. The projections are made a block of hashes at a time.

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
            middle = [(len(features_ND) - 1) // 2, len(features_ND) // 2]
            centres_H = torch.cat(
                [
                    F.linear(features_ND, rows).sort(dim=0).values[middle].mean(dim=0)
                    for rows in self.weight.split(block)
                ]
            )
        self.bias.copy_(-centres_H)

    def project(self, features_ND: Tensor) -> Tensor:
        """W f + b, [N, H]."""
        return F.linear(features_ND, self.weight, self.bias)

    @torch.no_grad()
    def bit_agreement(self, student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        """Share (0..1) of hash bits, 1[W f + b > 0], in which paired features agree; a float32 scalar.

        A sample, so that it costs next to nothing: at most 256 rows, evenly spaced, and the first 1,024 hashes.
        Without rows it is NaN.
        """
        step = max(1, -(-len(student_ND) // BITS_ROWS))
        with torch.autocast(student_ND.device.type, enabled=False):
            student_bits, teacher_bits = (
                F.linear(features[::step].float(), self.weight[:BITS_HASHES], self.bias[:BITS_HASHES]) > 0
                for features in (student_ND, teacher_ND)
            )
        return (student_bits == teacher_bits).float().mean()

    def _hash_part(self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None) -> Tensor:
        if student_ND.shape[1] != self.weight.shape[1]:
            raise LSHFMError(
                f"mimic loss: the hash matrix is for {self.weight.shape[1]} features, found {student_ND.shape[1]}"
            )
        student_NH, teacher_NH = self.project(student_ND), self.project(teacher_ND)
        if self.hash_loss == "bce":
            # Strictly greater: a projection of exactly 0 has label 0, as published.
            bits_NH = (teacher_NH > 0).to(student_NH.dtype)
            loss_NH = F.binary_cross_entropy_with_logits(student_NH, bits_NH, reduction="none")
        elif self.hash_loss == "l1":
            loss_NH = (student_NH - teacher_NH).abs()
        else:
            return _mean_squared_error(student_NH, teacher_NH, row_weights_N)
        return _mean_over_rows(loss_NH, row_weights_N)

    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        return {"lsh": (1.0, self._hash_part(student_ND, teacher_ND, row_weights_N))}


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
        seed: int = 0,
    ) -> None:
        super().__init__(num_features, num_hashes, beta=beta, std=std, hash_loss=hash_loss, seed=seed)
        _require_number("l2_weight", l2_weight)
        _require_number("lsh_weight", lsh_weight)
        self.l2_weight, self.lsh_weight = float(l2_weight), float(lsh_weight)

    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        return {
            "l2": (self.l2_weight, _mean_squared_error(student_ND, teacher_ND, row_weights_N)),
            "lsh": (self.lsh_weight, self._hash_part(student_ND, teacher_ND, row_weights_N)),
        }
