"""Files in the format of the published training script, with the names of torchvision 0.8."""

import argparse
import gzip
import json
from pathlib import Path

import torch

LAYOUTS = Path(__file__).parent / "goldens/layouts"
#: Names, shapes and frozen parameters of the published detectors under torchvision 0.8.2, and which of them the
#: distillation checkpoints hold.
PUBLISHED = json.loads(gzip.decompress((LAYOUTS / "published.json.gz").read_bytes()))


def published_layout(name):
    return PUBLISHED["detectors"][name]["tensors"]


def published_file(path, weights, **changes):
    """What the published training script writes."""
    content = {
        "model": weights,
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {"last_epoch": 23},
        "args": argparse.Namespace(model="retinanet_r50_with_r101", beta=7.0),
        "epoch": 23,
        **changes,
    }
    torch.save(content, path)
    return path


def zeros(layout, prefix=""):
    """A state dict with a given layout that needs almost no memory and disk space."""
    weights = {}
    for key, shape in layout:
        dtype = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
        weights[prefix + key] = torch.zeros((), dtype=dtype).expand(shape)
    return weights


def old_name(key):
    """A parameter's name in torchvision 0.8."""
    for kind in ("inner_blocks", "layer_blocks"):
        for level in range(4):
            key = key.replace(f"{kind}.{level}.0.", f"{kind}.{level}.")
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    for index in range(3, -1, -1):
        for head in ("classification_head", "regression_head"):
            key = key.replace(f"{head}.conv.{index}.0.", f"{head}.conv.{2 * index}.")
    return key


def old_names(state_dict):
    return {old_name(key): value for key, value in state_dict.items()}
