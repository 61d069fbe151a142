"""Reading of image files."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from lshfm_pl.errors import LSHFMError

__all__ = ["decode_image", "image_size"]

_DECODING_ERRORS = (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What torchvision and Pillow raise for files that are broken, too large or no images."""


def decode_image(path: Path) -> Tensor:
    """Read an image file as uint8 [3, H, W] RGB.

    Raises:
        LSHFMError: the file can't be read or is no image.
    """
    try:
        data = path.read_bytes()
        if data.startswith(b"\xff\xd8"):
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except _DECODING_ERRORS as error:
        raise LSHFMError(f"Can't read the image {path}: {error}. Replace the file.") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels from the file's header.

    Raises:
        LSHFMError: the file can't be read or is no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except _DECODING_ERRORS as error:
        raise LSHFMError(f"Can't read the size of the image {path}: {error}. Replace the file.") from error
