"""Weights that are a function of their names, so that no file is needed for them."""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

HEAD_OUTPUTS = ("cls_logits", "bbox_reg", "bbox_pred", "cls_score")
CLASS_PRIOR_LOGIT = -4.59511985013459


def procedural_state_dict(layout: Iterable[tuple[str, Sequence[int]]], prefix: str = "") -> dict[str, Tensor]:
    """Draw each tensor of a layout from a generator seeded by the CRC of its name.

    Args:
        layout: pairs of name (torchvision 0.8) and shape.
        prefix: what stands before the names in the seeds, such as "t_" or "s_".

    Returns:
        float32 tensors by the layout's names, without the prefix.
    """
    return {key: _procedural_tensor(prefix + key, tuple(shape)) for key, shape in layout}


def _procedural_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    generator = _generator(key)
    values = generator.standard_normal(shape)
    # Output layers and the hash matrix take their generator's second draw, all others the first.
    module, _, kind = key.rpartition(".")
    module_name = ".".join(module.split(".")[-2:])
    if "backbone.body" in key and ("bn" in module_name.split(".")[-1] or module_name == "downsample.1"):
        variance = 10 ** _generator(f"{module}.running_var").uniform(-3, 0.3, shape)
        if kind == "running_var":
            values = variance
        elif kind == "weight":
            values = np.sqrt(variance) * (1 + 0.1 * values) * (0.25 if module_name.endswith("bn3") else 1.0)
        elif kind == "running_mean":
            values = 0.1 * np.sqrt(variance) * values
        else:
            values = 0.1 * values
    elif "LSH_weight" in key:
        values = 0.02 * generator.standard_normal(shape) if kind == "weight" else np.zeros(shape)
    elif kind == "bias":
        values = 0.01 * values + (CLASS_PRIOR_LOGIT if "cls_logits" in key else 0.0)
    elif any(name in key for name in HEAD_OUTPUTS):
        values = 0.01 * generator.standard_normal(shape)
    else:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _generator(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode()))
