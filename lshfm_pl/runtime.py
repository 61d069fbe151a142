"""Detection with an exported ONNX file. Needs numpy, Pillow and onnxruntime, and never imports torch.

`boxes, scores, labels, names = Detector("student.onnx")("photo.jpg")`; docs/export.md has an example.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from lshfm_pl.errors import LSHFMError, short_reason
from lshfm_pl.files import read_bytes
from lshfm_pl.pictures import (
    DECODING_ERRORS,
    FORMATS,
    LARGEST_FILE,
    orientation_of,
    refused_shape,
    rgb_of,
    turned,
)

__all__ = [
    "FORMAT",
    "VERSION",
    "Detections",
    "Detector",
    "as_input",
    "description_of",
    "import_onnxruntime",
]

FORMAT = "lshfm_pl.onnx"
"""Key of the file's metadata under which its description is, as JSON."""
VERSION = 1
_KEYS = {
    "version": int,
    "model": str,
    "class_names": list,
    "nms": bool,
    "size": list | None,
    "parameters": int,
}
"""What a description must have, with the types."""
_GREY, _COLOURS = 2, 3


class Detections(NamedTuple):
    """The objects in one picture, best first."""

    #: float32 [N, 4]: x1, y1, x2, y2 in pixels of the picture.
    boxes: np.ndarray
    #: float32 [N], 0..1.
    scores: np.ndarray
    #: int64 [N], from 1.
    labels: np.ndarray
    #: Name of the class of each object.
    names: list[str]


