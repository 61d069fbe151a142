"""Running a detector on pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lshfm_pl.data.batches import as_float
from lshfm_pl.detectors import Detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics.inputs import drop_background

__all__ = ["choose_device", "detect"]


def choose_device(name: str | None) -> torch.device:
    """The device with this name; None chooses a GPU if there is one, else the CPU.

    Raises:
        LSHFMError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise LSHFMError(f"device: expected cpu, cuda or cuda:<number>, found {name} ({reason})") from error
    return device


def detect(detector: Detector, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Detect objects in images.

    Args:
        detector: in evaluation mode.
        images: uint8 [3, H, W] each, on any device.

    Returns:
        For each image `boxes` [N, 4] in its pixels, `labels` [N] from 1, and `scores` [N], all on the CPU.
    """
    device = next(detector.parameters()).device
    with torch.inference_mode():
        found = detector(as_float([image.to(device) for image in images]))
    return [drop_background({key: value.cpu() for key, value in of_image.items()}) for of_image in found]
