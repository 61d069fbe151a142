"""What only shows a run to people: its failure is one warning, and the run goes on."""

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

from lshfm_pl.errors import printable

__all__ = ["decoration"]

Arguments = ParamSpec("Arguments")

LONGEST_REASON = 200
"""Characters of the failure's text."""

log = logging.getLogger(__name__)


def decoration(what: str) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Make a function whose exceptions are logged as one warning line each instead of raised.

    Signals and a stop of the process still end it.

    Args:
        what: the subject of the line, such as "the pictures of detections".
    """

    def decorate(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
        @functools.wraps(function)
        def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except Exception as error:  # whatever it is, the run is worth more
                reason = printable(f"{type(error).__name__}: {error}")[:LONGEST_REASON]
                log.warning("left out: %s (%s)", what, reason)

        return guarded

    return decorate
