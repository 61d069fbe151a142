"""Synthetic scenes of simple shapes, written in VOC layout.

A scene has a smooth background (a 3 × 3 grid of colours), two lines as clutter, and one to five shapes of six
classes. Colours are random, so that only the form determines the class. Shapes may cover each other. A shape is
marked difficult if less than `DIFFICULT_BELOW` of it is visible, or if its colour is close to the background. Boxes
are tight around the visible part.
"""

import dataclasses
import hashlib
import json
import reprlib
from pathlib import Path

import numpy as np
from PIL import Image

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes, temporary_folder
from lshfm_pl.seeding import LARGEST_SEED

__all__ = ["DIFFICULT_BELOW", "SHAPE_CLASSES", "ShapesSpec", "generate_shapes", "shapes_folder"]

SHAPE_CLASSES = ("circle", "cross", "diamond", "ring", "square", "triangle")
"""The classes of shapes; `SHAPE_CLASSES[i]` has label `i + 1`."""

DIFFICULT_BELOW = 0.55
"""A shape with a lower visible share of its pixels is marked difficult."""

_RECIPE_VERSION = 1
_STAMP = "shapes.json"
_LARGEST_STAMP = 10_000
"""Bytes."""
_DRAWN_AT_LEAST = 0.25
_FAINT_SHARE = 0.04
_PLACEMENT_TRIES = 20
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesSpec:
    """The parameters of a set of scenes. Equal values give equal files.

    Args:
        image_size: side of the square scenes in pixels; the radii (11 to 30 at 128) scale with it.
        num_train: number of scenes in the split `train`.
        num_val: number of scenes in the split `val`.
        num_test: number of scenes in the split `test`.
        seed: seed of the scenes, 0 to 2^32 - 1.

    Raises:
        LSHFMError: a number is too small, or the seed is too large.
    """

    image_size: int = 128
    num_train: int = 600
    num_val: int = 100
    num_test: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"image_size": 64, "num_train": 1, "num_val": 1, "num_test": 1, "seed": 0}
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest[name]:
                raise LSHFMError(
                    f"The shapes data set needs a whole number of at least {lowest[name]} for {name}, "
                    f"found {value!r}."
                )
        if self.seed > LARGEST_SEED:
            raise LSHFMError(
                f"The shapes data set needs a whole number of at most {LARGEST_SEED} for seed, "
                f"found {self.seed!r}."
            )

    @property
    def stamp(self) -> dict[str, int]:
        """The parameters and the version of the recipe, as written next to the scenes."""
        return {"recipe_version": _RECIPE_VERSION, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class _SceneObject:
    """A shape in a scene; `box` is (xmin, ymin, xmax, ymax) in VOC's 1-based inclusive pixels."""

    name: str
    box: tuple[int, int, int, int]
    difficult: bool


def shapes_folder(root: str | Path, spec: ShapesSpec) -> Path:
    """The folder of a set of scenes below `root`. Other parameters give another folder."""
    digest = hashlib.sha256(json.dumps(spec.stamp, sort_keys=True).encode()).hexdigest()
    return Path(root).expanduser() / f"shapes_{digest[:8]}"


def generate_shapes(root: str | Path, spec: ShapesSpec) -> Path:
    """Write the scenes in VOC layout below `root` unless they exist, and return their folder.

    Several processes may do this at the same time: each writes its own folder, and the first to finish renames it.

    Raises:
        LSHFMError: the folder exists but contains something else, or can't be written.
    """
    folder = shapes_folder(root, spec)
    if folder.exists():
        _check_stamp(folder, spec)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(f".{folder.name}_", folder.parent) as temporary:
            unfinished = temporary / folder.name
            _write_scenes(unfinished, spec)
            unfinished.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise LSHFMError(
                f"Can't write the shapes data set to {folder}: {error}. Choose another data.root."
            ) from error
        _check_stamp(folder, spec)
    return folder


def _check_stamp(folder: Path, spec: ShapesSpec) -> None:
    try:
        found = json.loads(read_bytes(folder / _STAMP, limit=_LARGEST_STAMP))
    except (LSHFMError, ValueError, RecursionError):
        found = None
    if found != spec.stamp:
        raise LSHFMError(
            f"{folder} should hold shapes made with {spec.stamp}, but its {_STAMP} says {reprlib.repr(found)}.\n"
            "Delete that folder to have it made again, or choose another data.root."
        )


def _write_scenes(folder: Path, spec: ShapesSpec) -> None:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    numbers = {"train": spec.num_train, "val": spec.num_val, "test": spec.num_test}
    for split_number, (split, number) in enumerate(numbers.items()):
        image_ids = [f"{split}_{index:06d}" for index in range(number)]
        for index, image_id in enumerate(image_ids):
            # RandomState, because numpy guarantees its stream; that of Generator may change.
            random = np.random.RandomState([spec.seed, split_number, index])
            pixels, objects = _draw_scene(random, spec.image_size)
            path = folder / "JPEGImages" / f"{image_id}.jpg"
            Image.fromarray(pixels).save(path, quality=_JPEG_QUALITY, subsampling=0)
            text = _annotation_text(image_id, spec.image_size, objects)
            (folder / "Annotations" / f"{image_id}.xml").write_text(text, encoding="utf-8", newline="\n")
        lines = "".join(f"{image_id}\n" for image_id in image_ids)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="utf-8", newline="\n")
    (folder / _STAMP).write_text(json.dumps(spec.stamp, indent=2) + "\n", encoding="utf-8")


