"""The loss of locality-sensitive hashes (arXiv 2011.01424)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.exact import exact_products
from lshfm_pl.kernels.hash_loss import HASH_LOSSES, HashLoss, hash_loss_of_maps, hash_loss_of_rows
from lshfm_pl.kernels.winograd import SIDE
from lshfm_pl.mimic.hash_files import read_hash_file
from lshfm_pl.mimic.losses.base import (
    NO_CONTEXT,
    Context,
    Loss,
    checked_point,
    require_above_0,
    require_number,
    weights_of_locations,
)
from lshfm_pl.seeding import mix_seed

__all__ = ["LSH", "PROJECTED_AT_ONCE", "Centre", "EvenMedian"]


Centre = Literal["mean", "median"]

EvenMedian = Literal["mean", "lower"]

PROJECTED_AT_ONCE = 2**24
"""Elements of the projections [N, h] that are in memory at once while a median is computed: 64 MB."""


class LSH(Loss):
    """β · BCE-with-logits(W f_s + b, 1[W f_t + b > 0]), the mean over all elements.

    W [H, D] holds H random hash functions with entries from N(0, std²), and b [H] is zero. Both are frozen buffers
    of the state dict. The loss constrains only the direction of a feature, not its length. Features are rows
    [N, D], or the zero-padded 3×3 neighbourhoods of the locations of maps [B, C, h, w] with D = 9 · C. Products of
    bfloat16 maps are computed in bfloat16. Where the levels of a pyramid differ in width, each width has its own W
    and b, with the names `weight_<D>` and `bias_<D>`.

    Args:
        num_features: D; or the D of each level, at `pyramid`.
        num_hashes: H; None for 4 · D, the paper's value. With several widths each has H hash functions, and None is
            4 · the smallest D: 4 · D for each would take a gigabyte for an SSD300.
        beta: weight β of the loss.
        std: standard deviation of the entries of W. The paper uses that of the teacher's classifier weight, which
            is the default in a config.
        hash_loss: `bce` against the teacher's bits, or `l1` / `l2` between the two projections.
        hashes_per_step: number of hash functions drawn at random for each call; the expectation is the loss over
            all of them. None uses all.
        seed: seed of W. The same seed and sizes give the same W on every machine and in every process. With several
            widths the seed of each also depends on its D.
        hash_weights: file to read W (and b) from, see `read_hash_file`.
        bias: 0 keeps b. `mean` or `median` makes `calibrate` set b to −mean or −median of W f_t for each hash, as
            the paper's classification code can.
        bias_even_median: which median of an even number of features to take, see `centre_bias`.
        bias_images: number of training images that `calibrate` needs, evenly spaced over the data set. At most 16
            features of each are kept on the CPU: 64 KB per image for 1,024 features, 147 KB for RetinaNet's 2,304.
        point: `penultimate` (None), or `pyramid` with D = 9 · C for maps of C channels.

    Raises:
        LSHFMError: a setting is out of range, or a file does not fit.
    """

    follows: ClassVar[Mapping[str, str]] = {"num_features": "num_features", "std": "classifier_std"}
    calibrated = ("bias",)
    is_cast = False  # products are computed in the dtype of the maps

    #: W and b, if there is one width.
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        num_features: int | Sequence[int],
        num_hashes: int | None = None,
        *,
        beta: float = 1.0,
        std: float = 0.01,
        hash_loss: HashLoss = "bce",
        hashes_per_step: int | None = None,
        seed: int = 0,
        hash_weights: str | Path | None = None,
        bias: Literal[0] | Centre = 0,
        bias_even_median: EvenMedian = "mean",
        bias_images: int = 1,
        point: str | None = None,
    ) -> None:
        super().__init__()
        self.point = checked_point(point)
        require_number("beta", beta)
        self.beta = float(beta)
        if hash_weights is not None and num_hashes is not None:
            raise LSHFMError("distill.num_hashes: the file of distill.hash_weights sets it; leave it null")
        widths = self._widths(num_features)
        num_hashes = 4 * min(widths) if num_hashes is None else num_hashes
        self.hashes_per_step = hashes_per_step
        numbers = [("num_hashes", num_hashes, 1), ("seed", seed, 0)]
        if hashes_per_step is not None:
            numbers.append(("hashes_per_step", hashes_per_step, 1))
        for key, value, least in numbers:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise LSHFMError(f"distill.{key}: expected a whole number ≥ {least}, found {value!r}")
        require_above_0("std", std)
        normalized = str(hash_loss).lower()
        if normalized not in HASH_LOSSES:
            raise LSHFMError(
                f"distill.hash_loss: expected one of {', '.join(HASH_LOSSES)}, found {hash_loss!r}"
            )
        self.hash_loss: HashLoss = normalized
        #: Weighted share of bits of the last batch on which student and teacher agree, a scalar tensor.
        self.bit_agreement: Tensor | None = None
        #: D → what the names of the buffers end with.
        self._suffixes = {width: "" if len(widths) == 1 else f"_{width}" for width in widths}
        for width, suffix in self._suffixes.items():
            # An own generator: adding a mimic loss must not change the other random numbers of the run.
            generator = torch.Generator().manual_seed(mix_seed(seed, width) % 2**63 if suffix else seed)
            self.register_buffer(f"weight{suffix}", std * torch.randn(num_hashes, width, generator=generator))
            self.register_buffer(f"bias{suffix}", torch.zeros(num_hashes))
        self._set_calibration(bias, bias_even_median, bias_images)
        if self.centre is not None and self.point != "penultimate":
            raise LSHFMError(
                f"distill.bias: expected 0 at {self.point}, found {bias!r}; features are sampled at penultimate"
            )
        if hash_weights is not None:
            self.load_hash(read_hash_file(hash_weights), str(hash_weights))

    def _widths(self, num_features: int | Sequence[int]) -> tuple[int, ...]:
        """The different numbers of features, in the order of the levels.

        Raises:
            LSHFMError: there are several, and features are rows.
        """
        widths = (num_features,) if isinstance(num_features, int) else tuple(dict.fromkeys(num_features))
        if len(widths) != 1 and self.point == "penultimate":
            raise LSHFMError(
                f"mimic loss: expected one number of features at penultimate, found {list(widths)}"
            )
        return widths

    def _set_calibration(self, bias: Any, even_median: Any, num_images: Any) -> None:
        if str(bias) not in ("0", *get_args(Centre)):
            raise LSHFMError(f"distill.bias: expected 0, mean or median, found {bias!r}")
        if even_median not in get_args(EvenMedian):
            raise LSHFMError(f"distill.bias_even_median: expected mean or lower, found {even_median!r}")
        if not isinstance(num_images, int) or num_images < 1:
            raise LSHFMError(
                f"distill.bias_images: expected a whole number of at least 1, found {num_images!r}"
            )
        #: How `calibrate` sets b; None leaves it unchanged.
        self.centre: Centre | None = None if str(bias) == "0" else bias
        self.even_median: EvenMedian = even_median
        self.calibration_images = 0 if self.centre is None else num_images

    def calibrate(self, teacher_MD: Tensor) -> None:
        """Set the bias according to the settings.

        Raises:
            LSHFMError: as `centre_bias`.
        """
        if self.centre is not None:
            self.centre_bias(teacher_MD, self.centre, self.even_median)

    def monitored(self) -> dict[str, Tensor]:
        """`bit_agreement` of the last batch."""
        return {} if self.bit_agreement is None else {"bit_agreement": self.bit_agreement}

    def load_hash(self, weights: Mapping[str, Any], source: str) -> None:
        """Load W and b from `weights`, which has the keys `weight` [H, D] and optionally `bias` [H].

        With several widths the keys are those of the buffers. H is that of the file, so that a run can use the hash
        functions of another run.

        Raises:
            LSHFMError: no such tensors, or another number of features; the message names `source`.
        """
        for features, suffix in self._suffixes.items():
            weight, bias = weights.get(f"weight{suffix}"), weights.get(f"bias{suffix}")
            if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] != features:
                found = list(weight.shape) if isinstance(weight, Tensor) else "none"
                raise LSHFMError(
                    f"{source}: expected a hash matrix 'weight{suffix}' of shape [H, {features}], found {found}"
                )
            if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
                raise LSHFMError(
                    f"{source}: expected a hash bias of shape [{weight.shape[0]}], found another"
                )
            weight = weight.detach().to(self.get_buffer(f"weight{suffix}"))
            bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)
            setattr(self, f"weight{suffix}", weight)
            setattr(self, f"bias{suffix}", bias)

    @exact_products()
    def centre_bias(self, features_ND: Tensor, centre: Centre, even_median: EvenMedian = "mean") -> None:
        """Set b to −mean or −median of W f for each hash over the features [N, D], N ≥ 1.

        With the median, half of the features have bit 1, so that each bit carries the most information. The
        projections are computed for a block of hashes at a time.

        Args:
            features_ND: features of the teacher.
            centre: `mean` or `median`.
            even_median: which median of an even number N to take: the `mean` of the two middle values, or the
                `lower` one as the reference implementation. With `lower`, the feature that is the median has a
                projection of 0 and so bit 0.

        Raises:
            LSHFMError: there is no feature, or one is not finite.
        """
        if len(features_ND) == 0:
            raise LSHFMError(
                "distill.bias: found no teacher features to centre on; do the images have boxes?"
            )
        if not torch.isfinite(features_ND).all():
            raise LSHFMError("distill.bias: the teacher's features are not finite; is it trained?")
        features_ND = features_ND.to(self.weight)
        if centre == "mean":
            # In float64. W f is linear, so its mean is W times the mean of f; cancellation costs no digits.
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

    def forward(
        self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor], context: Context = NO_CONTEXT
    ) -> Tensor:
        """The loss, a float32 scalar.

        Raises:
            LSHFMError: D differs from the number of features of the hash matrix.
        """
        if isinstance(student, Tensor):
            loss, self.bit_agreement = hash_loss_of_rows(
                student,
                cast(Tensor, teacher),
                *self._functions_of_step(student.shape[1]),
                cast(Tensor | None, context.weights),
                self.hash_loss,
            )
            return self.beta * loss
        weights = [level.float() for level in weights_of_locations(student, context)]
        of_width: dict[int, list[int]] = {}
        for place, level in enumerate(student):
            of_width.setdefault(level.shape[1] * SIDE**2, []).append(place)
        # All levels of a width in one call, which shares the work on W between them.
        results = [
            hash_loss_of_maps(
                [student[place] for place in places],
                [cast(list[Tensor], teacher)[place] for place in places],
                [weights[place] for place in places],
                *self._functions_of_step(num_features),
                self.hash_loss,
            )
            for num_features, places in of_width.items()
        ]
        (loss, self.bit_agreement), *others = results
        for of_others, agreement in others:
            loss, self.bit_agreement = loss + of_others, self.bit_agreement + agreement
        return self.beta * loss

    def _functions_of_step(self, num_features: int) -> tuple[Tensor, Tensor]:
        """W and b of the hash functions of D = `num_features` that this call uses.

        Raises:
            LSHFMError: there are none for this D.
        """
        if num_features not in self._suffixes:
            known = ", ".join(map(str, self._suffixes))
            raise LSHFMError(f"mimic loss: the hash matrix is for {known} features, found {num_features}")
        suffix = self._suffixes[num_features]
        weight, bias = self.get_buffer(f"weight{suffix}"), self.get_buffer(f"bias{suffix}")
        if self.hashes_per_step is None or self.hashes_per_step >= len(weight):
            return weight, bias
        drawn = torch.randperm(len(weight), device=weight.device)[: self.hashes_per_step]
        return weight[drawn], bias[drawn]
