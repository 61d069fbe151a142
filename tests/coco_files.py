"""Writes small data sets in COCO's JSON format for the tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = {3: "cat", 7: "dog", 18: "hen"}
"""Sparse ids, as COCO's."""

TWO_IMAGES = {8: (64, 48), 2: (48, 64)}
"""Id → width and height."""


def annotation(image_id, category_id=3, box=(10.0, 5.0, 20.0, 15.0), **fields):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "iscrowd": 0, **fields}


def coco_content(images, annotations, categories=CATEGORIES):
    """`images`: {id: (width, height)}; annotations get ids and polygons, and their box's area if they have none."""
    return {
        "info": {"description": "drawn"},
        "licenses": [{"id": 1, "name": "none"}],
        "images": [
            {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height}
            for image_id, (width, height) in images.items()
        ],
        "annotations": [
            {
                "id": number,
                "segmentation": [[1.0, 1.0, 2.0, 1.0, 2.0, 2.0]],
                "area": entry["bbox"][2] * entry["bbox"][3],
                **entry,
            }
            for number, entry in enumerate(annotations, start=1)
        ],
        "categories": [
            {"id": category_id, "name": name, "supercategory": "animal"}
            for category_id, name in categories.items()
        ],
    }


def write_json(folder, content):
    """`folder/objects.json`, of an object or of text."""
    path = folder / "objects.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_coco(root, split, content):
    """`root/annotations/instances_<split>.json` and `root/<split>/<id>.jpg` in noise."""
    root = Path(root)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    for image in content["images"]:
        random = np.random.RandomState(image["id"])
        pixels = random.randint(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / image["file_name"], quality=95)
    return path


def drawn_content(seed, number, *, first_id=1, size=128):
    """Images of coloured rectangles to learn: crowds, images without objects, all three categories."""
    random = np.random.RandomState(seed)
    images = {int(image_id): (size, size) for image_id in first_id + random.permutation(number)}
    annotations = []
    for image_id in images:
        for _ in range(0 if image_id % 5 == 0 else random.randint(1, 5)):
            width, height = random.uniform(12, 110, 2)
            corner = random.uniform(0, (size - width, size - height))
            annotations.append(
                annotation(
                    image_id,
                    int(random.choice(list(CATEGORIES))),
                    np.round([*corner, width, height], 2).tolist(),
                    area=round(float(width * height * random.uniform(0.4, 1)), 2),
                    iscrowd=int(random.uniform() < 0.15),
                )
            )
    return coco_content(images, annotations)


def write_drawn_coco(root, split, content):
    """Like `write_coco`, with the objects painted in the colour of their category."""
    path = write_coco(root, split, content)
    for image in content["images"]:
        pixels = np.full((image["height"], image["width"], 3), 128, dtype=np.uint8)
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = (int(value) for value in entry["bbox"])
                channel = list(CATEGORIES).index(entry["category_id"])
                pixels[y : y + height, x : x + width] = np.eye(3)[channel] * 255
        Image.fromarray(pixels).save(Path(root) / split / image["file_name"], quality=95)
    return path
