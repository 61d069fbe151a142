"""Which picture files are read, and as which pixels. Needs numpy and Pillow only, for detecting without torch."""

import struct

import numpy as np
from PIL import ExifTags, Image

__all__ = [
    "DECODING_ERRORS",
    "FORMATS",
    "LARGEST_FILE",
    "MAX_PIXELS",
    "MAX_RATIO",
    "QUARTERS",
    "ROTATED",
    "orientation_of",
    "refused_shape",
    "rgb_of",
    "turned",
]

MAX_PIXELS = 89_478_485
"""Pixels from which Pillow warns of decompression bombs: 256 MiB as RGB. The header of larger images is refused."""

MAX_RATIO = 64
"""Largest ratio of the sides. Detectors resize the longer side to some hundred pixels; the other must remain."""

LARGEST_FILE = 512 * 2**20
"""Bytes. An uncompressed image of `MAX_PIXELS` is smaller."""

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
}
"""Accepted formats, recognised by content, with their usual suffixes. Pillow's other decoders, some of which start
programs, are never used."""

DECODING_ERRORS = (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What torchvision and Pillow raise for broken or too large files."""

ROTATED = range(2, 9)
"""EXIF orientations that rotate or mirror; 1 is upright, 0 unknown, and others do not exist."""

QUARTERS = range(5, 9)
"""EXIF orientations that swap width and height."""

_EXIF_ERRORS = (SyntaxError, struct.error, TypeError, ValueError)
"""What Pillow raises for EXIF data that are cut, have no TIFF header, or are text or not hexadecimal."""

_FLIPPED_AXES = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
"""EXIF orientation → axes of pixels [H, W, 3] to flip, after those of a quarter turn are swapped."""


def refused_shape(width: int, height: int) -> tuple[str, str] | None:
    """Kind of fault and its description, for a picture that is too large or too narrow; None for others."""
    if width * height > MAX_PIXELS:
        return (
            "image-huge",
            f"has {width} x {height} pixels, above the limit of {MAX_PIXELS:,}. Make it smaller.",
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        return (
            "image-narrow",
            f"has {width} x {height} pixels: one side is more than {MAX_RATIO} times the other, which would vanish "
            "when the image is resized. Crop it.",
        )
    return None


def rgb_of(image: Image.Image) -> np.ndarray:
    """Uint8 [H, W, 3] of the stored pixels. Of 16 bits per channel the upper 8 are used.

    Pillow does so for colour, but cuts 16-bit grey at 255.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.uint16) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def orientation_of(image: Image.Image) -> int | None:
    """The EXIF orientation; None if there is none or it can't be read, since the pixels don't depend on it."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _EXIF_ERRORS:
        return None


def turned(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    """Stored pixels [H, W, 3], turned and mirrored as an EXIF orientation says; a view."""
    if orientation is None or orientation not in ROTATED:
        return pixels
    if orientation in QUARTERS:
        pixels = pixels.swapaxes(0, 1)
    return np.flip(pixels, _FLIPPED_AXES.get(orientation, ()))
