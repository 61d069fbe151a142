"""Warnings about the boxes of a whole set."""

from pathlib import Path

import numpy as np
import pytest

from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord
from lshfm_pl.data.record_faults import record_faults


def record(name, boxes, labels):
    return DetectionRecord(
        image_id=name,
        image_path=Path(f"{name}.jpg"),
        width=100,
        height=100,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        difficult=np.full(len(labels), False),
    )


def repeated(records):
    """Image and number of each object that is reported as repeated."""
    found = record_faults(DetectionDataset(records, ("cat", "dog", "hen")), is_training=True)
    texts = ((fault.path.stem, fault.text) for fault in found if fault.kind == "box-repeated")
    return [(name, int(text.split("object ")[1].split()[0])) for name, text in texts]


@pytest.mark.parametrize("seed", range(5))
def test_every_repeated_object_is_found_and_no_other(seed):
    random = np.random.default_rng(seed)
    records, expected = [], []
    for index in range(60):
        count = int(random.integers(0, 12))
        corners = random.integers(0, 3, (count, 2)) / 3
        rows = np.concatenate([corners, corners + random.integers(1, 3, (count, 2))], axis=1).astype(
            np.float32
        )
        labels = random.integers(1, 3, count)
        records.append(record(str(index), rows, labels))
        seen = set()
        for number, key in enumerate(zip(map(tuple, rows.tolist()), labels.tolist(), strict=True), start=1):
            if key in seen:
                expected.append((str(index), number))
            seen.add(key)
    assert expected
    assert repeated(records) == expected


def test_the_same_object_in_another_image_is_no_repetition():
    box = [1.5, 2, 3, 4]
    assert repeated([record("a", [box], [1]), record("b", [box], [1]), record("c", [], [])]) == []
