"""A set in VOC layout and its copies in other formats give the same targets and the same figures."""

import os
from pathlib import Path

import pytest
import torch
from voc_files import SIZE, object_xml, write_voc
from yolo_files import convert_voc

from lshfm_pl.data import COCODataModule, VOCDataModule, YOLODataModule
from lshfm_pl.metrics.detection import DetectionMetrics

DATA = os.environ.get("LSHFM_DATA")
"""Folder of real data sets; None to look beside the repository."""
SPLITS = ("train", "val", "test")


def modules(folder, output):
    """The data module of the VOC form, and those of its copies."""
    yolo, coco = convert_voc(folder, output)
    files = {
        key: value
        for split in SPLITS
        for key, value in ((f"{split}_annotations", f"{split}.json"), (f"{split}_images", split))
    }
    voc = VOCDataModule(root=folder, train_split="train", val_split="val", num_workers=0)
    others = YOLODataModule(root=yolo, num_workers=0), COCODataModule(root=coco, num_workers=0, **files)
    for module in (voc, *others):
        module.setup()
    return voc, others


def targets_by_name(dataset):
    return {
        record.image_path.name: (record.width, record.height, dataset.target(index))
        for index, record in enumerate(dataset.records)
    }


def assert_same_targets(voc, other):
    assert other.class_names == voc.class_names
    for split in SPLITS:
        expected = targets_by_name(getattr(voc, f"{split}_set"))
        found = targets_by_name(getattr(other, f"{split}_set"))
        assert found.keys() == expected.keys()
        for name, (width, height, target) in expected.items():
            assert found[name][:2] == (width, height)
            for key in ("boxes", "labels", "difficult"):
                assert torch.equal(found[name][2][key], target[key]), (split, name, key)


def figures(dataset):
    """Metrics of the objects of a set, moved and scored by numbers that depend on the picture's name alone."""
    metrics = DetectionMetrics(dataset.class_names)
    for index, record in enumerate(dataset.records):
        target = dataset.target(index)
        generator = torch.Generator().manual_seed(sum(record.image_path.name.encode()))
        boxes = target["boxes"] + 12 * torch.randn(target["boxes"].shape, generator=generator)
        scores = torch.rand(len(boxes), generator=generator)
        labels = target["labels"].where(scores > 0.1, 1)
        metrics.update([{"boxes": boxes, "scores": scores, "labels": labels}], [target])
    return metrics.compute()


def test_copies_in_other_formats_have_the_targets_of_the_voc_form(tmp_path):
    folder = tmp_path / "voc"
    for number, split in enumerate(SPLITS):
        boxes = [(1, 1, 64, 48), (11 + number, 21, 30, 40), (7, 3, 7, 3)]
        objects = [object_xml(name, box) for name, box in zip(("cat", "dog", "cat"), boxes, strict=True)]
        write_voc(folder, split, {f"{split}{index}": (SIZE, objects) for index in range(2)}, suffix=".jpg")
    voc, others = modules(folder, tmp_path / "copies")
    for other in others:
        assert_same_targets(voc, other)


def test_copies_of_bccd_have_the_figures_of_the_voc_form(tmp_path):
    places = [Path(DATA)] if DATA else sorted(Path(__file__).parents[3].glob("*/data"))
    folder = next((place / "bccd" for place in places if (place / "bccd").is_dir()), None)
    if folder is None:
        pytest.skip("needs the data set bccd in a folder data/ beside the repository, or in LSHFM_DATA")
    voc, others = modules(folder, tmp_path)
    expected = figures(voc.test_set)
    assert 0 < expected["AP"] < 100
    for other in others:
        assert_same_targets(voc, other)
        assert figures(other.test_set) == expected
