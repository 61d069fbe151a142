"""Measure what grows with the data, at COCO's size: 118,000 images with 860,000 boxes of 80 classes.

    python scripts/measure_coco_size.py --folder /tmp/coco_size
    python scripts/measure_coco_size.py --folder /tmp/coco_size --only start --only report

The sets are drawn: small pictures for the whole set, and VOC's size for those of `check_data`. They take 1 GB. Each
part runs in a process of its own. Processor time is that of this process and those that it starts, memory that of
the largest of them. The parts:

    evaluation   all AP figures of 5,000 images with 100 detections each
    check_coco   `check_data` over 17,000 images of a COCO file
    check_voc    `check_data` over 17,000 VOC annotations
    loader       one epoch of a VOC folder's training pictures with two loader processes; `--pictures` names one
    start        `train` over the whole set: one batch of training, validation and test, with a tiny detector
    workers      memory of two loader processes after each of five passes over the whole set; or over a part of it,
                 as with `--share 0.1`
    report       `report` over 100 runs
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, CLASSES = 64, 48, 80
TRAIN, VAL, CHECKED, FEW = (118_000, 860_000), (5_000, 36_000), (17_000, 50_000), (100, 300)
"""Images and boxes of each set."""
CHECKED_SIZE = (500, 375)
"""Of the pictures of `check_data`, in pixels."""
EVALUATED, DETECTIONS = 5_000, 100
"""Images, and detections in each."""
RUNS = 100
PASSES, WORKERS = 5, 2
PARTS = ("evaluation", "check_coco", "check_voc", "loader", "start", "workers", "report")
PICTURES = "LSHFM_PICTURES"
"""Environment variable with which `--pictures` reaches the process of a part."""
SHARE = "LSHFM_SHARE"
"""Likewise of `--share`."""


def draw_images(folder: Path, count: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[str]:
    """Write different JPEGs; returns their names. Images that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:012d}.jpg" for index in range(count)]
    random = np.random.default_rng(zlib.crc32(folder.name.encode()))
    if not (folder / names[-1]).exists():
        for name in names:
            coarse = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).save(folder / name)
    return names


def draw_boxes(
    images: int, boxes: int, size: tuple[int, int]
) -> tuple[list[int], list[list[float]], list[int]]:
    """The image, the box [x, y, width, height] in pixels and the category of each object."""
    random = np.random.default_rng(1)
    sides = random.integers(4, 24, (boxes, 2))
    corners = (random.random((boxes, 2)) * (size - sides)).round(2)
    drawn = np.concatenate([corners, sides], axis=1).tolist()
    # Each image has an object, so that none is background.
    of_image = np.concatenate([np.arange(images), random.integers(0, images, boxes - images)])
    return of_image.tolist(), drawn, random.integers(1, CLASSES + 1, boxes).tolist()


