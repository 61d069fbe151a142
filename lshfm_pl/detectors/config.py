"""The keys of a detector's configuration: what each may hold, and refusal of everything else."""

import difflib
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lshfm_pl.errors import LSHFMError

__all__ = [
    "ARCHITECTURES",
    "EVALUATION_SETTINGS",
    "FASTER_RCNN_KEYS",
    "NECKS",
    "NORMS",
    "RETINANET_KEYS",
    "change_evaluation",
    "complete_config",
    "resolve_config",
]

ARCHITECTURES = ("fasterrcnn", "retinanet")
NORMS = ("frozen_bn", "bn", "bn_frozen_stats", "gn", "none")
#: Number of maps with each. With a pyramid Faster R-CNN reads four stages and a max-pooled level, RetinaNet
#: three stages, P6 and P7.
NECKS = {"fpn": 5, "none": 1}


@dataclass(frozen=True)
class _Rule:
    """What a key may hold, in words and as a predicate."""

    expected: str
    holds: Callable[[Any], bool]


_LONGEST_TEXT = 1000
"""Characters of a name, path or URL."""
_LONGEST_LIST = 64
"""Sizes of an image, or anchors of a level."""
_LARGEST_NUMBER = 1e9
"""Of pixels, ratios and the like."""
_LARGEST_COUNT = 100_000
"""Of proposals, candidates or detections of an image."""
_MOST = {
    "fpn_channels": 4096,
    "box_head_width": 16_384,
    "box_pool_size": 64,
    "box_sampling_ratio": 64,
    "min_size": 4096,
    "max_size": 8192,
    "size_divisible": 1024,
    "width": 16,
}
"""What a key may be at most: a configuration may come with a file, and must not ask for all of the memory."""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_integer(value) or (isinstance(value, float) and math.isfinite(value))) and (
        abs(value) <= _LARGEST_NUMBER
    )


def _list_of(rule: _Rule, length: int | None = None) -> _Rule:
    count = "one or more" if length is None else str(length)
    return _Rule(
        f"a list of {count}, each {rule.expected}",
        lambda value: (
            isinstance(value, list)
            and (len(value) == length if length is not None else 0 < len(value) <= _LONGEST_LIST)
            and all(rule.holds(item) for item in value)
        ),
    )


def _one_of(*choices: str) -> _Rule:
    return _Rule("one of " + ", ".join(choices), lambda value: value in choices)


_TEXT = _Rule("a text", lambda value: isinstance(value, str) and 0 < len(value) <= _LONGEST_TEXT)
_OPTIONAL_TEXT = _Rule("imagenet, a path, a URL or null", lambda value: value is None or _TEXT.holds(value))
_NULL = _Rule("null, as there is no pyramid (neck: none)", lambda value: value is None)
_POSITIVE = _Rule("a number above 0", lambda value: _is_number(value) and value > 0)
_NOT_NEGATIVE = _Rule("a number, 0 or above", lambda value: _is_number(value) and value >= 0)
_FRACTION = _Rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_FINITE = _Rule("a number", _is_number)


def _whole(key: str, least: int = 1) -> _Rule:
    most = _MOST.get(key, _LARGEST_COUNT)
    return _Rule(
        f"a whole number from {least} to {most}", lambda value: _is_integer(value) and least <= value <= most
    )


def _or_null(rule: _Rule) -> _Rule:
    return _Rule(f"{rule.expected}, or null", lambda value: value is None or rule.holds(value))


_COMMON_RULES = {
    "name": _TEXT,
    "architecture": _one_of(*ARCHITECTURES),
    "backbone": _TEXT,
    "backbone_weights": _OPTIONAL_TEXT,
    "width": _Rule(
        f"a number above 0, at most {_MOST['width']}",
        lambda value: _POSITIVE.holds(value) and value <= _MOST["width"],
    ),
    "neck": _one_of(*NECKS),
    "norm": _one_of(*NORMS),
    "norm_eps": _NOT_NEGATIVE,
    "trainable_stages": _Rule(
        "a whole number from 0 to 5", lambda value: _is_integer(value) and 0 <= value <= 5
    ),
    "image_mean": _list_of(_FINITE, 3),
    "image_std": _list_of(_POSITIVE, 3),
    "min_size": _list_of(_whole("min_size")),
    "max_size": _whole("max_size"),
    "size_divisible": _whole("size_divisible"),
}
_NECK_RULES = {
    neck: {
        "fpn_channels": _whole("fpn_channels") if neck == "fpn" else _NULL,
        "anchor_sizes": _list_of(_list_of(_POSITIVE), levels),
        "anchor_aspect_ratios": _list_of(_list_of(_POSITIVE), levels),
    }
    for neck, levels in NECKS.items()
}

