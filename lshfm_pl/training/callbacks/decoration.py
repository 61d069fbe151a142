"""A decorator for functions that only display a run: if they fail, a warning is logged, and the run continues."""

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

from lshfm_pl.errors import short_reason

__all__ = ["decoration"]

Arguments = ParamSpec("Arguments")

log = logging.getLogger(__name__)


def decoration(what: str) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Decorate a function so that its exceptions are logged as a warning of one line instead of raised.

    Signals and `SystemExit` still end the process.

    Args:
        what: what the function displays, for the warning, such as "the pictures of detections".
    """

    def decorate(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
        @functools.wraps(function)
        def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except Exception as error:  # no error of a display may end the run
                log.warning("left out: %s (%s)", what, short_reason(error))

        return guarded

    return decorate
