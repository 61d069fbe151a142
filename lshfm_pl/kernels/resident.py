"""Peak memory of this process, without an import of torch, which alone takes hundreds of MB."""

import re
import resource
import sys
from pathlib import Path

__all__ = ["peak_resident_bytes"]


def peak_resident_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, getrusage starts from the peak of the parent process.
        (peak_kib,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())
        return int(peak_kib) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
