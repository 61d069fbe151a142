"""Exact float32 products on GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["exact_products"]


@contextmanager
def exact_products() -> Iterator[None]:
    """Context without TF32 on GPUs, which rounds the factors of float32 products to 11 bits and flips hash bits."""
    kinds: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision
