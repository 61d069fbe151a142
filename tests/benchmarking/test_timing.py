"""Timing of parts in turn, and peak memory."""

import math
import sys
import time

import pytest
import torch

from lshfm_pl.benchmarking.timing import (
    in_own_process,
    median_seconds,
    reset_peak_memory,
    samples_in_turn,
)
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.memory import peak_memory_bytes

CPU = torch.device("cpu")
MANY_BYTES = 400_000_000


def peaks_around_a_large_tensor():
    large = torch.zeros(MANY_BYTES, dtype=torch.uint8)
    with_it = peak_memory_bytes(CPU)
    del large
    before = peak_memory_bytes(CPU)
    reset_peak_memory(CPU)
    return with_it, before, peak_memory_bytes(CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_peak_stays_until_it_is_reset():
    with_it, before, after = in_own_process(peaks_around_a_large_tensor)
    assert before > with_it - 0.1 * MANY_BYTES  # the system counts in pages
    assert after < before - 0.9 * MANY_BYTES


def test_what_fails_in_the_other_process_is_reported():
    with pytest.raises(LSHFMError, match="measuring memory failed: ValueError: .*domain error"):
        in_own_process(math.sqrt, -1.0)


def test_parts_take_turns_and_warm_up_rounds_do_not_count():
    calls = []
    parts = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert set(median_seconds(parts, repeats=3, warmup=1, device=CPU)) == {"a", "b"}
    assert calls == list("ab" * 4)


def test_samples_keep_what_was_returned_and_the_processors_time():
    samples = samples_in_turn({"sleep": lambda: time.sleep(0.2) or 7}, repeats=2, warmup=0, device=CPU)[
        "sleep"
    ]
    assert [sample.result for sample in samples] == [7, 7]
    assert all(sample.processor_seconds < 0.1 < sample.seconds for sample in samples)
