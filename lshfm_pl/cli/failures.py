"""Error messages of one or two lines, for every kind of exception."""

from __future__ import annotations

import errno
import re
import sys
import threading

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from lshfm_pl.errors import LSHFMError, in_two_lines

__all__ = ["error_message", "print_thread_failure"]

LONGEST_REASON = 300
"""Characters of a library's message that are kept; some print whole arrays."""

OS_ADVICE = {
    errno.ENOSPC: "make room, then start again",
    errno.EDQUOT: "make room, then start again",
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.EROFS: "this file system is read-only: give another path",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file where a folder is expected: check the path",
    errno.EISDIR: "a file is expected here, and this is a folder: check the path",
    errno.EEXIST: "there is something of this name already: give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "a symbolic link leads back to itself: check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096), or lower data.num_workers",
    errno.ENFILE: "too many files are open on this machine: end other programs",
    errno.ENOMEM: "free memory: lower data.batch_size or data.num_workers, or end other programs",
    errno.EAGAIN: "the machine has no resources left for it: lower data.num_workers, or end other programs",
    errno.EIO: "the disk or the network drive fails: check it, or give another path",
    errno.ESTALE: "the network drive has lost this file: mount it again, then start again",
    errno.EBUSY: "something else is using it: end that, or give another path",
    errno.ETXTBSY: "something else is using it: end that, or give another path",
    errno.EXDEV: "the two paths are on different file systems: give paths on one",
    errno.EFBIG: "the file system or a limit (ulimit -f) does not allow a file of this size",
}
"""What to do about errors of the operating system."""


UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
"""Python's message about an argument that a class does not take."""

WORKER_LOST = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)")
"""torch's message about a loader worker that was ended from outside."""


def error_message(error: BaseException) -> str:
    """The message for an exception: ours unchanged, any other with the key or file that it is about.

    Notes on the exception (`add_note`), such as how to resume, are appended to the first line.
    """
    reason, *more = _describe(error).split("\n")
    notes = [note for note in getattr(error, "__notes__", []) if "resume=" not in reason]
    parts = [reason.rstrip("."), *notes] if notes else [reason]
    return in_two_lines("\n".join(["; ".join(parts), *more]))


def print_thread_failure(failure: threading.ExceptHookArgs) -> None:
    """Print one line about the exception that ended a thread, for `threading.excepthook`.

    A thread that keeps its exception, such as TensorBoard's writer, raises it where it is used; it is not printed.
    """
    error = failure.exc_value
    if error is None or getattr(failure.thread, "exception", None) is error:
        return
    name = "a thread" if failure.thread is None else f"the thread {failure.thread.name}"
    print(f"warning: {name} failed: {error_message(error).splitlines()[0]}", file=sys.stderr)


def _describe(error: BaseException) -> str:
    own = _own_error(error)
    if own is not None:
        # A loader worker sends its error with the traceback as text in front.
        return str(own).rpartition("LSHFMError: ")[2].strip()
    cause = error.__cause__
    if isinstance(error, InstantiationException):
        key = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else "config"
        if isinstance(cause, TypeError) and (unexpected := UNEXPECTED.search(str(cause))):
            return f"{key}.{unexpected[2]}: {unexpected[1]} takes no such setting; leave it out"
        return f"{key}: {type(cause).__name__}: {_short(cause)}" if cause else f"{key}: {_short(error)}"
    if isinstance(error, OmegaConfBaseException):
        reason = str(error).split("\n")[0]
        return f"{getattr(error, 'full_key', None) or 'config'}: {reason}"
    if isinstance(error, OSError) and error.errno is not None:
        return os_error_message(error)
    if isinstance(error, RuntimeError) and WORKER_LOST.search(str(error)):
        return (
            "a process that reads images was ended from outside, as the system does when memory runs out: "
            "lower data.num_workers, or free memory"
        )
    if isinstance(error, MemoryError):
        return f"not enough memory ({_short(error) or 'MemoryError'}); {OS_ADVICE[errno.ENOMEM]}"
    if type(error).__module__.startswith("submitit."):
        return f"a job was rejected, or failed: {_short(error)}; hydra.launcher.<key>=… changes what jobs request"
    if isinstance(error, RecursionError):
        return "a file or setting is nested too deeply (RecursionError); debug=traceback shows which"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}; expected YAML"
    if isinstance(error, UnicodeError):
        return f"a text cannot be read or written ({_short(error)}); debug=traceback shows where"
    return (
        f"{type(error).__name__}: {_short(error)}\n"
        "This is a defect of lshfm_pl: please report it with what debug=traceback added to the command prints"
    )


def os_error_message(error: OSError) -> str:
    """The message for an error of the operating system: file, reason and what to do."""
    files = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or type(error).__name__
    advice = OS_ADVICE.get(error.errno or 0, "debug=traceback shows where")
    return f"{f'{files}: ' if files else ''}{reason}; {advice}"


def _own_error(error: BaseException) -> LSHFMError | None:
    """The error of this project, also if Hydra, OmegaConf or a loader has wrapped it; None for other exceptions."""
    if isinstance(error, LSHFMError):
        return error
    if isinstance(error, OmegaConfBaseException):  # raised by a resolver, without the cause
        context = error.__context__
        while isinstance(context, OmegaConfBaseException):
            context = context.__context__
        return context if isinstance(context, LSHFMError) else None
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, LSHFMError):
        return error.__cause__
    return None


def _short(error: BaseException | None) -> str:
    """The message of an exception on one line, cut to `LONGEST_REASON`."""
    text = " ".join(str(error).split()) if error is not None else ""
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"
