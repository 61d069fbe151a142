"""What a detector costs to keep and to run."""

import time
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lshfm_pl.detectors import Detector
from lshfm_pl.modules import count_parameters
from lshfm_pl.modules.detection import as_float
from lshfm_pl.winograd import without_winograd

__all__ = ["EvaluationTimer", "detector_cost"]


class EvaluationTimer(pl.Callback):
    """Times the batches of the test loop: forward, post-processing and taking the predictions to the CPU."""

    def __init__(self) -> None:
        self._seconds_per_image: list[float] = []
        self._start = 0.0

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop it: the metrics have copied the predictions, so that a GPU is done too."""
        self._seconds_per_image.append((time.perf_counter() - self._start) / len(batch[0]))

    def ms_per_image(self) -> float | None:
        """Median over the batches; None before the first."""
        return 1000 * median(self._seconds_per_image) if self._seconds_per_image else None


def detector_cost(detector: Detector, image: Tensor) -> dict[str, float]:
    """Sizes of a detector, and the work of detecting in one image.

    Args:
        detector: on any device; put into eval mode.
        image: uint8 [3, H, W].

    Returns:
        `parameters` and `trainable_parameters`; `weights_bytes` of all its tensors, which is a file of the weights
        alone to within some kB; `gflops` of the forward pass on `image`: 10⁹ operations of convolutions and matrix
        products, a multiply-add being two, without NMS, RoI pooling and the like.
    """
    trainable, frozen = count_parameters([detector])
    device = next(detector.parameters()).device
    eager = torch.compiler.set_stance("force_eager")  # operations are counted one by one
    with eager, torch.no_grad(), without_winograd(), FlopCounterMode(display=False) as counter:
        detector.eval()(as_float([image.to(device)]))
    return {
        "parameters": trainable + frozen,
        "trainable_parameters": trainable,
        "weights_bytes": sum(tensor.nbytes for tensor in detector.state_dict().values()),
        "gflops": counter.get_total_flops() / 1e9,
    }
