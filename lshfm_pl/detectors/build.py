"""Building a detector from its configuration."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from lshfm_pl.detectors.architecture import architecture
from lshfm_pl.detectors.backbones.weights import load_backbone_weights
from lshfm_pl.detectors.config import resolve_config
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.narrow_maps import pad_narrow_maps
from lshfm_pl.kernels.winograd import use_winograd

__all__ = ["Detector", "build_detector"]


class Detector(nn.Module):
    """What ``build_detector`` returns, for type checkers: a detector that describes itself.

    The object itself is an instance of torchvision's (or another) class; this class is never instantiated.
    """

    #: The resolved configuration as plain Python: a ``conf/model`` file with all keys.
    config: dict[str, Any]
    #: Number of classes, background included.
    num_classes: int
    #: The names of labels 1, 2, …; empty if none were given.
    class_names: tuple[str, ...]
    #: One line that says what was loaded into the backbone.
    backbone_report: str
    #: What ``model.weights`` named for the training of this detector; missing if it named nothing.
    started_from: str
    #: What was taken from a teacher (``student.inherit``); missing if nothing was to be taken.
    inherit_report: object
    #: Name of that teacher; missing if nothing was to be taken.
    inherited_from: str
    #: What ``load_detector`` has loaded; ``str()`` gives one line.
    load_report: object


def build_detector(
    config: Mapping[str, Any],
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    load_backbone: bool = True,
) -> Detector:
    """Build a detector of the architecture that its configuration names, in training mode.

    In training it takes a list of images (float [3, H, W], RGB in 0..1) and a list of dicts with ``boxes``
    (float [N, 4], x1 y1 x2 y2 in pixels) and ``labels`` (int64 [N], from 1), and returns a dict of losses. In
    evaluation it takes the images and returns ``boxes``, ``labels`` and ``scores`` for each image.

    Args:
        config: all keys of a ``conf/model`` file, as a dict or an OmegaConf node.
        num_classes: number of classes, background included.
        class_names: names of labels 1 to ``num_classes - 1``.
        load_backbone: whether to load ``backbone_weights``; False if the weights of the whole detector are loaded
            afterwards.

    Returns:
        The detector with these attributes: ``config`` (the resolved configuration as plain Python),
        ``num_classes``, ``class_names`` (a tuple, empty if none are given), and ``backbone_report`` (one line that
        says what was loaded into the backbone).

    Raises:
        LSHFMError: a key of the configuration is invalid, or the backbone's weights are not available.
    """
    resolved = resolve_config(config)
    names = tuple(str(name) for name in class_names or ())
    if names and len(names) != num_classes - 1:
        raise LSHFMError(
            f"{resolved['name']}: {num_classes} classes with background need {num_classes - 1} class names, "
            f"found {len(names)}."
        )
    network = architecture(resolved["architecture"]).build(resolved, num_classes)
    use_winograd(network)
    pad_narrow_maps(network)
    # The fastest memory format for convolutions on CPUs and GPUs; feature maps inherit it from the kernels.
    detector = cast(Detector, network.to(memory_format=torch.channels_last))
    detector.config = resolved
    detector.num_classes = num_classes
    detector.class_names = names
    detector.backbone_report = (
        load_backbone_weights(detector, resolved) if load_backbone else "left to the detector's own weights"
    )
    return detector
