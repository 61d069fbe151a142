"""The input format of the metrics (per-image dicts of tensors), and its validation."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lshfm_pl.errors import LSHFMError

__all__ = [
    "OPTIONAL_TARGET_KEYS",
    "PREDICTION_KEYS",
    "TARGET_KEYS",
    "check_images",
    "copy_to_cpu",
    "drop_background",
]

PREDICTION_KEYS = ("boxes", "scores", "labels")
TARGET_KEYS = ("boxes", "labels", "difficult")
OPTIONAL_TARGET_KEYS = ("crowd", "area")

COMPUTE_DTYPES = {
    "boxes": torch.float64,
    "scores": torch.float64,
    "labels": torch.int64,
    "difficult": torch.bool,
    "crowd": torch.bool,
    "area": torch.float64,
}
"""Float64 holds every coordinate exactly, so that an IoU of exactly 0.5 is not rounded above 0.5."""


def check_images(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    *,
    further_target_keys: Sequence[str] = (),
) -> None:
    """Check that there is one prediction per target and that the tensors of each image fit together.

    Args:
        predictions: per image `boxes` [N, 4], `scores` [N], `labels` [N].
        targets: per image `boxes` [M, 4], `labels` [M], `difficult` [M]; optional `crowd` [M] and `area` [M].
        further_target_keys: other keys that every target must have; their values are not checked.

    Raises:
        LSHFMError: lengths differ, a key is missing, a value is not a tensor or has another shape.
    """
    if len(predictions) != len(targets):
        raise LSHFMError(
            f"predictions and targets: expected one entry per image in both, "
            f"found {len(predictions)} predictions and {len(targets)} targets"
        )
    for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        _check_image(f"predictions[{index}]", prediction, PREDICTION_KEYS)
        optional = [key for key in OPTIONAL_TARGET_KEYS if key in target]
        _check_image(f"targets[{index}]", target, (*TARGET_KEYS, *optional))
        _check_keys(f"targets[{index}]", target, further_target_keys)


def copy_to_cpu(image: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Tensor]:
    """Copy the tensors of a checked image to the CPU in the dtypes to compute with; `boxes` becomes [N, 4].

    Each copy has its own storage: a view would be pickled together with the whole storage behind it.
    """
    copies = {
        key: image[key].detach().as_subclass(Tensor).to("cpu", COMPUTE_DTYPES[key], copy=True) for key in keys
    }
    copies["boxes"] = copies["boxes"].reshape(-1, 4)
    return copies


def drop_background(prediction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the detections with label 0 (background), which some detectors score like a class.

    They are dropped after the detector has applied its limits on the number of boxes, in which they count. So what
    is drawn is what is evaluated.
    """
    keep = prediction["labels"] != 0
    return {key: value[keep] for key, value in prediction.items()}


def _check_keys(where: str, image: Mapping[str, Tensor], keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in image]
    if missing:
        wanted, found = ", ".join(map(repr, missing)), ", ".join(sorted(image)) or "none"
        raise LSHFMError(f"{where}: expected the key {wanted}, found {found}")


def _check_image(where: str, image: Mapping[str, Tensor], keys: Sequence[str]) -> None:
    _check_keys(where, image, keys)
    for key in keys:
        if not isinstance(image[key], Tensor):
            raise LSHFMError(f"{where}[{key!r}]: expected a tensor, found {type(image[key]).__name__}")
    count = len(image["labels"])
    for key in keys:
        expected = (count, 4) if key == "boxes" else (count,)
        found = tuple(image[key].shape)
        is_empty = count == 0 and image[key].numel() == 0
        if found != expected and not is_empty:
            raise LSHFMError(
                f"{where}[{key!r}]: expected shape {expected} (there are {count} labels), found {found}"
            )
    if torch.is_floating_point(image["labels"]):
        raise LSHFMError(f"{where}['labels']: expected integers, found {image['labels'].dtype}")
