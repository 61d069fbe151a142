"""Recognising the kind of a file that was given instead of a file of weights, by its first bytes."""

import zipfile
from collections.abc import Collection
from typing import BinaryIO

__all__ = ["describe_foreign", "is_safetensors"]

_HEAD = 512
"""Number of bytes that identify every format below."""
_TAR_MARK = slice(257, 262)
_LENGTH_OF_HEADER = 8

_CONVERT = (
    "Load it with the tool that wrote it and save the tensors by torch.save or safetensors.torch.save_file."
)
_UNPACK = "Unpack it and give the file inside."
_AGAIN = "Download the file itself again."

_BY_START = {
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as Keras writes", _CONVERT),
    b"\x93NUMPY": ("a NumPy array (.npy)", _CONVERT),
    b"GGUF": ("a GGUF file", _CONVERT),
    b"\x1f\x8b": ("compressed by gzip", _UNPACK),
    b"BZh": ("compressed by bzip2", _UNPACK),
    b"\xfd7zXZ\x00": ("compressed by xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "Fetch it by git lfs pull."),
    b"\xff\xd8\xff": ("a JPEG picture", "Give the path of the weights."),
    b"\x89PNG": ("a PNG picture", "Give the path of the weights."),
    b"%PDF": ("a PDF document", "Give the path of the weights."),
    b"\x7fELF": ("a program or library", "Give the path of the weights."),
}
_TEXTS = {
    b"<": ("a web page or XML, not a file of weights", _AGAIN),
    b"{": ("JSON text, which holds no tensors", "Give the file of weights that belongs to it."),
    b"[": ("JSON text, which holds no tensors", "Give the file of weights that belongs to it."),
}


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with `head` is in safetensors format, complete or damaged: a length, then JSON."""
    length = head[:_LENGTH_OF_HEADER]
    is_text = length.isascii() and 0 not in length  # as a length this would exceed any file
    return head[_LENGTH_OF_HEADER : _LENGTH_OF_HEADER + 1] == b"{" and not is_text


def describe_foreign(file: BinaryIO) -> str | None:
    """What a file that is neither from torch.save nor safetensors is, and what to do; None if it is unknown.

    Args:
        file: open for reading; its position changes.
    """
    file.seek(0)
    head = file.read(_HEAD)
    if not head:
        return f"is empty. {_AGAIN}"
    try:
        with zipfile.ZipFile(file) as archive:
            kind = _kind_of_zip(archive.namelist())
    except Exception:  # not a zip file, or one with a broken directory, which can raise any exception
        kind = _kind_of_bytes(head)
    return None if kind is None else f"is {kind[0]}. {kind[1]}"


def _kind_of_zip(names: Collection[str]) -> tuple[str, str] | None:
    if any(name.endswith(("model.weights.h5", "keras_metadata.pb")) for name in names):
        return "a Keras model", _CONVERT
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)", _CONVERT
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return (
            "a TorchScript program, which is not read because it holds code",
            "Where you trust it, save torch.jit.load(<file>).state_dict() by torch.save.",
        )
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return None
    return "a zip archive of something else", _UNPACK


def _kind_of_bytes(head: bytes) -> tuple[str, str] | None:
    for start, kind in _BY_START.items():
        if head.startswith(start):
            return kind
    if head[_TAR_MARK] == b"ustar":
        return "a tar archive", _UNPACK
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model", _CONVERT
    if _is_onnx(head):
        return (
            "an ONNX model",
            "Give the checkpoint from which it was exported.",
        )
    if b"<net " in head:
        return "a model of OpenVINO", "Give the checkpoint from which it was exported."
    if head.startswith(b"\x80") and b"torch" not in head:
        return (
            "a Python pickle without tensors of torch, which is not read because it can run code",
            "Where you trust it, load it with the tool that wrote it and save the tensors by torch.save.",
        )
    return _TEXTS.get(head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1])


def _is_onnx(head: bytes) -> bool:
    """ModelProto: field 1 is the version, a small number; next the producer, an operator set or a graph."""
    return len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 32 and head[2] in (0x12, 0x1A, 0x3A, 0x42)
