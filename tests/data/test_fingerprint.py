"""The fingerprint depends on the content of the data, not on their location or file format."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord
from lshfm_pl.data.fingerprint import differences, fingerprint


def record(index, folder="/data/pets", **changes):
    values = {
        "image_id": f"{Path(folder).name}/{index:06d}",
        "image_path": Path(folder) / "JPEGImages" / f"{index:06d}.jpg",
        "width": 64,
        "height": 48,
        "boxes": np.array([[1, 2, 30, 40], [5, 5, 9, 9]], np.float32),
        "labels": np.array([1, 2]),
        "difficult": np.array([False, False]),
    }
    return DetectionRecord(**{**values, **changes})


def of(records, classes=("cat", "dog"), name="train"):
    return fingerprint({name: DetectionDataset(records, classes)}, classes)


RECORDS = [record(index) for index in range(4)]


def test_moved_data_are_the_same():
    assert of(RECORDS) == of([record(index, "/elsewhere/other") for index in range(4)])
    assert differences(of(RECORDS), of(RECORDS)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda records: records[:3], "train 4 images → 3"),
        (lambda records: records[::-1], "train 4 images are others, or in another order"),
        (lambda records: [*records[:3], record(9)], "train 4 images are others, or in another order"),
        (
            {"boxes": np.array([[1, 2, 30, 40], [5, 5, 9, 10]], np.float32)},
            "other annotations (8 objects → 8)",
        ),
        ({"labels": np.array([2, 1])}, "other annotations (8 objects → 8)"),
        ({"difficult": np.array([True, False])}, "other annotations (8 objects → 8)"),
        ({"width": 65}, "other annotations (8 objects → 8)"),
        ({"crowd": np.array([True, False])}, "other annotations (8 objects → 8)"),
        (
            {
                "boxes": np.zeros((0, 4), np.float32),
                "labels": np.zeros(0, int),
                "difficult": np.zeros(0, bool),
            },
            "other annotations (8 objects → 6)",
        ),
    ],
)
def test_other_data_are_reported_by_what_differs(change, told):
    now = change(RECORDS) if callable(change) else [*RECORDS[:3], dataclasses.replace(RECORDS[3], **change)]
    (text,) = differences(of(RECORDS), of(now))
    assert told in text


def test_classes_are_compared_by_name_and_order():
    (text,) = differences(of(RECORDS), of(RECORDS, ("dog", "cat")))
    assert text == "classes cat, dog (2) → dog, cat (2)"


def test_sets_that_are_one_are_counted_once_each():
    dataset = DetectionDataset(RECORDS, ["cat", "dog"])
    sets = fingerprint({"val": dataset, "test": dataset}, ["cat", "dog"])["sets"]
    assert sets["val"] == sets["test"]
    assert sets["val"]["images"] == 4
    assert sets["val"]["objects"] == 8


def test_another_version_is_compared_by_its_counts_alone():
    before = {**of(RECORDS), "version": 0}
    assert differences(before, of(RECORDS[::-1])) == []
    assert differences(before, of(RECORDS[:2])) == ["train 4 images → 2"]


@pytest.mark.parametrize("before", [{}, {"sets": 3}, {"sets": {"train": 3}}, {"classes": 3, "sets": []}])
def test_what_is_damaged_or_missing_is_not_compared(before):
    assert differences(before, of(RECORDS)) == []


def test_a_name_with_a_lone_surrogate_is_hashed():
    of([record(0, image_id="a/\udcff", image_path=Path("/a/\udcff.jpg"))])


def test_cost_is_small():
    dataset = DetectionDataset(RECORDS * 5000, ["cat", "dog"])
    begin = time.process_time()
    fingerprint({"train": dataset}, ["cat", "dog"])
    assert time.process_time() - begin < 2  # for 20,000 images; 0.2 s was measured