def _draw_scene(random: np.random.RandomState, size: int) -> tuple[np.ndarray, list[_SceneObject]]:
    """Draw a scene: uint8 [size, size, 3] RGB, and its objects in drawing order."""
    canvas = _background(random, size)
    for _ in range(2):
        canvas[_line(random, size)] = random.uniform(0, 255, 3)
    names: list[str] = []
    masks: list[np.ndarray] = []
    faint: list[bool] = []
    for _ in range(random.randint(1, 6)):
        name = SHAPE_CLASSES[random.randint(len(SHAPE_CLASSES))]
        mask = _place(random, size, name, masks)
        if mask is None:
            continue
        surroundings = canvas[mask].mean(axis=0)
        faint.append(bool(random.uniform() < _FAINT_SHARE))
        canvas[mask] = _colour(random, surroundings, faint[-1])
        names.append(name)
        masks.append(mask)
    canvas += 4 * random.standard_normal(canvas.shape)
    visible = _visible(masks)
    objects = [
        _SceneObject(
            names[i],
            _bounding_box(visible[i]),
            faint[i] or visible[i].sum() < DIFFICULT_BELOW * masks[i].sum(),
        )
        for i in range(len(names))
    ]
    return canvas.clip(0, 255).round().astype(np.uint8), objects


def _background(random: np.random.RandomState, size: int) -> np.ndarray:
    """Float [size, size, 3]: a 3 × 3 grid of colours, blended with smoothstep weights 3t² − 2t³."""
    corners = random.uniform(30, 225, (3, 3, 3))
    position = np.linspace(0, 2, size)
    distance = np.abs(position[:, None] - np.arange(3)).clip(0, 1)
    weights = 1 - distance**2 * (3 - 2 * distance)
    rows = np.einsum("yi,ijc->yjc", weights, corners)
    return np.einsum("xj,yjc->yxc", weights, rows)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The x and y coordinates of all pixel centres, broadcastable to [size, size]."""
    centres = np.arange(size) + 0.5
    return centres[None, :], centres[:, None]


def _line(random: np.random.RandomState, size: int) -> np.ndarray:
    """Bool [size, size]: the pixels of a random line segment."""
    x, y = _grid(size)
    start, end = random.uniform(0, size, (2, 2))
    half_width = random.uniform(0.5, 1.5) * size / 128
    direction = end - start
    along = ((x - start[0]) * direction[0] + (y - start[1]) * direction[1]) / max(direction @ direction, 1e-9)
    along = along.clip(0, 1)
    return np.hypot(x - start[0] - along * direction[0], y - start[1] - along * direction[1]) <= half_width


def _place(random: np.random.RandomState, size: int, name: str, masks: list[np.ndarray]) -> np.ndarray | None:
    """The mask of a shape that leaves enough of the earlier shapes visible; None if no place was found."""
    for _ in range(_PLACEMENT_TRIES):
        radius = random.uniform(11, 30) * size / 128
        centre_x, centre_y = random.uniform(radius, size - radius, 2)
        mask = _shape_mask(name, size, centre_x, centre_y, radius, random.uniform(-0.3, 0.3))
        visible = _visible([*masks, mask])
        if all(
            seen.sum() >= _DRAWN_AT_LEAST * drawn.sum() for seen, drawn in zip(visible, masks, strict=False)
        ):
            return mask
    return None


def _shape_mask(
    name: str, size: int, centre_x: float, centre_y: float, radius: float, angle: float
) -> np.ndarray:
    """Bool [size, size]: the pixels whose centre is inside the shape, which fits into a circle of `radius`."""
    x, y = _grid(size)
    x, y = (x - centre_x) / radius, (y - centre_y) / radius
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    distance = np.hypot(u, v)
    match name:
        case "circle":
            return distance <= 1
        case "ring":
            return (distance <= 1) & (distance >= 0.6)
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) <= np.sqrt(0.5)
        case "diamond":
            return np.abs(u) / 0.6 + np.abs(v) <= 1
        case "cross":
            return (np.minimum(np.abs(u), np.abs(v)) <= 0.25) & (np.maximum(np.abs(u), np.abs(v)) <= 0.95)
        case "triangle":
            # Equilateral with the apex up: the three sides are half a radius from the centre.
            return (v <= 0.5) & (np.sqrt(0.75) * np.abs(u) - 0.5 * v <= 0.5)
    raise ValueError(f"unknown shape {name}")


def _colour(random: np.random.RandomState, surroundings: np.ndarray, faint: bool) -> np.ndarray:
    """A colour at a distance of at least 90 (of 442) from the surroundings, or about 20 if `faint`."""
    if faint:
        return surroundings + 12 * np.sign(random.uniform(-1, 1, 3))
    colours = random.uniform(0, 255, (50, 3))
    distances = np.linalg.norm(colours - surroundings, axis=1)
    return colours[np.argmax(distances >= 90)]


def _visible(masks: list[np.ndarray]) -> list[np.ndarray]:
    """The visible part of each shape, which later shapes do not cover."""
    visible = []
    covered = np.zeros_like(masks[0])
    for mask in reversed(masks):
        visible.append(mask & ~covered)
        covered = covered | mask
    return visible[::-1]


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows = np.flatnonzero(mask.any(axis=1)) + 1
    columns = np.flatnonzero(mask.any(axis=0)) + 1
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _annotation_text(image_id: str, size: int, objects: list[_SceneObject]) -> str:
    lines = [
        "<annotation>",
        f"  <filename>{image_id}.jpg</filename>",
        f"  <size><width>{size}</width><height>{size}</height><depth>3</depth></size>",
    ]
    for item in objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
        lines += [
            "  <object>",
            f"    <name>{item.name}</name>",
            f"    <difficult>{int(item.difficult)}</difficult>",
            f"    <bndbox>{box}</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
