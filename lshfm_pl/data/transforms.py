"""Transforms of images and boxes. Resizing to a detector's scales is part of the detector's own transform."""

from torchvision.transforms import v2

from lshfm_pl.errors import LSHFMError

__all__ = ["eval_transform", "train_transform"]


def train_transform(flip_probability: float = 0.5) -> v2.Transform:
    """The paper's augmentation: a horizontal flip of image and boxes (x1, x2 → W − x2, W − x1).

    Raises:
        LSHFMError: the probability is outside 0..1.
    """
    if not isinstance(flip_probability, int | float) or not 0 <= flip_probability <= 1:
        raise LSHFMError(
            f"data.flip_probability must be a number between 0 and 1, found {flip_probability!r}."
        )
    return v2.RandomHorizontalFlip(flip_probability)


def eval_transform() -> v2.Transform:
    """The transform of evaluation, which changes nothing."""
    return v2.Identity()
