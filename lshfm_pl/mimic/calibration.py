"""Features of frozen detectors on a sample of images, to calibrate a loss or to measure how similar they are."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.features import ground_truth_features
from lshfm_pl.mimic.losses.lsh import LSH
from lshfm_pl.seeding import mix_seed

__all__ = [
    "AGREEMENT_DESCRIPTIONS",
    "ROWS_PER_IMAGE",
    "collect_features",
    "feature_agreement",
    "sampled_features",
]

Batches = Iterable[tuple[list[Tensor], list[dict[str, Tensor]]]]

ROWS_PER_IMAGE = 16
"""Features kept per image: a small number, so that many images fit into memory and none dominates."""

AGREEMENT_HASHES = 1024
AGREEMENT_DESCRIPTIONS = {
    "cosine": "mean cosine of student and teacher feature",
    "bit_agreement": f"share of {AGREEMENT_HASHES} random hashes with the same bit (1 − angle/π in expectation)",
    "centred_bit_agreement": "the same with b = −median of the teacher's projections: chance is one half",
    "student_norm": "mean length of the student's features",
    "teacher_norm": "mean length of the teacher's features",
    "mse": "mean squared difference of the elements",
    "num_features": "features compared: at ground-truth boxes and jittered ones, or at the locations near them",
}


def sampled_features(teacher: Any, batches: Batches) -> Tensor:
    """Features of the teacher as by `collect_features`, without changing the global random state."""
    # Creating a loader's iterator draws a random number, which must not shift the random numbers of training.
    with torch.random.fork_rng(devices=[]):
        (features_MD,) = collect_features([teacher], batches)
    return features_MD


def collect_features(detectors: Sequence[Any], batches: Batches) -> list[Tensor]:
    """`ground_truth_features` of all batches, with at most `ROWS_PER_IMAGE` rows per image.

    Args:
        detectors: detectors in evaluation mode, all on one device.
        batches: uint8 images [3, H, W], and targets with `boxes` and `labels`.

    Returns:
        For each detector the features [M, D], float32 on the CPU.
    """
    device = next(detectors[0].parameters()).device
    collected: list[list[Tensor]] = [[] for _ in detectors]
    for index, (images, targets) in enumerate(batches):
        features = ground_truth_features(
            detectors,
            [image.to(device).float().div_(255) for image in images],
            [{key: target[key].to(device) for key in ("boxes", "labels")} for target in targets],
            rows_per_image=ROWS_PER_IMAGE,
            generator=torch.Generator().manual_seed(mix_seed(0, index) % 2**63),
        )
        for rows, of_detector in zip(collected, features, strict=True):
            rows.append(of_detector.float().cpu())
    return [torch.cat(rows) for rows in collected]


def feature_agreement(student_MD: Tensor, teacher_MD: Tensor) -> dict[str, float]:
    """How similar paired features are, in direction and in length.

    Returns:
        Values for the keys of `AGREEMENT_DESCRIPTIONS`, which explains them; NaN if there are no features.

    Raises:
        LSHFMError: the features have different lengths.
    """
    if student_MD.shape != teacher_MD.shape:
        raise LSHFMError(
            f"agreement: expected features of equal length, found {list(student_MD.shape)} (student) and "
            f"{list(teacher_MD.shape)} (teacher)"
        )
    if len(student_MD) == 0:
        return {**dict.fromkeys(AGREEMENT_DESCRIPTIONS, math.nan), "num_features": 0}
    head = LSH(student_MD.shape[1], AGREEMENT_HASHES, std=1.0)

    def same_bits() -> float:
        student_bits, teacher_bits = head.project(student_MD) > 0, head.project(teacher_MD) > 0
        return (student_bits == teacher_bits).float().mean().item()

    bit_agreement = same_bits()
    head.centre_bias(teacher_MD, "median")
    return {
        "cosine": F.cosine_similarity(student_MD, teacher_MD).mean().item(),
        "bit_agreement": bit_agreement,
        "centred_bit_agreement": same_bits(),
        "student_norm": student_MD.norm(dim=1).mean().item(),
        "teacher_norm": teacher_MD.norm(dim=1).mean().item(),
        "mse": F.mse_loss(student_MD, teacher_MD).item(),
        "num_features": len(student_MD),
    }
