"""What a comparison chooses for the pictures of a data set: image size, anchors, batch, epochs, schedule.

A user's own key goes before each choice. The numbers of the rules are in `conf/fit/default.yaml`:

- *image size*: the short side at which all but the smallest tenth of the objects have 24 pixels a side, between
  limits and never above the pictures' own;
- *anchors*: at that size, quantiles of the objects' sizes, one a level of the pyramid, at least 25 % apart;
- *batch*: 8, less where the images are large or so few that an epoch would have hardly any steps;
- *epochs*: as many as give a number of steps, between limits;
- *schedule*: AdamW for detectors from scratch, the published SGD with cosine decay for those from ImageNet weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lshfm_pl.data.dataset import DetectionRecord

__all__ = ["Choice", "Pictures", "choose", "choose_side", "measure"]


@dataclass(frozen=True)
class Pictures:
    """What a set of pictures is like.

    `short` is the median short side in pixels, `long_over_short` the 95 % quantile of the ratio of the sides;
    `sizes` float64 [N] are the roots of the objects' areas, each as a share of its picture's short side, sorted;
    `one_shape` tells whether all pictures have one size.
    """

    count: int
    short: float
    long_over_short: float
    sizes: np.ndarray
    one_shape: bool


@dataclass(frozen=True)
class Choice:
    """A subject, its overrides of `train`, and what to tell: the value and the reason."""

    subject: str
    overrides: tuple[str, ...]
    told: str


def measure(records: Sequence[DetectionRecord]) -> Pictures:
    """Measure the pictures of a set that has at least one."""
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


def choose_side(pictures: Pictures, rules: Mapping[str, Any], *, from_scratch: bool) -> tuple[int, str]:
    """The short side of the images in pixels, and the reason."""
    multiple, least = rules["side_multiple"], rules["least_side"]
    most = rules["most_side"]["scratch" if from_scratch else "pretrained"]
    own = max(multiple, int(pictures.short) // multiple * multiple)
    if not len(pictures.sizes):
        side, reason = least, "no object to go by"
    else:
        small = float(np.quantile(pictures.sizes, rules["small_quantile"]))
        wanted = math.ceil(rules["small_pixels"] / max(small, 1e-6) / multiple) * multiple
        side = min(max(wanted, least), most)
        share = round(100 * (1 - rules["small_quantile"]))
        reason = f"{share} % of the objects then have at least {small * min(side, own):.0f} pixels a side"
        if wanted > most and own > most:
            kind = "a detector from scratch" if from_scratch else "a detector"
            reason += f"; {most} is the most that is chosen for {kind}"
    if side >= own:
        side, reason = own, f"that of the pictures; {reason}" if len(pictures.sizes) else reason
    return side, f"short side {side} pixels (the pictures' is {pictures.short:.0f}): {reason}"


def choose(
    pictures: Pictures,
    rules: Mapping[str, Any],
    *,
    role: str,
    model: Mapping[str, Any],
    side: int,
    side_told: str,
    batch_size: int | None,
    epochs: int | None,
    trainer: Mapping[str, Any],
) -> list[Choice]:
    """What is chosen for one run.

    Args:
        pictures: of its training set.
        rules: `conf/fit/default.yaml`.
        role: `teacher` or `student`.
        model: its config.
        side: short side of its images, in pixels.
        side_told: what to tell of it.
        batch_size: None chooses it.
        epochs: None chooses them, by the steps of whole epochs.
        trainer: its config, which may limit the steps.
    """
    from_scratch = model.get("backbone_weights") is None
    long_side = math.ceil(side * pictures.long_over_short / 32) * 32
    choices = [Choice("size", (f"model.min_size=[{side}]", f"model.max_size={long_side}"), side_told)]
    if len(pictures.sizes) and "anchor_sizes" in model:
        anchors = _anchors(pictures, rules, model, side)
        low, high = anchors[0][0], anchors[-1][-1]
        choices.append(
            Choice(
                "anchors",
                (f"model.anchor_sizes={str(anchors).replace(' ', '')}",),
                f"{low} to {high} pixels: the sizes of the middle 80 % of {len(pictures.sizes):,} objects",
            )
        )
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
        epochs = -(-epochs // every) * every  # so that the last one is validated
    else:
        every = _divisor(epochs, max(1, round(epochs / rules["validations"])))
    told_steps = _told_steps(epochs, steps, pictures.count, batch, trainer)
    choices.append(
        Choice(
            "epochs",
            (f"schedule.epochs={epochs}", f"trainer.check_val_every_n_epoch={every}"),
            f"{epochs}{' as given' if is_given else ''}, {told_steps}; "
            f"a validation after every {f'{every}' if every > 1 else 'one'}",
        )
    )
    kind = "scratch" if from_scratch else "pretrained"
    reason = "no ImageNet weights: trained from scratch" if from_scratch else "from ImageNet weights"
    name = (
        "AdamW, conf/schedule/quickstart" if from_scratch else "SGD, conf/schedule/voc_24e with cosine decay"
    )
    choices.append(Choice("schedule", tuple(rules["schedule"][kind]), f"{name}: {reason}"))
    return choices


def steps_an_epoch(images: int, batch: int, trainer: Mapping[str, Any], *, limited: bool = False) -> int:
    """Optimizer steps that Lightning makes of a training set in an epoch, at least 1.

    Args:
        images: of the set.
        batch: images a device and step.
        trainer: config of the trainer; devices that are not given as numbers count as one.
        limited: take notice of what cuts an epoch short, see `_limits`.
    """
    devices = trainer.get("devices")
    each = len(devices) if isinstance(devices, list | tuple) else devices
    processes = each if isinstance(each, int) and each > 0 else 1
    batches = math.ceil(images / (batch * processes * int(trainer.get("num_nodes") or 1)))
    for value in _limits(trainer).values() if limited else ():
        # As Lightning reads them: a whole number is one of batches, any other a share of all.
        batches = min(batches, value if isinstance(value, int) else int(batches * value))
    return max(1, math.ceil(batches / int(trainer.get("accumulate_grad_batches") or 1)))


def _limits(trainer: Mapping[str, Any]) -> dict[str, int | float]:
    """Key of the trainer → batches or share of them that it limits an epoch to."""
    limits: dict[str, int | float] = {}
    for key in ("limit_train_batches", "overfit_batches", "fast_dev_run"):
        value = trainer.get(key)
        if value is True:  # of fast_dev_run: one batch
            limits[key] = 1
        elif isinstance(value, int | float) and value > 0:
            limits[key] = value
    return limits


def _told_steps(epochs: int, whole: int, images: int, batch: int, trainer: Mapping[str, Any]) -> str:
    """Steps an epoch and in all, with the keys of the trainer that make them fewer."""
    steps = steps_an_epoch(images, batch, trainer, limited=True)
    causes = list(_limits(trainer)) if steps != whole else []
    in_all = steps * (1 if trainer.get("fast_dev_run") else epochs)
    most = trainer.get("max_steps")
    if isinstance(most, int) and 0 <= most < in_all:
        in_all = most
        causes.append("max_steps")
    why = f" (by {', '.join(f'trainer.{key}={trainer[key]}' for key in causes)})" if causes else ""
    return f"{steps} step{'s' * (steps != 1)} each, {in_all:,} in all{why}"


def _anchors(
    pictures: Pictures, rules: Mapping[str, Any], model: Mapping[str, Any], side: int
) -> list[list[int]]:
    """Sizes in pixels for each level of the model: as many as it has now, which divide an octave evenly."""
    sizes = [float(size) * side for size in np.quantile(pictures.sizes, rules["anchor_quantiles"])]
    for index in range(len(sizes) // 2 - 1, -1, -1):
        sizes[index] = min(sizes[index], sizes[index + 1] / rules["anchor_ratio"])
    sizes[0] = max(sizes[0], rules["least_anchor"])
    for index in range(1, len(sizes)):
        sizes[index] = max(sizes[index], sizes[index - 1] * rules["anchor_ratio"])
    of_model = model["anchor_sizes"]
    if len(of_model) == 1:  # one map has all sizes
        return [[round(size) for size in sizes]]
    parts = len(of_model[0])
    return [[round(size * 2 ** (part / parts)) for part in range(parts)] for size in sizes]


def _batch(pictures: Pictures, rules: Mapping[str, Any], pixels: int) -> tuple[int, str]:
    batch = rules["batch_size"]
    reason = f"{batch} images a step, the usual"
    while batch > rules["least_batch"] and batch * pixels > rules["batch_pixels"]:
        batch //= 2
        reason = f"{batch} images a step: larger ones would need much memory at this size"
    while batch > rules["least_batch"] and pictures.count / batch < rules["steps_an_epoch"]:
        batch //= 2
        reason = f"{batch} images a step: the training set has only {pictures.count}"
    return batch, reason


def _divisor(epochs: int, wanted: int) -> int:
    """The largest divisor of `epochs` up to `wanted`: the last epoch is validated."""
    return next(every for every in range(min(wanted, epochs), 0, -1) if epochs % every == 0)
