"""Reading hash matrices from files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lshfm_pl.detectors.architecture import known_architectures
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.state_dicts import refuse_not_finite
from lshfm_pl.errors import LSHFMError

__all__ = ["read_hash_file"]

HASH_OF_TERM = re.compile(r"(mimic\.[^.]+\.loss\.)weight(_\d+)?")
"""Key of a hash matrix in the `state_dict` of a training checkpoint. One of several ends with its width."""

NAMES = re.compile(r"(weight|bias)(_\d+)?")

OLDER_PREFIXES = ("", "mimic.")
"""Prefixes of `weight` and `bias`: in files of a hash alone, and in older training checkpoints (without terms)."""


def read_hash_file(path: str | Path) -> Mapping[str, Any]:
    """Read `weight` and `bias` of a hash from a file, or `weight_<D>` and `bias_<D>` of each of several widths D.

    Args:
        path: a file of these tensors, or a training checkpoint of this project or of the reference
            implementation. If a checkpoint has several hashes, the first one is read.

    Raises:
        LSHFMError: there is no such file, or it is not a file of tensors.
    """
    content = read_checkpoint(path)
    if isinstance(content, Mapping):
        states = [content, *(content[key] for key in ("state_dict", "model") if key in content)]
        for state in (state for state in states if isinstance(state, Mapping)):
            named = {key: value for key, value in state.items() if isinstance(key, str)}
            of_terms = [
                term[1]
                for key, value in named.items()
                if (term := HASH_OF_TERM.fullmatch(key)) and getattr(value, "ndim", 0) == 2
            ]
            published = [family.hash_prefix for family in known_architectures() if family.hash_prefix]
            for prefix in (*OLDER_PREFIXES, *of_terms, *published):
                found = {
                    key.removeprefix(prefix): value
                    for key, value in named.items()
                    if key.startswith(prefix) and NAMES.fullmatch(key.removeprefix(prefix))
                }
                if any(name.startswith("weight") for name in found):
                    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
                    refuse_not_finite(f"distill.hash_weights: {path}", tensors)
                    return found
    raise LSHFMError(f"distill.hash_weights: {path} holds no hash matrix 'weight' [H, D]")