class Detector:
    """An exported detector.

    Args:
        path: a file of `python -m lshfm_pl.export format=onnx`.
        threads: number of CPU threads; None for onnxruntime's default.
        providers: onnxruntime's execution providers, best first.

    Raises:
        LSHFMError: onnxruntime is missing, or the file is missing, damaged, or not one of this project.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        runtime = import_onnxruntime()
        if not Path(path).is_file():
            raise LSHFMError(f"{path}: expected an exported ONNX file, found {_kind(path)}")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime has no base class of its errors
            raise LSHFMError(
                f"{path}: not a whole ONNX file that onnxruntime can run ({short_reason(error)}). Export it again"
            ) from error
        self.path = str(path)
        self.description = description_of(path, self.session.get_modelmeta().custom_metadata_map)
        self.class_names: tuple[str, ...] = tuple(self.description["class_names"])

    def __call__(self, image: Any, *, score_threshold: float = 0.0) -> Detections:
        """Detect objects in a picture.

        Args:
            image: a path of a JPEG, PNG, BMP or WebP file, which is turned as its EXIF data say; or a Pillow
                image, or a uint8 array [H, W, 3] (RGB) or [H, W] (grey), whose pixels are taken as they are.
            score_threshold: lowest score of a returned object. The file has a threshold of its own too.

        Raises:
            LSHFMError: the picture cannot be read, or the file was exported without NMS.
        """
        boxes, scores, labels = self.detect(_pixels(image))
        kept = scores >= score_threshold
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        return Detections(boxes, scores, labels, [self.class_names[label - 1] for label in labels])

    def detect(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`boxes` [N, 4], `scores` [N] and `labels` [N] in an array of pixels [H, W, 3], uint8 or float32 in 0..1.

        Raises:
            LSHFMError: the file was exported without NMS, or finds labels that have no names.
        """
        if not self.description["nms"]:
            raise LSHFMError(
                f"{self.path}: exported with nms=false, so it returns raw boxes; read them by raw(), or export "
                "it with nms=true"
            )
        boxes, scores, labels = self.raw(pixels)
        unnamed = labels[(labels < 1) | (labels > len(self.class_names))]
        if len(unnamed):
            raise LSHFMError(
                f"{self.path}: finds label {unnamed[0]}, but names {len(self.class_names)} classes from 1 on. "
                "Export it again"
            )
        if (size := self.description["size"]) is not None:
            height, width = size
            boxes = boxes * np.array([pixels.shape[1] / width, pixels.shape[0] / height] * 2, boxes.dtype)
        return boxes, scores, labels

    def raw(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The outputs of the file for pixels [H, W, 3], whose boxes are in pixels of the file's input.

        A file of fixed size gets the picture resized.

        Raises:
            LSHFMError: onnxruntime fails.
        """
        try:
            return self.session.run(None, {"images": as_input(pixels, self.description["size"])})
        except Exception as error:  # onnxruntime has no base class of its errors
            raise LSHFMError(f"{self.path}: onnxruntime failed ({short_reason(error)})") from error


def as_input(pixels: np.ndarray, size: Sequence[int] | None) -> np.ndarray:
    """The input of a file, float32 [1, 3, H, W] in 0..1.

    Args:
        pixels: [h, w, 3], uint8 or float32 in 0..1.
        size: height and width of a file of fixed size, to which the picture is resized; None for any size.
    """
    if size is not None and pixels.shape[:2] != tuple(size):
        pixels = _resized(pixels, size)
    if pixels.dtype == np.uint8:
        pixels = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def import_onnxruntime() -> Any:
    """The module onnxruntime.

    Raises:
        LSHFMError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise LSHFMError(
            "onnxruntime: expected it to be installed, found nothing: pip install onnxruntime (or lshfm_pl[export])"
        ) from error
    return onnxruntime


def description_of(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The description that `export` has written into the metadata of a file.

    Raises:
        LSHFMError: there is none, or it is damaged or of another version.
    """
    if FORMAT not in metadata:
        raise LSHFMError(
            f"{path}: an ONNX file of another program. Expected one that python -m lshfm_pl.export has written"
        )
    try:
        found = json.loads(metadata[FORMAT])
        if found["version"] != VERSION:
            raise LSHFMError(
                f"{path}: version {found['version']!r} of the description, expected {VERSION}; use the version of "
                "lshfm_pl that wrote it, or export the detector again"
            )
        wrong = next((key for key, kind in _KEYS.items() if not isinstance(found[key], kind)), None)
    except (ValueError, TypeError, KeyError) as error:
        raise LSHFMError(
            f"{path}: its description is damaged ({short_reason(error)}). Export it again"
        ) from error
    if wrong is not None or not all(isinstance(name, str) for name in found["class_names"]):
        raise LSHFMError(f"{path}: its description is damaged at {wrong or 'class_names'}. Export it again")
    return found


def _kind(path: str | Path) -> str:
    return "a folder" if Path(path).is_dir() else "no file"


def _pixels(image: Any) -> np.ndarray:
    """uint8 [H, W, 3] of anything that `Detector` takes; the same pixels as `predict` reads from a file."""
    if isinstance(image, str | Path):
        return _read(Path(image))
    pixels = rgb_of(image) if isinstance(image, Image.Image) else np.asarray(image)
    if pixels.ndim == _GREY:
        pixels = np.repeat(pixels[:, :, None], _COLOURS, axis=2)
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != _COLOURS
        or pixels.shape[2] != _COLOURS
        or 0 in pixels.shape
    ):
        raise LSHFMError(
            f"image: expected a path, a Pillow image or a uint8 array [H, W, 3], found {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    return pixels


def _read(path: Path) -> np.ndarray:
    """The pixels of a picture file, upright."""
    data = read_bytes(path, limit=LARGEST_FILE)
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as opened:
            if (refused := refused_shape(*opened.size)) is not None:
                raise LSHFMError(f"{path}: {refused[1]}")
            return np.ascontiguousarray(turned(rgb_of(opened), orientation_of(opened)))
    except UnidentifiedImageError as error:
        raise LSHFMError(
            f"{path}: expected a whole {', '.join(FORMATS)} file, found another one. Pictures of other formats "
            "can be given as arrays or Pillow images"
        ) from error
    except DECODING_ERRORS as error:
        raise LSHFMError(f"{path}: cannot be read as a picture ({short_reason(error)})") from error


def _resized(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Bilinearly resized pixels [h, w, 3] of the same dtype, for `size` (height, width)."""
    height, width = size
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    channels = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR))
        for channel in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(channels, axis=2)
