"""The only module that reads files of weights: without running code from them, and with bounded memory."""

import hashlib
import io
import pickle
import re
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lshfm_pl.detectors.file_formats import describe_foreign, is_safetensors
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import open_regular

__all__ = ["UnsafeFileError", "download_torch_file", "read_torch_file"]

_REFUSED_TYPE = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
_HASH_IN_NAME = re.compile(r"-([a-f0-9]{8,})\.")
_LEGACY_START = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
_LARGEST_FILE = 32 * 2**30
"""Bytes. The largest detector here takes less than 1 GB with everything that a run stores."""
_LARGEST_PICKLE = 64 * 2**20
"""Bytes. A pickle contains names and shapes, and the tensors' data are separate: less than 1 MB for 300 MB."""
_LARGEST_STRETCH = 2**30
"""Bytes that tensors may have through repeated elements, which are rarely saved."""
_DEEPEST = 100
"""Nesting depth of lists and dicts."""
_MOST_VALUES = 1_000_000
"""Number of items in all lists and dicts; the state of a run has some thousands."""
_LONGEST_REASON = 200
"""Characters of another library's message that are kept."""

_BYTES_OF_ITEM = {
    **dict.fromkeys(("ComplexDoubleStorage",), 16),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
}
"""Bytes per element of torch's storage types; the others count bytes."""


class UnsafeFileError(LSHFMError):
    """The file needs more than tensors and plain Python values to be read, or more memory than its size."""


def read_torch_file(path: str | Path, *, allowed_types: Sequence[type] = ()) -> Any:
    """Read a file of ``torch.save`` (with ``weights_only=True``) or of safetensors to the CPU.

    Sizes in the file are checked before memory is allocated: no tensor may be larger than its bytes in the file,
    and entries must not be compressed or overlap.

    Args:
        path: the file.
        allowed_types: types that may be rebuilt in addition to tensors and plain Python values.

    Returns:
        The saved object; for safetensors a dict of names to tensors.

    Raises:
        LSHFMError: there is no such file, it is not a regular file, has another format or is damaged.
        UnsafeFileError: the file asks for another type, of which nothing was run, or for absurd sizes.
    """
    path = Path(path)
    if not path.exists() or path.is_dir():
        raise LSHFMError(
            f"{path}: expected a file of weights, found {'a folder' if path.is_dir() else 'nothing'}."
        )
    with open_regular(path, limit=_LARGEST_FILE) as file:
        size = path.stat().st_size
        if is_safetensors(file.read(16)):
            return _read_safetensors(path)
        try:
            _refuse_absurd_sizes(file, size)
            with torch.serialization.safe_globals(list(allowed_types)):
                content = torch.load(path, map_location="cpu", weights_only=True)
            _refuse_bombs(content)
            return content
        except OSError as error:
            raise LSHFMError(f"{path}: cannot be read ({error}).") from error
        except Exception as error:  # a broken file can make the unpickler raise any exception
            raise _told(path, file, size, error) from error


