"""Valid numbers and names of config keys, so that a wrong one is refused before anything is loaded."""

import importlib
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lshfm_pl.cli.names import alternatives, close_choices
from lshfm_pl.errors import first_few

__all__ = ["CHOICES", "RANGES", "Range", "choices_of", "range_of", "wrong_choice", "wrong_number"]

LARGEST_SEED = 2**32 - 1
"""The largest seed of numpy and Lightning."""

LISTED = 8
"""Number of names that a message lists."""


class Range(NamedTuple):
    """A range of numbers.

    Args:
        least: the smallest number.
        most: the largest number.
        is_open: whether `least` itself is excluded.
        all_of_them: a further number, such as −1, that means "all".
        is_share: whether the number is a count, or, with a decimal point, a share of at most 1.0.
    """

    least: float
    most: float = math.inf
    is_open: bool = False
    all_of_them: float | None = None
    is_share: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range. Infinity and NaN never are."""
        if value == self.all_of_them:
            return True
        if not math.isfinite(value) or (self.is_share and isinstance(value, float) and value > 1):
            return False
        return (value > self.least if self.is_open else value >= self.least) and value <= self.most

    def words(self) -> str:
        """A description for messages."""
        if self.is_share:
            return "a whole number, or a share from 0.0 to 1.0"
        least = f"above {_plain(self.least)}" if self.is_open else f"of at least {_plain(self.least)}"
        further = f", or {_plain(self.all_of_them)} for all" if self.all_of_them is not None else ""
        if math.isfinite(self.most):
            return f"a number {least} and at most {_plain(self.most)}{further}"
        return f"a number {least}{further}"


COUNT = Range(1)
FROM_0 = Range(0)
ABOVE_0 = Range(0, is_open=True)
SHARE = Range(0, 1)
SEED = Range(0, LARGEST_SEED)
BATCHES = Range(0, is_share=True)

RANGES = {
    # By the last part of the key
    "anchor_ratio": Range(1),
    "anchor_sizes": ABOVE_0,
    "ap_images": COUNT,
    "ap_loss": FROM_0,
    "aspect_ratio_groups": FROM_0,
    "attention_weight": FROM_0,
    "backbone_lr_factor": ABOVE_0,
    "background_weight": FROM_0,
    "batch_size": COUNT,
    "batch_pixels": COUNT,
    "beta": FROM_0,
    "bg_iou_thresh": SHARE,
    "bias_images": COUNT,
    "box_batch_size_per_image": COUNT,
    "box_bg_iou_thresh": SHARE,
    "box_detections_per_img": COUNT,
    "box_fg_iou_thresh": SHARE,
    "box_head_width": COUNT,
    "box_nms_thresh": SHARE,
    "box_positive_fraction": SHARE,
    "box_score_thresh": SHARE,
    "box_weight": FROM_0,
    "candidates": COUNT,
    "channel_weight": FROM_0,
    "class_weight": FROM_0,
    "clip_grad_norm": ABOVE_0,
    "decay_from": FROM_0,
    "detections_per_img": COUNT,
    "ema_decay": SHARE,
    "epoch": FROM_0,
    "epochs": COUNT,
    "eval_batch_size": COUNT,
    "every_n_epochs": COUNT,
    "every_n_minutes": ABOVE_0,
    "every_n_steps": COUNT,
    "every_seconds": FROM_0,
    "every_steps": COUNT,
    "feature_weight": FROM_0,
    "fg_iou_thresh": SHARE,
    "first_pixel": SHARE,
    "foreground_weight": FROM_0,
    "index": FROM_0,
    "inter_weight": FROM_0,
    "intra_weight": FROM_0,
    "iou": SHARE,
    "layer_decay": Range(0, 1, is_open=True),
    "first_steps": COUNT,
    "flip_probability": SHARE,
    "fpn_channels": COUNT,
    "fpn_strides": COUNT,
    "gamma": ABOVE_0,
    "hashes_per_step": COUNT,
    "height": COUNT,
    "image_height": COUNT,
    "image_size": COUNT,
    "image_std": ABOVE_0,
    "image_width": COUNT,
    "jobs": COUNT,
    "kd_beta": FROM_0,
    "l2_weight": FROM_0,
    "least_score": SHARE,
    "levels": COUNT,
    "limit": COUNT,
    "lr": ABOVE_0,
    "lsh_weight": FROM_0,
    "masked_share": SHARE,
    "max_size": COUNT,
    "memory_repeats": COUNT,
    "milestones": FROM_0,
    "mimic_warmup_steps": FROM_0,
    "mimic_weight": FROM_0,
    "min_size": COUNT,
    "momentum": SHARE,
    "nms_thresh": SHARE,
    "norm_eps": ABOVE_0,
    "of_last": COUNT,
    "num_boxes": COUNT,
    "num_classes": Range(2),
    "num_hashes": COUNT,
    "num_images": COUNT,
    "num_test": COUNT,
    "num_train": COUNT,
    "num_val": COUNT,
    "num_workers": FROM_0,
    "opset": Range(17, 20),
    "pixels": FROM_0,
    "poolings": COUNT,
    "random": COUNT,
    "reductions": COUNT,
    "reference_batch_size": COUNT,
    "reference_size": COUNT,
    "relation_weight": FROM_0,
    "repeats": COUNT,
    "resamples": FROM_0,
    "rpn_bg_iou_thresh": SHARE,
    "rpn_fg_iou_thresh": SHARE,
    "rpn_nms_thresh": SHARE,
    "rpn_positive_fraction": SHARE,
    "rpn_post_nms_top_n_test": COUNT,
    "rpn_post_nms_top_n_train": COUNT,
    "rpn_pre_nms_top_n_test": COUNT,
    "rpn_pre_nms_top_n_train": COUNT,
    "rpn_score_thresh": SHARE,
    "scene_seed": SEED,
    "score": FROM_0,
    "score_slack": FROM_0,
    "score_thresh": SHARE,
    "score_threshold": SHARE,
    "seed": SEED,
    "seeds": COUNT,
    "share": FROM_0,
    "size_divisible": COUNT,
    "spatial_weight": FROM_0,
    "std": ABOVE_0,
    "stop_after": COUNT,
    "temperature": ABOVE_0,
    "split_seed": FROM_0,
    "threads": COUNT,
    "topk_candidates": COUNT,
    "undecided": SHARE,
    "unlabelled_share": SHARE,
    "unpaired": SHARE,
    "until": ABOVE_0,
    "trainable_stages": Range(0, 5),
    "warmup_factor": SHARE,
    "warmup_steps": FROM_0,
    "weight_decay": FROM_0,
    "width": ABOVE_0,
    # By the whole key
    "check.images": COUNT,
    "int8.images": COUNT,
    "data.image_size": Range(64),
    "distill.pseudo_labels.score": SHARE,
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.devices": Range(1, all_of_them=-1),
    "trainer.gradient_clip_val": FROM_0,
    "trainer.limit_test_batches": BATCHES,
    "trainer.limit_train_batches": BATCHES,
    "trainer.limit_val_batches": BATCHES,
    "trainer.log_every_n_steps": FROM_0,
    "trainer.max_epochs": Range(-1),
    "trainer.max_steps": Range(-1),
    "trainer.num_nodes": COUNT,
    "trainer.num_sanity_val_steps": Range(-1),
    "trainer.overfit_batches": BATCHES,
    "trainer.val_check_interval": Range(0, is_open=True, is_share=True),
}
"""Key, or its last part → its range. The range of a list applies to its items."""

ITEM_RANGES = {"seeds": SEED, "trainer.devices": FROM_0}
"""Key → range of a list's items, if a single number means a count."""