def draw_coco(
    folder: Path, name: str, images: int, boxes: int, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Path:
    """Write a COCO file with its images; returns the file."""
    file = folder / f"{name}.json"
    names = draw_images(folder / name, images, size)
    if not file.exists():
        listed = zip(*draw_boxes(images, boxes, size), strict=True)
        described = {
            "images": [
                {"id": index, "file_name": image, "width": size[0], "height": size[1]}
                for index, image in enumerate(names)
            ],
            "annotations": [
                {"id": index + 1, "image_id": image, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                | {"category_id": category}
                for index, (image, box, category) in enumerate(listed)
            ],
            "categories": [{"id": index + 1, "name": f"class {index + 1}"} for index in range(CLASSES)],
        }
        file.write_text(json.dumps(described), encoding="utf-8")
    return file


def draw_voc(folder: Path, images: int, boxes: int, size: tuple[int, int]) -> Path:
    """Write a VOC folder; returns it."""
    root = folder / "voc"
    names = [Path(name).stem for name in draw_images(root / "JPEGImages", images, size)]
    listed = root / "ImageSets" / "Main" / "train.txt"
    if listed.exists():
        return root
    for place in (root / "Annotations", listed.parent):
        place.mkdir(parents=True, exist_ok=True)
    objects: list[list[str]] = [[] for _ in names]
    for image, (x, y, width, height), category in zip(*draw_boxes(images, boxes, size), strict=True):
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        box = "".join(f"<{key}>{value:.0f}</{key}>" for key, value in corners.items())
        objects[image].append(f"<object><name>class {category}</name><bndbox>{box}</bndbox></object>")
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    for name, each in zip(names, objects, strict=True):
        text = f"<annotation><filename>{name}.jpg</filename>{sides}{''.join(each)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
    few = FEW[0]
    for split, chosen in (("val", names[:few]), ("train", names[few:])):
        listed.with_name(f"{split}.txt").write_text("\n".join(chosen), encoding="utf-8")
    return root


def run(command: str, *arguments: str) -> None:
    """Run a command of the project, and print its last lines if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"lshfm_pl.{command}", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{command}: status {done.returncode}\n{(done.stdout + done.stderr)[-1000:]}")


def check_coco(folder: Path) -> None:
    """Check a COCO file. The validation set is a small one."""
    files = {
        "train": draw_coco(folder, "checked", *CHECKED, CHECKED_SIZE),
        "val": draw_coco(folder, "few", *FEW, CHECKED_SIZE),
    }
    run("check_data", *coco_arguments(files))


def check_voc(folder: Path) -> None:
    """Check a VOC folder."""
    root = draw_voc(folder, *CHECKED, CHECKED_SIZE)
    run("check_data", "data=voc_folder", f"data.root={root}", "data.train_split=train", "data.val_split=val")


def coco_arguments(files: dict[str, Path]) -> list[str]:
    """The arguments for COCO files of sets, beside whose files are folders of the same name."""
    return [
        "data=coco_json",
        *(f"data.{name}_annotations={file}" for name, file in files.items()),
        *(f"data.{name}_images={file.with_suffix('')}" for name, file in files.items()),
    ]


def of_coco_size(folder: Path) -> list[str]:
    """The arguments of the whole set, or of the share of it that is wanted."""
    share = float(os.environ.get(SHARE, "1"))
    name = "train" if share == 1 else f"train_{share:g}"
    images, boxes = (int(share * number) for number in TRAIN)
    train = draw_coco(folder, name, images, boxes)
    return coco_arguments({"train": train, "val": draw_coco(folder, "val", *VAL)})


def start(folder: Path) -> None:
    """Train one batch of the whole set."""
    train_one_batch(folder, of_coco_size(folder))


def train_one_batch(folder: Path, data: list[str]) -> None:
    """Train, validate and test one batch each, with a tiny detector; the run is `folder/started`."""
    shutil.rmtree(folder / "started", ignore_errors=True)  # a folder that holds a run is refused
    limits = [f"trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
    tiny = ["model=retinanet_resnet10fpn_tiny", "distill=none", "schedule=quickstart", "schedule.epochs=1"]
    run(
        "train",
        *data,
        *tiny,
        *limits,
        "trainer.accelerator=cpu",
        f"output_dir={folder}/started",
    )


def evaluation(folder: Path) -> None:
    """Compute all AP figures of drawn detections."""
    from lshfm_pl.benchmarking.evaluation import draw_detections, evaluate

    drawn = draw_detections(EVALUATED, seed=0, detections=DETECTIONS, num_classes=CLASSES)
    begin = time.process_time()
    evaluate(*drawn, num_classes=CLASSES)
    print(f"evaluation: {time.process_time() - begin:.1f} s without drawing them", flush=True)


def private_memory(pid: str) -> float:
    """MiB that a process shares with no other one (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 2**10


def workers(folder: Path) -> None:
    """Read all records in loader processes, and print the memory that belongs to these alone after each pass."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from torch.utils.data import DataLoader

    from lshfm_pl.data.sampler import Draw
    from lshfm_pl.data.workers import worker_arguments
    from lshfm_pl.paths import CONFIG_DIR

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides=[*of_coco_size(folder), "distill=none"])
    data = instantiate(config.data)
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    keys = [Draw(index, 0) for index in range(len(dataset))]
    loader = DataLoader(
        dataset, batch_sampler=[keys[first : first + 64] for first in range(0, len(keys), 64)],
        collate_fn=len, persistent_workers=True, **worker_arguments(WORKERS),
    )  # fmt: skip
    for number in range(PASSES):
        for _ in loader:
            pass
        own = sorted(private_memory(str(process.pid)) for process in multiprocessing.active_children())
        sizes = ", ".join(f"{size:.0f}" for size in own)
        print(f"workers: pass {number + 1}: {sizes} MiB of their own", flush=True)


def loader(folder: Path) -> None:
    """Load the training pictures of a VOC folder once, as training does, with two loader processes."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from lshfm_pl.paths import CONFIG_DIR

    root = Path(os.environ.get(PICTURES, folder / "voc"))
    given = ["data=voc_folder", f"data.root={root}", f"data.num_workers={WORKERS}", "distill=none"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        data = instantiate(compose("train", overrides=given).data)
    data.setup("fit")
    images = sum(len(pictures) for pictures, _ in data.train_dataloader())
    print(f"loader: {images} images", flush=True)


def draw_runs(folder: Path) -> Path:
    """Train one batch, and make runs of all losses from it; returns their folder.

    Each has a record as large as that of VOC2007's test set, with other matches.
    """
    runs = folder / "runs"
    if (runs / f"run_{RUNS - 1}").exists():
        return runs  # before torch is imported, which would be measured too

    from lshfm_pl.benchmarking.evaluation import NUM_CLASSES, NUM_IMAGES, draw_detections
    from lshfm_pl.metrics import DetectionMetrics
    from lshfm_pl.paths import CONFIG_DIR
    from lshfm_pl.runs.results import test_set_summary

    file = draw_coco(folder, "few", *FEW, CHECKED_SIZE)
    train_one_batch(folder, coco_arguments({"train": file, "val": file}))
    metrics = DetectionMetrics([f"class {label}" for label in range(1, NUM_CLASSES + 1)])
    metrics.update(*draw_detections(NUM_IMAGES, seed=0))
    record, random = metrics.record(), np.random.default_rng(0)
    losses = sorted(file.stem for file in (CONFIG_DIR / "distill").glob("[a-z]*.yaml"))
    content = json.loads((folder / "started" / "results.json").read_text(encoding="utf-8"))
    for index in range(RUNS):
        made = runs / f"run_{index}"
        shutil.copytree(
            folder / "started", made, ignore=shutil.ignore_patterns("checkpoints"), dirs_exist_ok=True
        )
        found = np.where(random.random(len(record.matched)) < 0.5 + 0.3 * random.random(), record.matched, 0)
        of_run = dataclasses.replace(record, matched=found.astype(np.uint16))
        of_run.save(made / "evaluation.npz")
        seed, loss = divmod(index, len(losses))
        changed = {"run": f"runs/run_{index}", "seed": seed, "distill": {"name": losses[loss]}}
        changed["metrics"] = content["metrics"] | of_run.figures()
        changed["test_set"] = test_set_summary(of_run, also_validation=False)
        if losses[loss] != "none":
            changed["teacher"] = {"name": "retinanet_resnet18fpn_tiny", "checkpoint": "teacher.ckpt"}
        (made / "results.json").write_text(json.dumps(content | changed), encoding="utf-8")
    return runs


def report(folder: Path) -> None:
    """Report over the runs."""
    run("report", f"runs={draw_runs(folder)}", f"output={folder}/report")


DRAWN: dict[str, Callable[[Path], object]] = {
    "check_coco": lambda folder: (
        draw_coco(folder, "checked", *CHECKED, CHECKED_SIZE),
        draw_coco(folder, "few", *FEW, CHECKED_SIZE),
    ),
    "check_voc": lambda folder: draw_voc(folder, *CHECKED, CHECKED_SIZE),
    "loader": lambda folder: None if PICTURES in os.environ else draw_voc(folder, *CHECKED, CHECKED_SIZE),
    "start": of_coco_size,
    "workers": of_coco_size,
    "report": draw_runs,
}
"""What is drawn before a part, so that it is not measured."""


def measure(part: str, folder: Path) -> None:
    """Run a part in a process of its own, and print what it takes."""
    DRAWN.get(part, lambda _: None)(folder)
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, "--folder", str(folder), "--part", part])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    print(
        f"{part}: {used.ru_utime + used.ru_stime:.1f} s of processor time in {time.perf_counter() - begin:.1f} s, "
        f"{used.ru_maxrss / 2**10:.0f} MiB" + (f", status {process.returncode}" if status else ""),
        flush=True,
    )


def main() -> None:
    """Measure the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument(
        "--pictures", type=Path, help="VOC folder for the part loader, instead of a drawn one"
    )
    parser.add_argument(
        "--share", type=float, help="share of the training images that the parts start and workers use"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.folder.resolve()
    if given.part is not None:
        globals()[given.part](folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if given.pictures is not None:
        os.environ[PICTURES] = str(given.pictures.resolve())
    if given.share is not None:
        os.environ[SHARE] = str(given.share)
    for part in given.only or PARTS:
        measure(part, folder)


if __name__ == "__main__":
    main()
