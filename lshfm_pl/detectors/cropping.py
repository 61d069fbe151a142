"""The part of a map that belongs to an image without its padding."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["crop_to_image"]


def crop_to_image(level: Tensor, padded: Sequence[int], size: Sequence[int]) -> Tensor:
    """Crop a map [..., h, w] of a batch padded to `padded` (height, width) to the part of an image of `size`."""
    height, width = (
        -(-of_map * of_image // of_batch)
        for of_map, of_image, of_batch in zip(level.shape[-2:], size, padded, strict=True)
    )
    return level[..., :height, :width]
