"""From the `distill` config group to the losses."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.published import PUBLISHED_HASH_PREFIXES
from lshfm_pl.detectors.state_dicts import refuse_not_finite
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.calibration import BiasCalibration
from lshfm_pl.mimic.features import MimicSize, class_activation, mimic_size
from lshfm_pl.mimic.losses.base import FeatureHead, MimicHead, require_number
from lshfm_pl.mimic.losses.kd import KD
from lshfm_pl.mimic.losses.l2 import L2
from lshfm_pl.mimic.losses.lsh import LSH, LSHL2

__all__ = ["MIMIC_HEADS", "DistillLosses", "build_losses", "build_mimic_head", "read_hash_file"]

MIMIC_HEADS: dict[str, type[FeatureHead]] = {"l2": L2, "lsh": LSH, "lshl2": LSHL2}

CHECKPOINT_PREFIX = "mimic."
"""Where our training checkpoints keep the head's tensors in their `state_dict`."""


Head = TypeVar("Head", bound=MimicHead)


class DistillLosses(NamedTuple):
    """What a `distill` config asks for; at least one of the two losses is there."""

    #: Between the features before the classifier.
    features: FeatureHead | None
    #: Between the class logits.
    logits: KD | None = None
    #: How to set the bias of the hash before training; None keeps it.
    bias: BiasCalibration | None = None


def build_losses(name: str, teacher: nn.Module, **settings: Any) -> DistillLosses:
    """The losses of a file of `conf/distill`.

    Args:
        name: kd, or one of `MIMIC_HEADS`.
        teacher: a Faster R-CNN or RetinaNet.
        settings: the file's other keys. `kd_beta` above 0 adds the logit loss, with `temperature`; `bias` (0,
            mean or median), `bias_even_median` and `bias_images` are of the hash; the rest as `KD` or
            `build_mimic_head`.

    Raises:
        LSHFMError: unknown name or key, bad number, or a hash file that doesn't fit.
    """
    activation = class_activation(teacher)
    if name == "kd":
        return DistillLosses(None, _construct(KD, activation=activation, **settings))
    kd_beta, temperature = settings.pop("kd_beta", 0.0), settings.pop("temperature", 1.0)
    require_number("kd_beta", kd_beta)
    kd = KD(kd_beta, temperature=temperature, activation=activation)
    centre, num_images = settings.pop("bias", 0), settings.pop("bias_images", 1)
    even_median = settings.pop("bias_even_median", "mean")
    head = build_mimic_head(name, mimic_size(teacher), **settings)
    if str(centre) != "0" and not isinstance(head, LSH):
        raise LSHFMError(f"distill.bias: {name} has no hash; leave it out, or choose lsh or lshl2")
    return DistillLosses(
        head,
        kd if kd.beta > 0 else None,
        None if str(centre) == "0" else BiasCalibration(centre, num_images, even_median),
    )


def build_mimic_head(name: str, size: MimicSize, **settings: Any) -> FeatureHead:
    """The head that `distill=<name>` asks for.

    Args:
        name: l2, lsh or lshl2.
        size: of the teacher: D, and the std that `std=None` stands for.
        settings: keyword arguments of the head; also `hash_weights`, a file whose W (and b) to take.

    Raises:
        LSHFMError: unknown name or key, bad number, or a hash file that doesn't fit.
    """
    if name not in MIMIC_HEADS:
        raise LSHFMError(f"distill: expected one of kd, {', '.join(MIMIC_HEADS)}, found {name!r}")
    head_type = MIMIC_HEADS[name]
    if not issubclass(head_type, LSH):
        return _construct(head_type, **settings)
    hash_weights = settings.pop("hash_weights", None)
    if settings.get("std") is None:
        settings["std"] = size.classifier_std
    head = _construct(head_type, num_features=size.num_features, **settings)
    if hash_weights is not None:
        if settings.get("num_hashes") is not None:
            raise LSHFMError("distill.num_hashes: the file of distill.hash_weights sets it; leave it null")
        head.load_hash(read_hash_file(hash_weights), str(hash_weights))
    return head


def _construct(head_type: Callable[..., Head], **settings: Any) -> Head:
    try:
        return head_type(**settings)
    except TypeError as error:
        raise LSHFMError(f"distill: {error}") from error


def read_hash_file(path: str | Path) -> Mapping[str, Any]:
    """`weight` and `bias` of a hash from a file: {'weight', 'bias'}, or a training checkpoint, ours or published.

    Raises:
        LSHFMError: no such file, or not a file of tensors.
    """
    content = read_checkpoint(path)
    if isinstance(content, Mapping):
        states = [content, *(content[key] for key in ("state_dict", "model") if key in content)]
        for state in (state for state in states if isinstance(state, Mapping)):
            for prefix in ("", CHECKPOINT_PREFIX, *PUBLISHED_HASH_PREFIXES):
                if f"{prefix}weight" in state:
                    found = {name: state.get(f"{prefix}{name}") for name in ("weight", "bias")}
                    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
                    refuse_not_finite(f"distill.hash_weights: {path}", tensors)
                    return found
    raise LSHFMError(f"distill.hash_weights: {path} holds no hash matrix 'weight' [H, D]")
