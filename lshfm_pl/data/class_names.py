"""Validating lists of class names in a `data` config."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lshfm_pl.errors import LSHFMError

__all__ = ["check_class_names", "name_list"]
from typing import Any


def name_list(key: str, value: Any) -> tuple[str, ...]:
    """Check that `data.<key>` is a list of names, and return it.

    Raises:
        LSHFMError: it is not a list, or an item is not text.
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise LSHFMError(f"data.{key} must be a list of names, such as [cat,dog], found {value!r}.")
    for name in value:
        if not isinstance(name, str) and (isinstance(name, bool) or not isinstance(name, int)):
            raise LSHFMError(
                f"data.{key}: expected text, found {name!r}: YAML reads unquoted words like this as another type. "
                f'Quote the name in the list, and the list for the shell: \'data.{key}=["null","1e3"]\'.'
            )
    return tuple(str(name) for name in value)


def check_class_names(value: Any) -> tuple[str, ...]:
    """Check that `data.class_names` is a list of different names, and return it.

    Raises:
        LSHFMError: it is not.
    """
    names = name_list("class_names", value)
    if not names:
        raise LSHFMError(f"data.class_names must be a list of names, such as [cat,dog], found {value!r}.")
    repeated = {name for name, count in Counter(names).items() if count > 1}
    if repeated:
        raise LSHFMError(f"data.class_names has {', '.join(sorted(repeated))} more than once.")
    return names
