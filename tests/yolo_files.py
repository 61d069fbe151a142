"""Writes small data sets in YOLO's layout for the tests, and the forms of a set in VOC layout in other formats."""

import json
import shutil
import xml.etree.ElementTree as ET

from voc_files import write_image

from lshfm_pl.data import YOLODataModule
from lshfm_pl.data.faults import FaultLog

SIZE = (64, 48)
DESCRIPTION = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def write_yolo(root, sets=None, description=DESCRIPTION, size=SIZE):
    """`sets`: {set: {name: label text, or None for no label file}}. PNG images in noise."""
    sets = sets or {
        "train": {"a": "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.125 0.125\n", "b": "1 0.5 0.5 0.5 0.5\n"},
        "val": {"c": "0 0.5 0.5 0.5 0.25\n"},
    }
    number = 0
    for name, pictures in sets.items():
        for top in ("images", "labels"):
            (root / top / name).mkdir(parents=True, exist_ok=True)
        for stem, text in pictures.items():
            write_image(root / "images" / name / f"{stem}.png", size, number)
            number += 1
            if text is not None:
                (root / "labels" / name / f"{stem}.txt").write_text(text)
    if description is not None:
        (root / "data.yaml").write_text(description)
    return root


def make_yolo(root, stage="fit", **settings):
    module = YOLODataModule(root=root, **{"num_workers": 0, "batch_size": 2, **settings})
    module.prepare_data()
    module.setup(stage)
    return module


def convert_voc(folder, output, splits=("train", "val", "test")):
    """Write a set in VOC layout as COCO's JSON and in YOLO's layout below `output`, without this package's readers.

    VOC counts pixels from 1 and includes the last one: the box of xmin … xmax spans xmin − 1 … xmax.
    """
    names = sorted(
        {name.text for path in (folder / "Annotations").glob("*.xml") for name in ET.parse(path).iter("name")}
    )
    yolo, coco = output / "yolo", output / "coco"
    coco.mkdir(parents=True)
    for split in splits:
        ids = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
        for top in (yolo / "images" / split, yolo / "labels" / split, coco / split):
            top.mkdir(parents=True)
        for number, image_id in enumerate(ids):
            root = ET.parse(folder / "Annotations" / f"{image_id}.xml").getroot()
            picture = folder / "JPEGImages" / f"{image_id}.jpg"
            for copy in (yolo / "images" / split, coco / split):
                shutil.copy(picture, copy)
            width, height = (int(root.findtext(f"size/{side}")) for side in ("width", "height"))
            entry = {"id": number, "file_name": picture.name, "width": width, "height": height}
            content["images"].append(entry)
            lines = []
            for node in root.iter("object"):
                left, top, right, bottom = (
                    int(node.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")
                )
                left, top = left - 1, top - 1
                category = names.index(node.findtext("name"))
                box = [left, top, right - left, bottom - top]
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
                centre = (left + right) / 2 / width, (top + bottom) / 2 / height
                lines.append(
                    f"{category} {centre[0]!r} {centre[1]!r} {box[2] / width!r} {box[3] / height!r}\n"
                )
            (yolo / "labels" / split / f"{image_id}.txt").write_text("".join(lines))
        (coco / f"{split}.json").write_text(json.dumps(content))
    sets = "".join(f"{split}: images/{split}\n" for split in splits)
    (yolo / "data.yaml").write_text(f"{sets}names: {json.dumps(names)}\n")
    return yolo, coco


ONE = "0 0.5 0.5 0.25 0.5\n"
"""A label file with one object."""
BOX = [24.0, 12.0, 40.0, 36.0]
"""Of `ONE` in an image of 64 × 48."""


def make_yolo_module(root, **settings):
    return YOLODataModule(root=root, num_workers=0, **settings)


def read_yolo(root, split="train", on_error="error", **settings):
    log = FaultLog(on_error)
    dataset = make_yolo_module(root, **settings).read_set(split, log)
    return dataset, log


def boxes_of(dataset):
    return {record.image_id.rpartition("/")[2]: record.boxes.tolist() for record in dataset.records}


def kinds(log):
    return [fault.kind for fault in log.faults]


def train_of(tmp_path, labels, description=DESCRIPTION):
    return write_yolo(tmp_path, {"train": labels, "val": {"v": ONE}}, description)
