"""Lists of class names in a `data` config."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lshfm_pl.errors import LSHFMError

__all__ = ["check_class_names", "name_list"]
from typing import Any


def name_list(key: str, value: Any) -> tuple[str, ...]:
    """The names in the list `data.<key>`.

    Raises:
        LSHFMError: it is no list, or an item is not a text.
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise LSHFMError(f"data.{key} must be a list of names, such as [cat,dog], found {value!r}.")
    for name in value:
        if not isinstance(name, str) and (isinstance(name, bool) or not isinstance(name, int)):
            raise LSHFMError(
                f"data.{key}: expected text, found {name!r}, which is what an unquoted word was read as. Quote the "
                f'name within the list and the list for the shell: \'data.{key}=["null","1e3"]\'.'
            )
    return tuple(str(name) for name in value)


def check_class_names(value: Any) -> tuple[str, ...]:
    """The names in `data.class_names`, each once.

    Raises:
        LSHFMError: it is no list of different names.
    """
    names = name_list("class_names", value)
    if not names:
        raise LSHFMError(f"data.class_names must be a list of names, such as [cat,dog], found {value!r}.")
    repeated = {name for name, count in Counter(names).items() if count > 1}
    if repeated:
        raise LSHFMError(f"data.class_names has {', '.join(sorted(repeated))} more than once.")
    return names
