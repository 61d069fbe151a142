"""Checking whole numbers in a `data` config."""

from typing import Any

from lshfm_pl.errors import LSHFMError

__all__ = ["require_at_least"]


def require_at_least(lowest: int, **values: Any) -> None:
    """Refuse values of `data.<name>` that are not whole numbers of at least `lowest`.

    Raises:
        LSHFMError: there is one.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise LSHFMError(f"data.{name} must be a whole number of at least {lowest}, found {value!r}.")
