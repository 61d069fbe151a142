"""A user's data format: `image,class,x1,y1,x2,y2` lines in CSV files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lshfm_pl.data import (
    DetectionDataModule,
    DetectionDataset,
    DetectionRecord,
    Fault,
    FaultLog,
    eval_transform,
)


class BoxesCSV(DetectionDataModule):
    """A CSV file for each split, and the pictures that it names.

    Args:
        train: the file of the training set, relative to `root` as all are.
        val: the file of the validation and test sets.
        **loading: as for `DetectionDataModule`.
    """

    def __init__(self, *, train: str, val: str, **loading: Any) -> None:
        super().__init__(**loading)
        self.files = {"train": train, "val": val, "test": val}

    def source(self, split: str) -> tuple[str, object]:
        """See the base class."""
        return ("train" if split == "train" else "val"), [self.files[split]]

    def read_set(self, split: str, faults: FaultLog) -> DetectionDataset:
        """See the base class."""
        names = self.known_class_names or tuple(sorted({row["class"] for row in self._rows("train")}))
        by_image: dict[str, list[dict[str, str]]] = {}
        for row in self._rows(split):
            by_image.setdefault(row["image"], []).append(row)
        records = [self._record(image, rows, names, faults) for image, rows in by_image.items()]
        return DetectionDataset(
            records,
            names,
            transforms=self.train_transform if split == "train" else eval_transform(),
            keep_difficult=split != "train",
            seed=self.seed,
            log=faults,
        )

    def _rows(self, split: str) -> list[dict[str, str]]:
        with (self.root / self.files[split]).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _record(
        self, image: str, rows: list[dict[str, str]], names: tuple[str, ...], faults: FaultLog
    ) -> DetectionRecord:
        path: Path = self.root / image
        for row in rows:
            if row["class"] not in names:
                faults.add(Fault("class-unknown", path, f"has the class '{row['class']}', expected {names}."))
        with Image.open(path) as picture:
            width, height = picture.size
        return DetectionRecord(
            image_id=image,
            image_path=path,
            width=width,
            height=height,
            boxes=np.array(
                [[float(row[key]) for key in ("x1", "y1", "x2", "y2")] for row in rows], np.float32
            ),
            labels=np.array([names.index(row["class"]) + 1 for row in rows], np.int64),
            difficult=np.zeros(len(rows), bool),
        )
