"""The reference cases of tests/goldens/voc_ap (its README describes the arrays)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

VOC_AP_FOLDER = Path(__file__).parents[1] / "goldens" / "voc_ap"


@dataclass(frozen=True)
class VOCCase:
    arrays: dict[str, np.ndarray]

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    @property
    def num_classes(self) -> int:
        return self["voc07_ap"].shape[1]

    @property
    def boxes(self) -> np.ndarray:
        """Detections as 0-based, continuous corners."""
        return self["box"] - [1, 1, 0, 0]

    @property
    def true_boxes(self) -> np.ndarray:
        return self["true_box"] - [1, 1, 0, 0]

    def predictions(self, *, only_known_labels: bool = False) -> list[dict[str, torch.Tensor]]:
        keep = self["label"] <= (self.num_classes if only_known_labels else np.inf)
        columns = {"boxes": self.boxes, "scores": self["score"], "labels": self["label"].astype(np.int64)}
        return self._per_image(columns, self["image"], keep)

    def targets(self, *, clipped: bool = False) -> list[dict[str, torch.Tensor]]:
        boxes = self.true_boxes
        if clipped:
            boxes = np.clip(boxes, 0, np.tile(self["image_size"][self["true_image"]], 2))
        columns = {
            "boxes": boxes,
            "labels": self["true_label"].astype(np.int64),
            "difficult": self["true_difficult"],
        }
        targets = self._per_image(columns, self["true_image"], np.full(len(boxes), True))
        for index, target in enumerate(targets):
            target["image_id"] = torch.tensor(index)
        return targets

    def _per_image(self, columns, image, keep):
        return [
            {key: torch.from_numpy(column[(image == index) & keep]) for key, column in columns.items()}
            for index in range(len(self["image_size"]))
        ]


@pytest.fixture
def load_case():
    def load(name: str) -> VOCCase:
        with np.load(VOC_AP_FOLDER / f"{name}.npz") as arrays:
            return VOCCase(dict(arrays))

    return load
