"""Losses of locality-sensitive hashes (arXiv 2011.01424)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.hash_loss import (
    HASH_LOSSES,
    HashLoss,
    exact_products,
    hash_loss_of_maps,
    hash_loss_of_rows,
)
from lshfm_pl.kernels.winograd import SIDE
from lshfm_pl.mimic.losses.base import FeatureHead, require_number
from lshfm_pl.mimic.losses.l2 import mean_squared_error, mean_squared_error_of_maps

__all__ = ["LSH", "LSHL2", "PROJECTED_AT_ONCE", "Centre", "EvenMedian"]


Centre = Literal["mean", "median"]

EvenMedian = Literal["mean", "lower"]

PROJECTED_AT_ONCE = 2**24
"""Elements of the projections [N, h] that exist at once while a median is found: 64 MB."""


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
        l2 = mean_squared_error(student_ND, teacher_ND, row_weights_N)
        return self._both(l2, super()._parts(student_ND, teacher_ND, row_weights_N))

    def _map_parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        lsh = super()._map_parts(student, teacher, location_weights)
        # Last, as it keeps the differences for its gradient: they would add to the peak of the hash term.
        return self._both(mean_squared_error_of_maps(student, teacher, location_weights), lsh)

    def _both(self, l2: Tensor, lsh: dict[str, tuple[float, Tensor]]) -> dict[str, tuple[float, Tensor]]:
        return {"l2": (self.l2_weight, l2), "lsh": (self.lsh_weight, lsh["lsh"][1])}
