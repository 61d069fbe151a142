"""Short benchmarks: a step of the published pair, the loader, and NMS."""

from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from torchvision.ops import batched_nms

from lshfm_pl.benchmarking.data import measure_loaders
from lshfm_pl.benchmarking.step import measure_steps
from lshfm_pl.benchmarking.timing import median_seconds
from lshfm_pl.cli.own_folder import composed
from lshfm_pl.selfchecks.findings import Line

__all__ = ["check_loader", "check_nms", "check_step"]

ALONE = ("published=false", "memory=false", "output_dir=unused")


def check_loader(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """Pictures per second of the loader, on the CPU."""
    settings = config.speed
    loader = [
        "what=data", f"num_images={settings.loader_images}", f"num_workers={settings.loader_workers}", "repeats=3",
    ]  # fmt: skip
    rate = measure_loaders(composed("benchmark", [*loader, *ALONE]))["images_per_second"]["ours"]
    text = f"{rate:.0f} images/s of 500×375, workers: {settings.loader_workers}"
    yield Line("loader", "measured", text, {"images_per_second": rate})


def check_step(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """Times of a step of the published pair."""
    chosen = [*config.speed[device.type].pair, *config.speed.loss]
    measured = measure_steps(composed("benchmark", [*chosen, *ALONE, f"device={device}"]))
    text = ", ".join(f"{name} {value:.3f} s" for name, value in measured["seconds"].items())
    ratio = measured["ratios"]["distill_over_floor"]
    figures = {**measured["seconds"], **measured["ratios"]}
    yield Line(" ".join(chosen), "measured", f"{text}; {ratio:.2f} of plain + teacher", figures)


def check_nms(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """Boxes per second of NMS, which must keep the same boxes as on the CPU in float64."""
    settings = config.speed
    generator = torch.Generator().manual_seed(config.seed)
    corners = 500 * torch.rand(settings.boxes, 2, generator=generator)
    boxes = torch.cat(
        [corners, corners + 20 + 80 * torch.rand(settings.boxes, 2, generator=generator)], dim=1
    )
    scores = torch.randperm(settings.boxes, generator=generator).float()
    labels = torch.randint(0, settings.classes, (settings.boxes,), generator=generator)
    expected = batched_nms(boxes.double(), scores.double(), labels, settings.nms_thresh)
    on_device = [x.to(device) for x in (boxes, scores, labels)]
    kept = batched_nms(*on_device, settings.nms_thresh)
    seconds = median_seconds(
        {"nms": lambda: batched_nms(*on_device, settings.nms_thresh)},
        repeats=settings[device.type].repeats,
        warmup=1,
        device=device,
    )["nms"]
    rate = settings.boxes / seconds
    is_same = torch.equal(kept.cpu(), expected)
    yield Line(
        "NMS",
        "passed" if is_same else "failed",
        f"{rate:,.0f} boxes/s; keeps {'the same boxes' if is_same else 'other boxes'} as in float64 on the CPU",
        {"boxes_per_second": rate},
    )
