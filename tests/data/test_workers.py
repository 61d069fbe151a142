"""Memory of loader processes that are forked, and so share the memory of their parent."""

import gc
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from lshfm_pl.data.workers import worker_arguments

SMAPS = Path("/proc/self/smaps_rollup")
"""What a process shares with others and what is its own (Linux)."""


class FrozenObjects(Dataset):
    """Each item is the number of objects of its process at which the garbage collector does not look."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return gc.get_freeze_count()


class Records(Dataset):
    """Many objects, and how much memory of the process becomes its own in a collection of garbage."""

    def __init__(self, count):
        self.records = [[index] for index in range(count)]

    def __len__(self):
        return 1

    def __getitem__(self, index):
        before = private_bytes()
        gc.collect()
        return private_bytes() - before


def private_bytes():
    lines = SMAPS.read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def items(dataset):
    return list(DataLoader(dataset, batch_size=None, **worker_arguments(1, "fork")))


def test_the_garbage_collector_does_not_look_at_what_a_loader_process_starts_with():
    assert gc.get_freeze_count() == 0
    assert min(items(FrozenObjects())) > 1000


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux' account of shared memory")
def test_a_collection_of_garbage_copies_no_records_of_the_parent():
    count = 300_000
    (copied,) = items(Records(count))
    # A list with an entry takes 88 bytes and its header for the collector 16: 30 MB, if they were copied.
    assert copied < 0.2 * 104 * count
