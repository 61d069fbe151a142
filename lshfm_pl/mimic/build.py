"""From the `distill` config group to a mimic head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.published import PUBLISHED_HASH_PREFIXES
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.features import MimicSize
from lshfm_pl.mimic.heads import L2, LSH, LSHL2, MimicHead

__all__ = ["MIMIC_HEADS", "build_mimic_head", "read_hash_file"]

MIMIC_HEADS: dict[str, type[MimicHead]] = {"l2": L2, "lsh": LSH, "lshl2": LSHL2}

CHECKPOINT_PREFIX = "mimic."
"""Where our training checkpoints keep the head's tensors in their `state_dict`."""


def build_mimic_head(name: str, size: MimicSize, **settings: Any) -> MimicHead:
    """The head that `distill=<name>` asks for.

    Args:
        name: l2, lsh or lshl2.
        size: of the teacher: D, and the std that `std=None` stands for.
        settings: keyword arguments of the head; also `hash_weights`, a file whose W (and b) to take.

    Raises:
        LSHFMError: unknown name, bad number, or a hash file that doesn't fit.
    """
    if name not in MIMIC_HEADS:
        raise LSHFMError(f"distill: expected one of {', '.join(MIMIC_HEADS)}, found {name!r}")
    head_type = MIMIC_HEADS[name]
    if not issubclass(head_type, LSH):
        return head_type(**settings)
    hash_weights = settings.pop("hash_weights", None)
    if settings.get("std") is None:
        settings["std"] = size.classifier_std
    head = head_type(size.num_features, **settings)
    if hash_weights is not None:
        if settings.get("num_hashes") is not None:
            raise LSHFMError("distill.num_hashes: the file of distill.hash_weights sets it; leave it null")
        head.load_hash(read_hash_file(hash_weights), str(hash_weights))
    return head


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
                    return {name: state.get(f"{prefix}{name}") for name in ("weight", "bias")}
    raise LSHFMError(f"distill.hash_weights: {path} holds no hash matrix 'weight' [H, D]")
