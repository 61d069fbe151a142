"""Maps that show where in an image the features of student and teacher agree."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.detectors import Detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.exact import exact_products
from lshfm_pl.mimic.features import FeatureGrid, feature_grids, make_tap, tap_of
from lshfm_pl.mimic.hash_files import read_hash_file
from lshfm_pl.mimic.losses.lsh import LSH

__all__ = ["AgreementMap", "agreement_maps", "find_hash"]

HASHES_COMPARED = 1024
"""Largest number of hash functions that the maps of bits use."""

HASHES_AT_ONCE = 128


class AgreementMap(NamedTuple):
    """Agreement over one grid of an image.

    Attributes:
        title: for a figure.
        cosine_hw: cosine of the features, −1..1; None if student and teacher have different numbers of channels.
        bits_hw: share of equal hash bits, 0..1 (1 − angle / π in expectation); None if the hash does not apply to
            these features.
    """

    title: str
    cosine_hw: Tensor | None
    bits_hw: Tensor | None


def find_hash(checkpoint: str | Path | None, teacher: Detector, seed: int) -> tuple[LSH, str]:
    """The hash that a student was trained with, or a random one, and a text that says which.

    Args:
        checkpoint: checkpoint of the student; None for a random hash.
        teacher: detector whose features are hashed. Its classifier gives the standard deviation of a random hash.
        seed: seed of a random hash.

    Raises:
        LSHFMError: the checkpoint's hash is for another number of features.
    """
    tap = tap_of(teacher)
    head = LSH(tap.num_features, HASHES_COMPARED, std=tap.classifier_std, seed=seed)
    if checkpoint is not None:
        try:
            weights = read_hash_file(checkpoint)
        except LSHFMError:
            weights = None
        if weights is not None:
            head.load_hash(weights, str(checkpoint))
            return head, f"the hash that {checkpoint} was trained with"
    return head, f"{HASHES_COMPARED} random hashes, seed {seed}"


def agreement_maps(student: Detector, teacher: Detector, image: Tensor, head: LSH) -> list[AgreementMap]:
    """Cosine and share of equal bits at every place of the grids of `feature_grids`.

    Args:
        student: in evaluation mode, on the same device as the teacher.
        teacher: in evaluation mode.
        image: uint8 [3, H, W].
        head: the hash.

    Returns:
        One map per grid, on the CPU.

    Raises:
        LSHFMError: the two cannot be compared (see `make_tap`).
    """
    make_tap(student, teacher)  # raises if they cannot be compared
    device = next(student.parameters()).device
    grids = feature_grids([student, teacher], image.to(device).float() / 255)
    return [_agreement(grid, head.to(device)) for grid in grids]


@torch.no_grad()
def _agreement(grid: FeatureGrid, head: LSH) -> AgreementMap:
    student, teacher = grid.maps
    if student.shape[0] != teacher.shape[0]:
        return AgreementMap(grid.title, None, None)

    def neighbourhood_sum(values_Chw: Tensor) -> Tensor:
        summed = F.avg_pool2d(
            values_Chw.sum(dim=0, keepdim=True),
            grid.side,
            stride=1,
            padding=grid.side // 2,
            divisor_override=1,
        )
        return summed[0]

    product = neighbourhood_sum(student * teacher)
    norms = (neighbourhood_sum(student.square()) * neighbourhood_sum(teacher.square())).sqrt()
    cosine_hw = (product / norms.clamp_min(torch.finfo(norms.dtype).tiny)).cpu()
    if not grid.is_mimicked:
        return AgreementMap(grid.title, cosine_hw, None)
    equal_hw = torch.zeros_like(product)
    weights, biases = head.weight[:HASHES_COMPARED], head.bias[:HASHES_COMPARED]
    for weight, bias in zip(weights.split(HASHES_AT_ONCE), biases.split(HASHES_AT_ONCE), strict=True):
        kernel = weight.unflatten(1, (-1, grid.side, grid.side))
        with exact_products():
            student_bits, teacher_bits = (
                F.conv2d(of_detector, kernel, bias, padding=grid.side // 2) > 0 for of_detector in grid.maps
            )
        equal_hw += (student_bits == teacher_bits).sum(dim=0)
    return AgreementMap(grid.title, cosine_hw, (equal_hw / len(weights)).cpu())
