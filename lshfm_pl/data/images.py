"""Reading image files."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from lshfm_pl.data.faults import Fault, FaultError, without_path
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import open_regular, read_bytes
from lshfm_pl.pictures import (
    DECODING_ERRORS,
    FORMATS,
    LARGEST_FILE,
    QUARTERS,
    ROTATED,
    orientation_of,
    refused_shape,
    rgb_of,
    turned,
)

__all__ = [
    "FORMATS",
    "LARGEST_FILE",
    "SUFFIXES",
    "Orientation",
    "decode_image",
    "exif_orientation",
    "has_end_mark",
    "image_size",
    "inspect_image",
    "read_image_file",
    "rotate_by_exif",
]

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Suffixes of the accepted formats, in lower case. A file may have them in any case."""

_TAIL = 1024
"""Bytes at the end of a file that are searched for the end-of-file mark."""

_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif")
"""Marks of EXIF data in JPEG, PNG, WebP, and in files of older PNG writers. Files without a mark are not parsed."""

_JPEG_START = b"\xff\xd8"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frames, whose headers contain the size (ITU-T T.81, table B.1)."""
_PNG_BIT_DEPTH = 24
"""Offset of the bit depth in a PNG file."""
_OPAQUE = 255
_LONGEST_REASON = 100
"""Characters of a decoder's message that are kept."""


def decode_image(path: Path, *, upright: bool = False) -> Tensor:
    """Read an image file as uint8 [3, H, W] RGB.

    Args:
        path: the file.
        upright: whether to apply the rotation of EXIF; by default the pixels are returned as stored.

    Raises:
        FaultError: the file is missing, broken, too large or of another format.
    """
    data = read_image_file(path)
    pixels = _decode(path, data)
    return _rotated(pixels, path, data) if upright else pixels


def rotate_by_exif(pixels: Tensor, path: Path) -> Tensor:
    """Apply the rotation of EXIF to the stored pixels that `decode_image` has read."""
    return _rotated(pixels, path, read_image_file(path))


def _rotated(pixels: Tensor, path: Path, data: bytes) -> Tensor:
    if not any(mark in data for mark in _EXIF_MARKS):
        return pixels
    try:
        with _open(path, io.BytesIO(data)) as image:
            orientation = orientation_of(image)
    except DECODING_ERRORS:
        return pixels
    if orientation is None or orientation not in ROTATED:
        return pixels
    return _tensor_of(turned(pixels.permute(1, 2, 0).numpy(), orientation))


