"""`python -m lshfm_pl.predict`: detect objects in pictures; draw them, and write them as COCO-format JSON."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("predict")  # before the imports below, which take seconds

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lshfm_pl.cli import as_dict
from lshfm_pl.cli.console import is_terminal
from lshfm_pl.data.workers import worker_arguments
from lshfm_pl.detectors import Detector
from lshfm_pl.drawing.boxes import draw_detections
from lshfm_pl.drawing.grid import save_picture
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import fitting_file_name, write_json
from lshfm_pl.inference.coco_results import coco_annotations, coco_categories, unused_labels
from lshfm_pl.inference.detect import choose_device, detect
from lshfm_pl.inference.exported import read_content
from lshfm_pl.inference.loading import load_file
from lshfm_pl.inference.pictures import PICTURES, PREDICTIONS, Pictures, find_pictures
from lshfm_pl.kernels.switches import set_switches

__all__ = ["SOME_UNREADABLE", "predict"]

SOME_UNREADABLE = 3
"""Exit status if some pictures were left out because they could not be read."""


def predict(config: DictConfig) -> list[str]:
    """Detect objects in `config.images`, and write `predictions.json` and `pictures/` to `config.output_dir`.

    `predictions.json` has COCO's format: `images` (`id`, `file_name`, `width`, `height`), `categories` (`id`, which
    is the detector's label, and `name`) and `annotations` (`image_id`, `category_id`, `bbox` as x, y, width, height
    in pixels, `score`). pycocotools' `loadRes` accepts `annotations`. `unreadable` lists the files left out.

    Returns:
        The names of the files that could not be read.

    Raises:
        LSHFMError: the checkpoint does not load, there are no pictures, or none of them can be read.
    """
    for key, least in (("batch_size", 1), ("num_workers", 0)):
        if type(config[key]) is not int or config[key] < least:
            raise LSHFMError(f"{key}: expected a whole number of at least {least}, found {config[key]}")
    set_switches(as_dict(config.get("kernels")))
    pictures = find_pictures(config.images)
    detector = load_file(config)
    detector.to(choose_device(config.device))
    folder = Path(config.output_dir)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "categories": []}
    annotations: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    loader: DataLoader[Any] = DataLoader(
        Pictures(pictures),
        batch_size=config.batch_size,
        **worker_arguments(min(config.num_workers, len(pictures))),
        collate_fn=list,
    )
    with tqdm(total=len(pictures), unit="picture", disable=not is_terminal(sys.stderr)) as bar:
        for batch in loader:
            read = [(index, image) for index, image, _ in batch if isinstance(image, Tensor)]
            for text in (text for _, _, faults in batch for text in faults):
                tqdm.write(f"warning: {text}", file=sys.stderr)
            for index, reason in ((index, item) for index, item, _ in batch if isinstance(item, str)):
                unreadable.append({"file_name": pictures[index].name, "reason": reason})
                tqdm.write(f"left out: {reason}", file=sys.stderr)
            found = detect(detector, [image for _, image in read]) if read else []
            for (index, image), of_image in zip(read, found, strict=True):
                picture = pictures[index]
                height, width = image.shape[-2:]
                size = {"width": width, "height": height}
                content["images"].append({"id": index + 1, "file_name": picture.name, **size})
                annotations += coco_annotations(of_image, index + 1, len(annotations))
                if config.pictures:
                    save_picture(
                        _drawn(image, of_image, detector, config.score_threshold),
                        folder / PICTURES / fitting_file_name(picture.name, ".png"),
                        optimize=False,
                    )
            bar.update(len(batch))
    if not content["images"]:
        raise LSHFMError(
            f"images: none of the {len(pictures)} files could be read, such as {pictures[0].path}"
        )
    target = folder / PREDICTIONS
    content["categories"] = coco_categories(
        detector.class_names,
        unused_labels(detector.class_names, read_content(config.checkpoint)),
        {annotation["category_id"] for annotation in annotations},
    )
    write_json({**content, "annotations": annotations, "unreadable": unreadable}, target)
    print(f"{len(content['images'])} pictures, {len(annotations)} detections: {target}")
    if config.pictures:
        print(f"drawn from score {config.score_threshold:g}: {folder / PICTURES}")
    if unreadable:
        print(
            f"{len(unreadable)} of {len(pictures)} files could not be read and were left out", file=sys.stderr
        )
    return [entry["file_name"] for entry in unreadable]


def _drawn(image: Tensor, found: dict[str, Tensor], detector: Detector, threshold: float) -> Tensor:
    shown = {key: value[found["scores"] >= threshold] for key, value in found.items()}
    return draw_detections(image, shown["boxes"], shown["labels"], detector.class_names, shown["scores"])


@cli.main("predict")
def main(config: DictConfig) -> None:
    """Predict; the exit status says whether all pictures could be read."""
    if predict(config):
        sys.exit(SOME_UNREADABLE)
