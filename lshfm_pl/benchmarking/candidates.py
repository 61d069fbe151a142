"""A fixed number of candidate boxes, so that post-processing is compared on equal terms.

How many boxes reach the NMS follows from the weights: random ones give none in a RetinaNet, whose scores start at
0.01, and thousands in an SSD.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lshfm_pl.data.batches import as_float
from lshfm_pl.detectors import Detector, build_detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.config import change_evaluation
from lshfm_pl.inference.detect import detect

__all__ = ["settle_norms", "threshold_for", "with_evaluation"]

KEEPS_ALL = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": 100_000}
"""Evaluation settings with which a detector returns every candidate."""


def with_evaluation(detector: Detector, settings: Mapping[str, Any]) -> Detector:
    """A detector with the same weights and image size, and other evaluation settings, see `change_evaluation`."""
    changed = build_detector(
        change_evaluation(detector.config, settings),
        num_classes=detector.num_classes,
        class_names=detector.class_names,
        load_backbone=False,
    )
    changed.load_state_dict(detector.state_dict())
    transform: Any = getattr(detector, "transform", None)
    if transform is not None:
        cast(Any, changed).transform.fixed_size = transform.fixed_size
    return changed.eval()


def threshold_for(count: int, detector: Detector, images: Sequence[Tensor]) -> tuple[float, float] | None:
    """The score threshold that `count` boxes of an image exceed, on average over some images.

    Args:
        count: number of boxes.
        detector: in evaluation mode, on the CPU.
        images: uint8 [3, H, W] each.

    Returns:
        The threshold, and the number of boxes above it for an image, which is smaller than `count` if there are not
        as many candidates. None for a family without these evaluation settings.
    """
    if not KEEPS_ALL.keys() <= architecture_of(detector).evaluation.keys():
        return None
    # The published rule compares all boxes; its best candidates are those of torchvision's.
    fast = {"postprocess": "torchvision"} if "postprocess" in detector.config else {}
    all_of_them = with_evaluation(detector, {**KEEPS_ALL, **fast})
    with torch.inference_mode():  # not `detect`, which drops the boxes of label 0 behind the NMS
        found = all_of_them(as_float(list(images)))
    scores = torch.cat([of_image["scores"] for of_image in found]).sort(descending=True).values
    wanted = count * len(images)
    threshold = scores[wanted].item() if len(scores) > wanted else 0.0
    return threshold, (scores > threshold).sum().item() / len(images)


def settle_norms(detector: nn.Module, images: Sequence[Tensor]) -> None:
    """Give norms of random detectors the statistics of some images, layer by layer.

    With the statistics of their initialisation, features would grow or fade by orders of magnitude, scores would be
    equal, and arithmetic with tiny numbers is slow. Norms without statistics stay as they are.

    Args:
        detector: in evaluation mode.
        images: uint8 [3, H, W] each.
    """

    def settle(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [part for part in detector.modules() if isinstance(getattr(part, "running_var", None), Tensor)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    try:
        detect(detector, images)  # type: ignore[arg-type]
    finally:
        for hook in hooks:
            hook.remove()