def _tensor_of(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def has_end_mark(path: Path) -> bool:
    """Whether a JPEG or PNG file has its end mark. Files of other formats count as whole."""
    try:
        with open_regular(path, limit=LARGEST_FILE) as file:
            start = file.read(8)
            file.seek(max(path.stat().st_size - _TAIL, 0))
            end = file.read(_TAIL)
    except (LSHFMError, OSError):
        return False
    if start.startswith(_JPEG_START):
        return b"\xff\xd9" in end
    return b"IEND" in end or not start.startswith(b"\x89PNG")


def _decode(path: Path, data: bytes) -> Tensor:
    try:
        if data.startswith(_JPEG_START):
            _refuse_shape(path, *_jpeg_size(data))
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        with _open(path, io.BytesIO(data)) as image:
            return _tensor_of(rgb_of(image))
    except DECODING_ERRORS as error:
        raise FaultError(_decoding_fault(path, data, error)) from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels from the file's header.

    Raises:
        FaultError: the file is missing, broken, too large or of another format.
    """
    try:
        with open_regular(path, limit=LARGEST_FILE) as file, _open(path, file) as image:
            return image.size
    except LSHFMError as error:
        if isinstance(error, FaultError):
            raise
        raise FaultError(Fault("image-missing", path, without_path(error, path))) from error
    except DECODING_ERRORS as error:
        raise FaultError(_decoding_fault(path, read_image_file(path), error)) from error


class Orientation(NamedTuple):
    """Size of the stored pixels, and whether EXIF rotates them."""

    size: tuple[int, int]
    is_turned: bool
    """By a quarter turn, which swaps width and height."""


def exif_orientation(path: Path) -> Orientation | None:
    """The orientation in the file's EXIF data; None if it changes nothing or can't be read."""
    try:
        with open_regular(path, limit=LARGEST_FILE) as file, _open(path, file) as image:
            orientation = orientation_of(image)
            has_effect = orientation is not None and orientation in ROTATED
            return Orientation(image.size, orientation in QUARTERS) if has_effect else None
    except (LSHFMError, *DECODING_ERRORS):
        return None


def inspect_image(path: Path) -> list[Fault]:
    """Warnings about what is unusual in an image that `decode_image` can read.

    Raises:
        FaultError: as `image_size`.
    """
    data = read_image_file(path)
    try:
        with _open(path, io.BytesIO(data)) as image:
            return [Fault(kind, path, text) for kind, text in _warnings(image, path.suffix, data)]
    except DECODING_ERRORS as error:
        raise FaultError(_decoding_fault(path, data, error)) from error


def _warnings(image: Image.Image, suffix: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Kind and text of each warning."""
    if image.mode == "CMYK":
        yield "image-cmyk", "is CMYK and is converted to RGB."
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
        yield "image-greyscale", "is greyscale and is converted to RGB."
    if image.format == "PNG" and data[_PNG_BIT_DEPTH] == 16:
        yield "image-16-bit", "has 16 bits per channel, of which the upper 8 are used."
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        yield "image-animated", f"has {frames} pictures, of which the first is read."
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < _OPAQUE:
        yield (
            "image-transparent",
            "has transparent pixels, which are read with the colours that are stored there.",
        )
    orientation = orientation_of(image)
    if orientation in ROTATED:
        yield (
            "image-exif-rotated",
            f"EXIF orientation {orientation} is applied if the annotated size is that of the rotated image; "
            "otherwise the boxes must refer to the stored pixels.",
        )
    # Pillow's name for a JPEG file with several pictures, such as a camera's preview. The first one is read.
    image_format = "JPEG" if image.format == "MPO" else str(image.format)
    suffixes = FORMATS[image_format]
    if suffix.lower() not in suffixes:
        yield "image-suffix", f"contains {image_format}, whose suffix is {suffixes[0]}."


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        FaultError: it is missing, empty, too large or not a regular file.
    """
    try:
        data = read_bytes(path, limit=LARGEST_FILE)
    except LSHFMError as error:
        raise FaultError(Fault("image-missing", path, without_path(error, path))) from error
    if not data:
        raise FaultError(Fault("image-empty", path, "has 0 bytes. Replace the file."))
    return data


def _open(path: Path, source: BinaryIO) -> Image.Image:
    """Open an image with Pillow without decoding its pixels."""
    image = Image.open(source, formats=list(FORMATS))
    _refuse_shape(path, *image.size)
    return image


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header of the first frame; ValueError if there is none."""
    position = len(_JPEG_START)
    while position + 9 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF:
            position += 1  # libjpeg also skips bytes between segments
        elif marker in _JPEG_FRAMES:
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            return int.from_bytes(width), int.from_bytes(height)
        elif marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2  # TEM and restart markers have no segment
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4])
    raise ValueError("the file ends before the image's size")


def _refuse_shape(path: Path, width: int, height: int) -> None:
    if (refused := refused_shape(width, height)) is not None:
        kind, text = refused
        raise FaultError(Fault(kind, path, text))


def _decoding_fault(path: Path, data: bytes, error: Exception) -> Fault:
    starts = {"JPEG": _JPEG_START, "PNG": b"\x89PNG\r\n\x1a\n", "BMP": b"BM", "WEBP": b"RIFF"}
    if not data.startswith(tuple(starts.values())):
        text = f"is not a {', '.join(FORMATS)} image, it begins with {data[:8]!r}. Replace the file."
        return Fault("image-format", path, text)
    if isinstance(error, Image.DecompressionBombError):
        return Fault("image-huge", path, f"is too large: {error} Make it smaller.")
    if data.startswith(_JPEG_START):
        is_cut = b"\xff\xd9" not in data[-1024:]
    elif data.startswith(starts["PNG"]):
        is_cut = b"IEND" not in data[-1024:]
    else:
        is_cut = "truncated" in str(error)
    if is_cut:
        return Fault("image-truncated", path, "is truncated: its end is missing. Replace the file.")
    # torchvision's message begins with its source line.
    reason = " ".join(str(error).split()).rpartition(", ")[2][:_LONGEST_REASON]
    return Fault("image-broken", path, f"can't be decoded ({reason}). Replace the file.")
