"""Reading lists and label files: text in UTF-8 or UTF-16."""

from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultError, FaultLog, without_path
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes

__all__ = ["read_text"]

_UTF16_ZEROS = 0.3
"""Share of zero bytes from which text without a byte order mark is read as UTF-16."""


def read_text(path: Path, log: FaultLog, *, limit: int) -> str:
    """The text of a file.

    Args:
        path: the file.
        log: receives a warning if the text is not UTF-8.
        limit: most bytes that the file may have.

    Raises:
        FaultError: it can't be read, is larger than the limit, or is not text.
    """
    try:
        data = read_bytes(path, limit=limit)
        encoding = "utf-8-sig"
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            encoding = "utf-16"
        elif len(data) > 1 and data.count(0) > _UTF16_ZEROS * len(data):
            encoding = "utf-16-le" if data[1] == 0 else "utf-16-be"
        text = data.decode(encoding)
    except LSHFMError as error:
        raise FaultError(Fault("file-missing", path, without_path(error, path))) from error
    except UnicodeDecodeError as error:
        raise FaultError(Fault("file-missing", path, f"can't be read as UTF-8 text: {error}.")) from error
    if encoding != "utf-8-sig":
        log.add(Fault("encoding", path, "is in UTF-16, not UTF-8; it was read as such."))
    return text
