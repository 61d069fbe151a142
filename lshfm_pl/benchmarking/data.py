"""Benchmark of data loading: images per second, compared with the reference implementation."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch.utils.data import DataLoader

from lshfm_pl.benchmarking.step import load_published
from lshfm_pl.benchmarking.timing import median_seconds
from lshfm_pl.data import VOCDataModule
from lshfm_pl.data.workers import worker_arguments
from lshfm_pl.files import temporary_folder

__all__ = ["draw_voc", "measure_loaders"]

WIDTH, HEIGHT, BOXES = 500, 375, 3
"""Pixels and objects of a typical VOC image."""

BATCH_SIZE = 2

ANNOTATION = (
    "<annotation><filename>{id}.jpg</filename><size><width>{width}</width><height>{height}</height><depth>3</depth>"
    "</size>{objects}</annotation>"
)
OBJECT = (
    "<object><name>thing</name><difficult>0</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>"
    "<ymax>{3}</ymax></bndbox></object>"
)


def draw_voc(root: Path, num_images: int, seed: int) -> None:
    """Write a data set in VOC layout: JPEG images as detailed as photographs (about 75 KB), with three boxes each.

    The split train has `num_images`, and val has one more image, as no image may be in both.
    """
    generator = torch.Generator().manual_seed(seed)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    ids = [f"{index:06d}" for index in range(num_images + 1)]
    for split, of_split in {"train": ids[:-1], "val": ids[-1:]}.items():
        lines = "".join(f"{image_id}\n" for image_id in of_split)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="utf-8")
    for image_id in ids:
        pixels = torch.zeros(3, HEIGHT, WIDTH)
        for detail in (8, 32, 128):
            coarse = torch.rand(1, 3, detail * HEIGHT // WIDTH, detail, generator=generator)
            pixels += torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")[0] / 3
        bytes_HW3 = (pixels * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(bytes_HW3).save(root / "JPEGImages" / f"{image_id}.jpg", quality=92)
        corners = torch.randint(1, 200, (BOXES, 2), generator=generator)
        boxes = torch.cat([corners, corners + 100], dim=1).tolist()
        objects = "".join(OBJECT.format(*box) for box in boxes)
        text = ANNOTATION.format(id=image_id, width=WIDTH, height=HEIGHT, objects=objects)
        (root / "Annotations" / f"{image_id}.xml").write_text(text, encoding="utf-8")


def measure_loaders(config: DictConfig) -> dict[str, Any]:
    """Time an epoch of our loader and, if `published` is set, of the reference implementation.

    Returns:
        `seconds` and `images_per_second` by loader, and `ratios`.
    """
    with temporary_folder() as folder:
        root = folder / "voc"
        draw_voc(root, config.num_images, config.seed)
        datamodule = VOCDataModule(
            root=str(root), train_split="train", val_split="val", batch_size=BATCH_SIZE,
            num_workers=config.num_workers, seed=config.seed,
        )  # fmt: skip
        datamodule.setup("fit")
        loaders: dict[str, Iterable[Any]] = {"ours": datamodule.train_dataloader()}
        if config.published:
            published = load_published().PublishedVOC(root, "train")
            loaders["published"] = DataLoader(
                published,
                BATCH_SIZE,
                shuffle=True,
                **worker_arguments(config.num_workers),
                persistent_workers=config.num_workers > 0,  # as ours: starting them is not part of an epoch
                collate_fn=_as_lists,
            )
        seconds = median_seconds(
            {name: lambda loader=loader: _exhaust(loader) for name, loader in loaders.items()},  # type: ignore[misc]
            repeats=config.repeats,
            warmup=config.warmup,
            device=torch.device("cpu"),
        )
    speeds = {name: config.num_images / value for name, value in seconds.items()}
    return {
        "seconds": seconds,
        "images_per_second": speeds,
        "ratios": ({"ours_over_published": speeds["ours"] / speeds["published"]} if config.published else {}),
    }


def _exhaust(loader: Iterable[Any]) -> None:
    for _ in loader:
        pass


def _as_lists(samples: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
