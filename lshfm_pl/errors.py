"""The one error type that a user of the commands is meant to see."""

__all__ = ["LSHFMError"]


class LSHFMError(Exception):
    """A failure told in one or two lines: what was expected, what was found, what to do.

    The commands print its text without a traceback and exit with status 1. Anything else that escapes
    is a defect of this project.
    """