def _told(path: Path, file: BinaryIO, size: int, error: Exception) -> LSHFMError:
    """The error for a file that was not loaded."""
    refused = _REFUSED_TYPE.search(str(error))
    if refused:
        return UnsafeFileError(
            f"{path}: holds {refused[1]}, expected tensors and plain values only. Rebuilding other types can run "
            "code, so the file was not loaded. Where you trust it, save its weights alone: "
            "torch.save(model.state_dict(), <file>)."
        )
    foreign = describe_foreign(file)
    if foreign is not None:
        return LSHFMError(f"{path} {foreign} Expected a file of torch.save or of safetensors.")
    if isinstance(error, _AbsurdSizeError):
        return UnsafeFileError(f"{path}: {error}; no file of weights does that. It was not loaded.")
    return LSHFMError(
        f"{path}: not a whole file of {'safetensors' if path.suffix == '.safetensors' else 'torch.save'} "
        f"({size} bytes). "
        "Copy or download it again, or give another path."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise LSHFMError(
            f"{path}: not a whole safetensors file ({reason}). Copy or download it again, or give another path."
        ) from error


def download_torch_file(url: str, *, check_hash: bool, key: str, advice: str) -> Any:
    """Read a file of ``torch.save`` from the web, or from torch's cache, like ``read_torch_file``.

    Args:
        url: address of the file.
        check_hash: whether to compare the file's SHA-256 with the part of it in the file name, also for a cached
            file. Without it, the name in the cache begins with a hash of the URL.
        key: the setting that names the file, for messages.
        advice: what to do if the file is not available.

    Raises:
        LSHFMError: it is not available, or is another file.
    """
    name = Path(urllib.parse.urlparse(url).path).name
    if not check_hash:
        # Nothing else distinguishes files with the same name from two addresses.
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    expected = _HASH_IN_NAME.search(path.name) if check_hash else None
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), expected[1] if expected else None)
    except Exception as error:  # no network, no such page, no space, wrong hash
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise LSHFMError(f"{key}: {url} could not be had ({reason}). {advice}") from error
    if expected and not _sha256(path).startswith(expected[1]):
        raise LSHFMError(
            f"{key}: {path} is not the file of {url}: its SHA-256 does not begin with {expected[1]}. Delete it."
        )
    return read_torch_file(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _AbsurdSizeError(Exception):
    """The file would need more memory than it has bytes; the text says why."""


def _refuse_absurd_sizes(file: BinaryIO, size: int) -> None:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            _refuse_absurd_zip(archive, size)
    else:
        file.seek(0)
        _refuse_absurd_legacy(file, size)


def _refuse_absurd_zip(archive: zipfile.ZipFile, size: int) -> None:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise _AbsurdSizeError("holds compressed entries")
    if (total := sum(entry.file_size for entry in archive.infolist())) > size:
        raise _AbsurdSizeError(f"has {size} bytes and says that {total} are in it")
    (name,) = (name for name in entries if name.endswith("/data.pkl"))
    if entries[name].file_size > _LARGEST_PICKLE:
        raise _AbsurdSizeError(f"its data.pkl has {entries[name].file_size} bytes, above {_LARGEST_PICKLE}")
    sizes = _StorageSizes(io.BytesIO(archive.read(name)))
    sizes.load()
    for key, declared in sizes.of_key.items():
        held = entries[f"{name.removesuffix('data.pkl')}data/{key}"].file_size
        if declared > held:
            raise _AbsurdSizeError(f"a tensor says that it has {declared} bytes, {held} are there")


def _refuse_absurd_legacy(file: IO[bytes], size: int) -> None:
    """Check the format before zip files: three pickles about the format, one of the content, then the data."""
    if file.read(len(_LEGACY_START)) != _LEGACY_START:
        raise ValueError("neither a zip file nor of the older format")
    for _ in ("protocol version", "system"):
        _StorageSizes(file).load()
    sizes = _StorageSizes(file)
    sizes.load()
    if (declared := sum(sizes.of_key.values())) > size:
        raise _AbsurdSizeError(f"its tensors say that they have {declared} bytes, the whole file has {size}")


class _Inert:
    """Replaces every object that a pickle names: accepts arguments, items and state, and does nothing."""

    allocates = False

    def __new__(cls, *args: Any) -> Self:
        if cls.allocates and args and isinstance(args[0], int):
            raise _AbsurdSizeError(f"asks for an empty {cls.__name__} of {args[0]}")
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __call__(self, *args: Any) -> Self:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


# In Python, like torch's own unpickler: the one in C allocates as many memo entries as a number in the pickle says.
class _StorageSizes(pickle._Unpickler):
    """Reads a pickle and records the bytes that its tensors' storages claim. Nothing named in it is imported."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.of_key: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> type[_Inert]:
        return type(name, (_Inert,), {"allocates": name.endswith(("Tensor", "Storage", "bytearray"))})

    def persistent_load(self, saved_id: Any) -> _Inert:
        _, storage_type, key, _, numel, *_ = saved_id
        declared = numel * _BYTES_OF_ITEM.get(storage_type.__name__, 1)
        self.of_key[key] = max(declared, self.of_key.get(key, 0))
        return _Inert()


def _refuse_bombs(content: Any) -> None:
    """Refuse content that is small in the file and huge when copied.

    A tensor may repeat its elements (stride 0). A list may contain another list many times, which contains another
    one many times, and so on; or it may contain itself.
    """
    stretched = 0
    for tensor in _tensors(content):
        if tensor.is_nested:
            raise _AbsurdSizeError("holds a nested tensor")
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise _AbsurdSizeError(f"holds a tensor {tuple(tensor.shape)} without elements of its own")
        stretched += max(0, tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes())
    if stretched > _LARGEST_STRETCH:
        raise _AbsurdSizeError(f"its tensors repeat their elements, {stretched} bytes of them")


def _tensors(content: Any) -> Iterator[Tensor]:
    rest, count = [(content, 0)], 0
    while rest:
        value, depth = rest.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_VALUES:
            raise _AbsurdSizeError("its lists and dicts hold each other without end")
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple):
            items = value.values() if isinstance(value, Mapping) else value
            rest.extend((item, depth + 1) for item in items)