NUMBERED = {"trainer.devices": re.compile(r"-1|\d+(,\d+)*,?"), "device": re.compile(r"[a-z]+:\d+|mps|xpu")}
"""Key → pattern of further texts that contain device numbers."""

CHOICES = {
    # By the last part of the key
    "balance": ("fixed", "share"),
    "bias": ("mean", "median"),
    "box_loss": ("giou", "iou_log"),
    "category_ids": ("contiguous", "keep"),
    "decay": ("multistep", "cosine", "one_cycle"),
    "device": ("cpu", "cuda", "cuda:1"),
    "dtype": ("float32", "float16"),
    "fpn_norm": ("bn",),
    "fix_form": ("coco", "voc"),
    "hash_loss": ("bce", "l1", "l2"),
    "inherit": ("neck", "head"),
    "match_classes": ("by_name", "none"),
    "neck": ("fpn", "none"),
    "norm": ("frozen_bn", "bn", "bn_frozen_stats", "gn", "ln", "none"),
    "on_bad_sample": ("error", "skip"),
    "point": ("penultimate", "pyramid"),
    "postprocess": ("torchvision", "published"),
    "split": ("train", "val", "test"),
    "start_method": ("fork", "spawn", "forkserver"),
    "tower_norm": ("gn", "none"),
    "train_labels": ("annotations", "teacher"),
    "what": ("step", "data", "eval", "inference", "methods", "compiled"),
    "which": ("student", "teacher", "raw", "ema"),
    # By the whole key
    "data.split": (),  # shares, such as 0.8/0.1/0.1
    "precision": ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16"),
    "role": ("student", "teacher"),
    "schedule.optimizer.name": ("sgd", "adamw"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.devices": ("auto",),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16"),
    "trainer.profiler": ("simple", "advanced", "pytorch"),
    "trainer.strategy": (
        "auto",
        "ddp",
        "ddp_find_unused_parameters_true",
        "ddp_find_unused_parameters_false",
        "ddp_spawn",
        "ddp_fork",
    ),
}
"""Key, or its last part → its valid texts."""