#: Handed by the same name to torchvision.models.detection.FasterRCNN.
FASTER_RCNN_KEYS = (
    "rpn_pre_nms_top_n_train",
    "rpn_pre_nms_top_n_test",
    "rpn_post_nms_top_n_train",
    "rpn_post_nms_top_n_test",
    "rpn_nms_thresh",
    "rpn_fg_iou_thresh",
    "rpn_bg_iou_thresh",
    "rpn_batch_size_per_image",
    "rpn_positive_fraction",
    "rpn_score_thresh",
    "box_score_thresh",
    "box_nms_thresh",
    "box_detections_per_img",
    "box_fg_iou_thresh",
    "box_bg_iou_thresh",
    "box_batch_size_per_image",
    "box_positive_fraction",
)
#: Handed by the same name to torchvision.models.detection.RetinaNet.
RETINANET_KEYS = (
    "fg_iou_thresh",
    "bg_iou_thresh",
    "score_thresh",
    "nms_thresh",
    "topk_candidates",
    "detections_per_img",
)
#: What can be changed when a trained detector is evaluated.
EVALUATION_SETTINGS = ("postprocess", "score_thresh", "nms_thresh", "detections_per_img")


def _torchvision_rule(key: str) -> _Rule:
    return _FRACTION if key.endswith(("_thresh", "_fraction")) else _whole(key)


_ARCHITECTURE_RULES = {
    "fasterrcnn": {
        "box_head_width": _or_null(_whole("box_head_width")),
        "box_pool_size": _whole("box_pool_size"),
        "box_sampling_ratio": _whole("box_sampling_ratio", least=0),
        **{key: _torchvision_rule(key) for key in FASTER_RCNN_KEYS},
    },
    "retinanet": {
        "tower_norm": _one_of("gn", "none"),
        "postprocess": _one_of("torchvision", "published"),
        **{key: _torchvision_rule(key) for key in RETINANET_KEYS},
    },
}

#: What detectors were before they could be otherwise.
_BEFORE = {"fasterrcnn": {"neck": "fpn"}, "retinanet": {"neck": "fpn", "postprocess": "torchvision"}}


def resolve_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a detector's configuration into plain Python and check it.

    Args:
        config: the flat keys of a ``conf/model`` file, as a dict or an OmegaConf node.

    Returns:
        A new dict of str, int, float, None and lists of these, in the order of ``config``.

    Raises:
        LSHFMError: a key is unknown, missing, of the other architecture, or holds what it may not.
    """
    plain = {str(key): _plain(value) for key, value in config.items()}
    architecture = plain.get("architecture")
    if not (isinstance(architecture, str) and architecture in ARCHITECTURES):
        raise LSHFMError(
            f"model.architecture: expected one of {', '.join(ARCHITECTURES)}, found {reprlib.repr(architecture)}."
        )
    # Without a neck, or with one that there is not, the message is the key's own.
    neck_rules = _NECK_RULES.get(str(plain.get("neck")), _NECK_RULES["fpn"])
    rules = {**_COMMON_RULES, **neck_rules, **_ARCHITECTURE_RULES[architecture]}
    for key in plain:
        if key not in rules:
            raise LSHFMError(_unknown_key(key, architecture, list(rules)))
    missing = [key for key in rules if key not in plain]
    if missing:
        raise LSHFMError(
            f"model: {architecture} needs the key{'s' * (len(missing) > 1)} {', '.join(missing)}."
        )
    for key, rule in rules.items():
        if not rule.holds(plain[key]):
            raise LSHFMError(f"model.{key}: expected {rule.expected}, found {reprlib.repr(plain[key])}.")
    anchors = {
        len(sizes) * len(ratios)
        for sizes, ratios in zip(plain["anchor_sizes"], plain["anchor_aspect_ratios"], strict=True)
    }
    if len(anchors) > 1:
        raise LSHFMError(
            "model.anchor_sizes, model.anchor_aspect_ratios: one head serves every level, so each level "
            f"needs the same number of anchors (sizes × ratios); found {sorted(anchors)}."
        )
    return plain


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys that a configuration lacks because its file was written before there were such keys."""
    return {**_BEFORE.get(str(config.get("architecture")), {}), **config}


def change_evaluation(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with other evaluation settings, which no weight depends on.

    Args:
        config: of a detector.
        settings: any of ``EVALUATION_SETTINGS``; None keeps what the configuration has. The thresholds and the
            limit are those of the detections, called ``box_…`` in a Faster R-CNN.

    Raises:
        LSHFMError: another key.
    """
    unknown = [key for key in settings if key not in EVALUATION_SETTINGS]
    if unknown:
        raise LSHFMError(f"{unknown[0]}: expected one of {', '.join(EVALUATION_SETTINGS)}.")
    prefix = "box_" if config.get("architecture") == "fasterrcnn" else ""
    given = {key: value for key, value in settings.items() if value is not None}
    return {**config, **{key if key == "postprocess" else prefix + key: given[key] for key in given}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _unknown_key(key: str, architecture: str, valid: list[str]) -> str:
    for other, rules in _ARCHITECTURE_RULES.items():
        if other != architecture and key in rules:
            return f"model.{key}: a key of {other}, but this detector is a {architecture}; leave it out."
    closest = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)[0]
    return f"model.{key}: no such key; the closest one is {closest}."
