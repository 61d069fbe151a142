"""Parsing the XML files of VOC annotations, and finding the lines of their objects."""

import re
import xml.etree.ElementTree as ET
from functools import lru_cache
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from lshfm_pl.data.faults import Fault, FaultError, FaultLog, without_path
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes

__all__ = ["object_line", "parse_annotation"]

_LARGEST_XML = 8 * 2**20
"""Bytes. An object takes about 300."""
_FILES_WITH_LINES = 4
"""Number of files whose line numbers are cached, so that all faults of a file use one parse."""
_KNOWN_TO_EXPAT = ("utf-8", "utf-16", "iso-8859-1", "us-ascii", "ascii")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_BLANKS_FIRST = re.compile(rb"\A([ \t\r\n]+)(<\?xml[^>\n]*\?>)")
_BARE_AMPERSAND = re.compile(rb"&(?!#?\w+;)")
_XML_ENCODING = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)")


class _DoctypeError(ValueError):
    """The XML has a document type, which every use of entities needs."""


class _TreeBuilderWithoutDoctype(ET.TreeBuilder):
    """Refuses document types, in any encoding, before they are parsed: every XML entity attack needs one."""

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> NoReturn:
        raise _DoctypeError(f"<!DOCTYPE {name} …> is refused: annotations need no document type or entities")


def parse_annotation(path: Path, image_id: str, log: FaultLog) -> ET.Element:
    """Parse an annotation, and return its root element.

    Args:
        path: the XML file.
        image_id: id of the image, for faults.
        log: receives a warning if the encoding is not UTF-8.

    Raises:
        FaultError: the file can't be read or parsed, or is not a VOC annotation.
    """

    def fault(kind: str, text: str, line: int | None = None) -> FaultError:
        return FaultError(Fault(kind, path, text, line, image_id))

    try:
        if path.is_file() and (size := path.stat().st_size) > _LARGEST_XML:
            raise fault("annotation-huge", f"has {size:,} bytes, above the limit of {_LARGEST_XML:,}.")
        data = read_bytes(path, limit=_LARGEST_XML)
        root = ET.fromstring(_xml(data), ET.XMLParser(target=_TreeBuilderWithoutDoctype()))
    except LSHFMError as error:
        if isinstance(error, FaultError):
            raise
        raise fault("annotation-broken", without_path(error, path)) from error
    except _DoctypeError as error:
        raise fault("annotation-doctype", f"{error}.") from error
    except (ET.ParseError, ValueError, LookupError, OSError) as error:
        line = error.position[0] if isinstance(error, ET.ParseError) else None
        advice = _advice(data, error) if isinstance(error, ET.ParseError) else "Expected a VOC XML file."
        raise fault("annotation-broken", f"can't be read: {error}. {advice}", line) from error
    if read_so := _normalise(root):
        log.add(Fault("value-read", path, f"{read_so}."))
    if root.tag != "annotation":
        advice = " Export CVAT's tasks as VOC, COCO or YOLO." if root.tag == "annotations" else ""
        text = f"expected <annotation>, found <{root.tag}>: not a VOC annotation.{advice}"
        raise fault("annotation-broken", text)
    declared = _XML_ENCODING.match(data)
    encoding = declared[1].decode() if declared else "utf-16" if data[:2] in _UTF16_MARKS else "utf-8"
    if encoding.lower() not in ("utf-8", "ascii", "us-ascii"):
        log.add(Fault("encoding", path, f"is in {encoding}, not UTF-8; it was read as such."))
    return root


def _normalise(root: ET.Element) -> str:
    """Give all elements VOC's names and the corners elements of their own; returns what was unusual."""
    found = []
    for node in list(root.iter()):
        name = _plain(node.tag)
        if name != node.tag:
            found.append(f"<{node.tag}> is read as <{name}>")
            node.tag = name
        if name == "bndbox" and node.attrib:
            found.append("the attributes of <bndbox> are read as its corners")
            for key, value in node.attrib.items():
                ET.SubElement(node, _plain(key)).text = value
    return "" if not found else found[0]


def _plain(tag: str) -> str:
    """The name of an element without its namespace, in lower case."""
    return re.split("[}:]", tag)[-1].lower()


def _xml(data: bytes) -> bytes | str:
    """Make XML readable for expat: no blanks before the declaration, and unknown encodings decoded."""
    data = _BLANKS_FIRST.sub(rb"\2\1", data)  # moved behind it, so that line numbers stay
    declared = _XML_ENCODING.match(data)
    name = declared[1].decode() if declared else "utf-8"
    return data if name.lower() in _KNOWN_TO_EXPAT else data.decode(name)


def _advice(data: bytes, error: ET.ParseError) -> str:
    """What is probably wrong in XML that can't be parsed."""
    lines = data.splitlines()
    line = lines[error.position[0] - 1] if error.position[0] <= len(lines) else b""
    if _XML_ENCODING.match(data) is None and data[:2] not in _UTF16_MARKS:
        try:
            data.decode()
        except UnicodeDecodeError:
            return "Its text is not UTF-8: store it as UTF-8, or declare its encoding in the first line."
    if _BARE_AMPERSAND.search(line):
        return "Write & as &amp;."
    return "Expected a VOC XML file."


def object_line(path: Path, position: int, tag: str = "object") -> int | None:
    """The line number, from 1, of an object of an annotation, or of an element inside of it.

    The file is parsed again for this, only when there is something to report, so that reading stays fast.

    Args:
        path: an XML file that has been read.
        position: position of the object, from 1.
        tag: tag of the element. If the object has no such element, the line of the object is returned.
    """
    objects = _object_lines(path, path.stat().st_mtime_ns)
    found = objects[position - 1] if position <= len(objects) else {}
    return found.get(tag, found.get("object"))


@lru_cache(maxsize=_FILES_WITH_LINES)
def _object_lines(path: Path, modified: int) -> list[dict[str, int]]:
    """For each object, the line of the first element of each tag. `modified` invalidates the cache."""
    depth = 0
    objects: list[dict[str, int]] = []
    is_inside = False
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, is_inside
        name = _plain(tag)
        if depth == 1:
            is_inside = name == "object"
            if is_inside:
                objects.append({})
        if is_inside:
            objects[-1].setdefault(name, parser.CurrentLineNumber)
        depth += 1

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(_xml(read_bytes(path, limit=_LARGEST_XML)), True)
    return objects
