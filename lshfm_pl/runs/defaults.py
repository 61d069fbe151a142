"""Settings that a comparison chooses for a data set: image size, anchors, batch size, epochs, schedule.

A key that the user gives replaces a choice. The numbers of these rules are in `conf/fit/default.yaml`:

- *image size*: the short side at which 90 % of the objects have sides of at least 24 pixels, within limits and not
  larger than the images themselves;
- *anchors*: quantiles of the objects' sizes at that image size, one for each pyramid level, at least 25 % apart. If
  the levels of the other detector of the pair have objects of fixed sizes (FCOS), the anchors follow them: it does
  harm to mimic maps for objects of other sizes;
- *batch size*: 8, or less if the images are large, or so few that an epoch would have very few steps;
- *epochs*: as many as a given number of steps needs, within limits;
- *schedule*: AdamW for detectors trained from scratch, the published SGD with cosine decay for detectors with
  ImageNet weights, fine-tuning for those that start from a whole detector, whose anchors stay too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lshfm_pl.data.dataset import DetectionRecord
from lshfm_pl.detectors.architecture import default_setting

__all__ = ["Choice", "Pictures", "choose", "choose_side", "is_from_scratch", "measure"]


@dataclass(frozen=True)
class Pictures:
    """Statistics of the images and objects of a data set.

    Attributes:
        count: number of images.
        short: median of the short sides, in pixels.
        long_over_short: 95 % quantile of the ratio of long to short side.
        sizes: float64 [N], sorted; the square root of each object's area, relative to its image's short side.
        one_shape: whether all images have the same size.
    """

    count: int
    short: float
    long_over_short: float
    sizes: np.ndarray
    one_shape: bool


@dataclass(frozen=True)
class Choice:
    """A chosen setting: its subject, its overrides of `train`, and a text with the value and the reason."""

    subject: str
    overrides: tuple[str, ...]
    text: str


def measure(records: Sequence[DetectionRecord]) -> Pictures:
    """Measure the images and objects of a data set, which has at least one image."""
    sides = np.array([(record.width, record.height) for record in records], dtype=np.float64)
    short, long = sides.min(axis=1), sides.max(axis=1)
    sizes = [
        np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) / side
        for boxes, side in (
            (np.asarray(record.boxes), side) for record, side in zip(records, short, strict=True)
        )
        if len(boxes)
    ]
    return Pictures(
        count=len(records),
        short=float(np.median(short)),
        long_over_short=float(np.quantile(long / short, 0.95)),
        sizes=np.sort(np.concatenate(sizes)) if sizes else np.array([]),
        one_shape=len(np.unique(sides, axis=0)) == 1,
    )


def is_from_scratch(model: Mapping[str, Any]) -> bool:
    """Whether the training of a `model` config starts from neither a detector's nor a backbone's weights."""
    return model.get("weights") is None and model.get("backbone_weights") is None


def choose_side(pictures: Pictures, rules: Mapping[str, Any], *, from_scratch: bool) -> tuple[int, str]:
    """Choose the short side of the images; returns it in pixels, and a text with the reason."""
    multiple, least = rules["side_multiple"], rules["least_side"]
    most = rules["most_side"]["scratch" if from_scratch else "pretrained"]
    own = max(multiple, int(pictures.short) // multiple * multiple)
    if not len(pictures.sizes):
        side, reason = least, "there is no object to measure"
    else:
        small = float(np.quantile(pictures.sizes, rules["small_quantile"]))
        wanted = math.ceil(rules["small_pixels"] / max(small, 1e-6) / multiple) * multiple
        side = min(max(wanted, least), most)
        share = round(100 * (1 - rules["small_quantile"]))
        reason = f"{share} % of the objects then have at least {small * min(side, own):.0f} pixels a side"
        if wanted > most and own > most:
            kind = "a detector from scratch" if from_scratch else "a detector"
            reason += f"; {most} is the maximum for {kind}"
    if side >= own:
        side, reason = own, f"the size of the images themselves; {reason}" if len(pictures.sizes) else reason
    return side, f"short side {side} pixels (median of the images: {pictures.short:.0f}): {reason}"


def choose(
    pictures: Pictures,
    rules: Mapping[str, Any],
    *,
    role: str,
    model: Mapping[str, Any],
    side: int,
    side_reason: str,
    batch_size: int | None,
    epochs: int | None,
    trainer: Mapping[str, Any],
    other: Mapping[str, Any],
) -> list[Choice]:
    """Choose the settings of one run.

    Args:
        pictures: statistics of the training set.
        rules: the content of `conf/fit/default.yaml`.
        role: `teacher` or `student`.
        model: config of the detector.
        side: short side of the images, in pixels.
        side_reason: text with that size and its reason.
        batch_size: the given batch size; None chooses one.
        epochs: the given number of epochs; None chooses one.
        trainer: config of the trainer, which may limit the steps.
        other: config of the other detector of the pair. If its levels have objects of fixed sizes, the anchors
            follow these. If no object can be measured, the student gets the anchors of this teacher.
    """
    from_scratch = is_from_scratch(model)
    long_side = math.ceil(side * pictures.long_over_short / 32) * 32
    choices = [Choice("size", (f"model.min_size=[{side}]", f"model.max_size={long_side}"), side_reason)]
    anchors = _anchor_choice(pictures, rules, model=model, side=side, other=other)
    choices += [anchors] if anchors is not None else []
    batch, batch_reason = batch_size, ""
    if batch is None:
        batch, batch_reason = _batch(pictures, rules, side * long_side)
        evaluated = (f"data.eval_batch_size={batch}",) if pictures.one_shape else ()
        choices.append(Choice("batch", (f"data.batch_size={batch}", *evaluated), batch_reason))
    steps = steps_an_epoch(pictures.count, batch, trainer)
    is_given = epochs is not None
    if epochs is None:
        least, most = rules["least_epochs"][role], rules["most_epochs"][role]
        epochs = min(max(round(rules["steps"][role] / steps), least), most)
        every = max(1, round(epochs / rules["validations"]))
        epochs = -(-epochs // every) * every  # so that the last epoch ends with a validation
    else:
        every = _divisor(epochs, max(1, round(epochs / rules["validations"])))
    steps_text = _steps_text(epochs, steps, pictures.count, batch, trainer)
    choices.append(
        Choice(
            "epochs",
            (f"schedule.epochs={epochs}", f"trainer.check_val_every_n_epoch={every}"),
            f"{epochs}{' as given' if is_given else ''}, {steps_text}; "
            f"validation after every {f'{every} epochs' if every > 1 else 'epoch'}",
        )
    )
    if model.get("weights") is not None:
        kind, name, reason = "detector", "AdamW, conf/schedule/finetune", "from a trained detector"
    elif from_scratch:
        kind, name = "scratch", "AdamW, conf/schedule/quickstart"
        reason = "no ImageNet weights: trained from scratch"
    else:
        kind, name = "pretrained", "SGD, conf/schedule/voc_24e with cosine decay"
        reason = "from ImageNet weights"
    choices.append(Choice("schedule", tuple(rules["schedule"][kind]), f"{name}: {reason}"))
    return choices


def steps_an_epoch(images: int, batch: int, trainer: Mapping[str, Any], *, limited: bool = False) -> int:
    """Optimizer steps of an epoch, at least 1.

    Args:
        images: images in the training set.
        batch: images per device and step.
        trainer: config of the trainer; devices that are not given as a number or list count as one.
        limited: whether to apply the limits of an epoch's length, see `_limits`.
    """
    devices = trainer.get("devices")
    each = len(devices) if isinstance(devices, list | tuple) else devices
    processes = each if isinstance(each, int) and each > 0 else 1
    batches = math.ceil(images / (batch * processes * int(trainer.get("num_nodes") or 1)))
    for value in _limits(trainer).values() if limited else ():
        # As in Lightning, an integer is a number of batches, and a float is a share of all batches.
        batches = min(batches, value if isinstance(value, int) else int(batches * value))
    return max(1, math.ceil(batches / int(trainer.get("accumulate_grad_batches") or 1)))


def _limits(trainer: Mapping[str, Any]) -> dict[str, int | float]:
    """Key of the trainer → the number or share of batches to which it limits an epoch."""
    limits: dict[str, int | float] = {}
    for key in ("limit_train_batches", "overfit_batches", "fast_dev_run"):
        value = trainer.get(key)
        if value is True:  # fast_dev_run=true: one batch
            limits[key] = 1
        elif isinstance(value, int | float) and value > 0:
            limits[key] = value
    return limits


def _steps_text(epochs: int, whole: int, images: int, batch: int, trainer: Mapping[str, Any]) -> str:
    """The steps per epoch and in all, with the keys of the trainer that limit them."""
    steps = steps_an_epoch(images, batch, trainer, limited=True)
    causes = list(_limits(trainer)) if steps != whole else []
    in_all = steps * (1 if trainer.get("fast_dev_run") else epochs)
    most = trainer.get("max_steps")
    if isinstance(most, int) and 0 <= most < in_all:
        in_all = most
        causes.append("max_steps")
    why = f" (limited by {', '.join(f'trainer.{key}={trainer[key]}' for key in causes)})" if causes else ""
    return f"{steps} step{'s' * (steps != 1)} each, {in_all:,} in all{why}"


def _anchor_choice(
    pictures: Pictures,
    rules: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    side: int,
    other: Mapping[str, Any],
) -> Choice | None:
    """The anchors; None for a detector without anchors, or one that keeps its own. See `choose`."""
    # The box layers of a trained detector have learned to move its own anchors.
    if "anchor_sizes" not in model or model.get("weights") is not None:
        return None
    number = _num_sizes(model)
    if default_setting(other.get("architecture"), "sizes_by_stride"):
        first = float(rules["anchor_of_fixed_sizes"])
        anchors = _as_anchors(model, [first * 2**index for index in range(number)])
        name = other.get("name", other["architecture"])
        text = (
            f"from {first:.0f} pixels on, doubled by level: the levels of {name} have objects of fixed sizes"
        )
    elif len(pictures.sizes):
        anchors = _as_anchors(model, _measured_sizes(pictures, rules, number, side))
        low, high = anchors[0][0], anchors[-1][-1]
        text = f"{low} to {high} pixels: the sizes of the middle 80 % of {len(pictures.sizes):,} objects"
    elif _fit_each_other(model, other):
        anchors = [list(level) for level in other["anchor_sizes"]]
        text = "those of the given teacher, as the training pictures have no labels to measure"
    else:
        return None
    return Choice("anchors", (f"model.anchor_sizes={str(anchors).replace(' ', '')}",), text)


def _measured_sizes(pictures: Pictures, rules: Mapping[str, Any], number: int, side: int) -> list[float]:
    """Anchor sizes in pixels by the quantiles of the objects' sizes, as many as wanted."""
    given = rules["anchor_quantiles"]
    quantiles = np.interp(np.linspace(0, 1, number), np.linspace(0, 1, len(given)), given)
    sizes = [float(size) * side for size in np.quantile(pictures.sizes, quantiles)]
    for index in range(len(sizes) // 2 - 1, -1, -1):
        sizes[index] = min(sizes[index], sizes[index + 1] / rules["anchor_ratio"])
    sizes[0] = max(sizes[0], rules["least_anchor"])
    for index in range(1, len(sizes)):
        sizes[index] = max(sizes[index], sizes[index - 1] * rules["anchor_ratio"])
    return sizes


def _has_all_sizes(model: Mapping[str, Any]) -> bool:
    """Whether each level of a model has all sizes, as that of a single map, instead of an octave of its own."""
    first, *others = model["anchor_sizes"]
    return first[-1] > 2 * first[0] and all(level == first for level in others)


def _num_sizes(model: Mapping[str, Any]) -> int:
    """The number of sizes that a model's anchors need, each at the start of an octave."""
    return len(model["anchor_sizes"][0] if _has_all_sizes(model) else model["anchor_sizes"])


def _as_anchors(model: Mapping[str, Any], sizes: Sequence[float]) -> list[list[int]]:
    """Anchors of these sizes for as many levels as a model has, with as many at each, which divide an octave."""
    levels = model["anchor_sizes"]
    if _has_all_sizes(model):
        return [[round(size) for size in sizes]] * len(levels)
    parts = len(levels[0])
    return [[round(size * 2 ** (part / parts)) for part in range(parts)] for size in sizes]


def _fit_each_other(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> bool:
    """Whether a detector can have the teacher's anchors: as many sizes at each level."""
    own, others = ([len(level) for level in each.get("anchor_sizes") or ()] for each in (model, teacher))
    return own == others


def _batch(pictures: Pictures, rules: Mapping[str, Any], pixels: int) -> tuple[int, str]:
    batch = rules["batch_size"]
    reason = f"{batch} images a step, the default"
    while batch > rules["least_batch"] and batch * pixels > rules["batch_pixels"]:
        batch //= 2
        reason = f"{batch} images a step: a larger batch would need much memory at this image size"
    while batch > rules["least_batch"] and pictures.count / batch < rules["steps_an_epoch"]:
        batch //= 2
        reason = f"{batch} images a step: the training set has only {pictures.count} images"
    return batch, reason


def _divisor(epochs: int, wanted: int) -> int:
    """The largest divisor of `epochs` up to `wanted`, so that the last epoch ends with a validation."""
    return next(every for every in range(min(wanted, epochs), 0, -1) if epochs % every == 0)
