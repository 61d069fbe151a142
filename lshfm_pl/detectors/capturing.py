"""CUDA graphs for the body and neck of a frozen detector: all of its kernels are started by one call."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.errors import LSHFMError

__all__ = ["MOST_GRAPHS", "ReplayedForward", "capture_backbone"]

MOST_GRAPHS = 16
"""Graphs of one detector. Each keeps the activations of its size in memory; other sizes run without a graph."""

WARM_UP_STEPS = 3
"""Forward passes before a capture, in which libraries allocate their workspaces and choose their algorithms."""

Forward = Callable[[Tensor], Any]


def capture_backbone(detector: Detector, *, device: torch.device) -> None:
    """Replay body and neck as a CUDA graph for every batch size and image size that occurs more than once.

    The names and weights of the detector stay the same. The weights must not change any more, and hooks inside of
    body and neck are not called in replays.

    Args:
        detector: a frozen detector, see `freeze`.
        device: device on which it will run.

    Raises:
        LSHFMError: the device is no CUDA device.
    """
    if device.type != "cuda":
        raise LSHFMError(
            f"trainer.cuda_graphs: expected a CUDA device, found {device.type}; leave it out, or use a GPU"
        )
    body = detector.get_submodule(architecture_of(detector).body_modules[0])
    body.forward = ReplayedForward(body.forward, _captured)


class ReplayedForward:
    """A function of a batch that is captured at the second batch of a size, and replayed from then on.

    Args:
        forward: the function, whose result is a tensor or a mapping of tensors.
        capture: makes a function for inputs like one batch that gives the same results.
    """

    def __init__(self, forward: Forward, capture: Callable[[Forward, Tensor], Forward]) -> None:
        self._forward = forward
        self._capture = capture
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._graphs: dict[tuple[Any, ...], Forward] = {}

    def __call__(self, batch: Tensor) -> Any:
        """The result for a batch [B, 3, H, W]. It stays valid after later calls."""
        # With gradients, the backward pass would need a graph too. Inference mode is for evaluations, whose tensors
        # could not be written to outside of it.
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return self._forward(batch)
        kind = batch.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (tuple(batch.shape), batch.stride(), batch.dtype, batch.device, autocast)
        if key not in self._graphs:
            self._seen[key] += 1
            if self._seen[key] < 2 or len(self._graphs) >= MOST_GRAPHS:
                return self._forward(batch)
            self._graphs[key] = self._capture(self._forward, batch)
        return self._graphs[key](batch)


def _captured(forward: Forward, like: Tensor) -> Forward:
    """Capture a forward pass of inputs like this one, as the documentation of `torch.cuda.graph` describes it."""
    images = like.clone()
    stream = torch.cuda.Stream(like.device)
    stream.wait_stream(torch.cuda.current_stream(like.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            forward(images)
    torch.cuda.current_stream(like.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A thread of the loader may copy to the device meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = forward(images)

    def replay(batch: Tensor) -> Any:
        images.copy_(batch)
        graph.replay()
        # The next replay overwrites the outputs, which the backward pass may still need.
        if isinstance(outputs, Tensor):
            return outputs.clone()
        return type(outputs)((name, value.clone()) for name, value in outputs.items())

    return replay