REGISTRIES = {
    "architecture": "lshfm_pl.detectors.architecture",
    "backbone": "lshfm_pl.detectors.backbones.backbone",
}
"""Last part of a key → the module whose `built_in_names()` are its valid texts.

The module imports torch, so it is imported by name and only if such a key is given. A value with a dot or a slash
is an import path or the name of a library's backbone, which the module itself checks.
"""

AMONG_OTHERS = ("profiler", "strategy", "which")
"""Keys that accept other texts too. For these, only a text that is similar to a choice is refused."""


def range_of(key: str) -> Range | None:
    """The range of a key; None if any number is valid."""
    return RANGES.get(key) or RANGES.get(key.rpartition(".")[2])


def choices_of(key: str) -> tuple[str, ...]:
    """The valid texts of a key; () if any text is valid."""
    last = key.rpartition(".")[2]
    if last in REGISTRIES:
        return importlib.import_module(REGISTRIES[last]).built_in_names()
    return CHOICES[key] if key in CHOICES else CHOICES.get(last, ())


def wrong_number(key: str, value: Any) -> str | None:
    """The message for an invalid number; None if it is valid."""
    numbers = range_of(key) or Range(-math.inf)
    if isinstance(value, list):
        numbers = ITEM_RANGES.get(key, numbers)
    wrong = next((number for number in _numbers(value) if not numbers.holds(number)), None)
    if wrong is None:
        return None
    expected = numbers.words() if math.isfinite(numbers.least) and math.isfinite(wrong) else "a finite number"
    return f"{key}: expected {expected}, found {_plain(wrong)}"


def wrong_choice(key: str, value: Any) -> str | None:
    """The message for an invalid text; None if it is valid."""
    if key.rpartition(".")[2] in REGISTRIES and isinstance(value, str) and ("." in value or "/" in value):
        return None
    choices = choices_of(key)
    if not choices or not isinstance(value, str) or value in choices:
        return None
    if key in NUMBERED and NUMBERED[key].fullmatch(value):
        return None
    close = ["cuda"] if value == "gpu" else close_choices(value, choices)
    if key.rpartition(".")[2] in AMONG_OTHERS and not close:
        return None
    advice = f"; did you mean {alternatives([f'{key}={name}' for name in close])}?" if close else ""
    numbers = range_of(key)
    expected = f"one of {first_few(choices, LISTED)}" if len(choices) > 1 else choices[0]
    return f"{key}: expected {f'{numbers.words()}, or ' if numbers else ''}{expected}, found {value}{advice}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)
