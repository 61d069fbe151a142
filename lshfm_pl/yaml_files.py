"""Reading YAML files from untrusted sources, with limits of size, depth and number of values."""

import codecs
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes

__all__ = ["DEEPEST", "read_yaml"]

YAML_BYTES = 2_000_000
DEEPEST = 60
"""Levels of lists and mappings."""
LONGEST_SCALAR = 20_000
"""Characters of one YAML value. Longer values can take very long to parse as a number."""
MOST_NODES = 200_000


class _Loader(yaml.CSafeLoader):
    """Refuses a key that occurs twice, of which PyYAML would use the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise ValueError(f"the key {repeated[0][:40]!r} occurs more than once. Keep one")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, root: Path | None = None) -> Any:
    """The content of a YAML file, restricted to JSON's types: keys and all other values become strings.

    Args:
        path: the file.
        root: the folder in which the file must be after all links are resolved; None for anywhere.

    Raises:
        LSHFMError: it cannot be read, is not YAML, or exceeds a limit.
    """
    data = read_bytes(path, limit=YAML_BYTES, root=root)
    is_utf16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = data.decode("utf-16" if is_utf16 else "utf-8", "replace")
    try:
        _check_events(path, text)
        return _plain(yaml.load(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise LSHFMError(f"{path.name} is not valid YAML ({' '.join(str(error).split())[:200]})") from error


def _check_events(path: Path, text: str) -> None:
    """Refuse content that is too large or too deep, by the parser's events, which need little memory."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            raise LSHFMError(f"{path.name}: expected no aliases, found *{event.anchor[:40]}")
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_SCALAR:
            raise LSHFMError(
                f"{path.name}: expected values of at most {LONGEST_SCALAR} characters, found a longer one"
            )
        if depth > DEEPEST or count > MOST_NODES:
            raise LSHFMError(
                f"{path.name}: expected at most {DEEPEST} levels and {MOST_NODES} values, found more"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
