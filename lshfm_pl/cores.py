"""The processor cores that this process may use."""

import os

__all__ = ["usable_cores"]


def usable_cores() -> int:
    """How many cores this process may use: a container or a scheduler may give it fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
