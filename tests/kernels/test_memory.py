"""Freed memory is returned to the system."""

import platform
import re
from pathlib import Path

import pytest
import torch

from lshfm_pl.kernels import memory
from lshfm_pl.kernels.memory import give_back_freed_memory


def resident_mib():
    return int(re.findall(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives back on demand")
def test_what_lay_between_other_blocks_goes_back(monkeypatch):
    monkeypatch.setattr(memory, "FEWEST_BYTES", 0)
    # Smaller than the blocks that glibc returns by itself; every second block is kept.
    blocks = [torch.ones(25_000) for _ in range(2000)]
    kept = blocks[::2]
    before = resident_mib()
    del blocks
    assert resident_mib() > before - 10
    give_back_freed_memory(torch.device("cpu"))
    assert resident_mib() < before - 60
    assert all(bool((block == 1).all()) for block in kept)


def test_nothing_is_done_for_a_gpu_or_without_glibc_or_for_a_small_process(monkeypatch):
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    give_back_freed_memory(torch.device("cpu"))
    monkeypatch.setattr(memory, "_malloc_trim", lambda: lambda pad: pytest.fail("given back"))
    give_back_freed_memory(torch.device("cuda"))
    monkeypatch.setattr(memory, "_resident_bytes", lambda: memory.FEWEST_BYTES - 1)
    give_back_freed_memory(torch.device("cpu"))


def test_resident_bytes_are_those_that_the_system_reports():
    assert memory._resident_bytes() / 2**20 == pytest.approx(resident_mib(), rel=0.05)
