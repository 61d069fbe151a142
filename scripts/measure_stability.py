"""Train with the published schedule at several learning rates, and record in each step what grows.

    python scripts/measure_stability.py --factor 1 --factor 10 --steps 100 --output outputs/stability \\
        model=retinanet_resnet10fpn_tiny distill=lsh data=shapes teacher.checkpoint=…

The schedule is the published one (SGD, warm-up in the first epoch), without the guard. Each run prints one line
and writes a CSV file with every loss, the gradient norm of each part of the student, and the mean norm of its
mimicked features.
"""

import argparse
import csv
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from lshfm_pl.files import atomic_file
from lshfm_pl.mimic.features import tap_of
from lshfm_pl.paths import CONFIG_DIR
from lshfm_pl.training.build import build_module
from lshfm_pl.training.detection import DetectionModule, Place
from lshfm_pl.training.optim import build_optimizer, build_scheduler

PARTS = {
    "backbone": "backbone.",
    "rpn": "rpn.",
    "box_head": "roi_heads.",
    "classification": "head.classification_head.",
    "regression": "head.regression_head.",
}


def rows_of_run(config: DictConfig, steps: int) -> Iterator[dict[str, float]]:
    """One row per step, up to the first step that is not finite."""
    torch.manual_seed(config.seed)
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    module = build_module(config, datamodule).train()
    assert module.schedule is not None
    loader = datamodule.train_dataloader()
    optimizer = build_optimizer(module.detector.parameters(), module.schedule, datamodule.batch_size)
    scheduler = build_scheduler(optimizer, module.schedule, len(loader))
    norms = record_feature_norms(module.detector)
    for step in range(steps):
        epoch, batch_idx = divmod(step, len(loader))
        if batch_idx == 0:
            loader.batch_sampler.set_epoch(epoch)
            batches = iter(loader)
        losses = module.losses_at(next(batches), Place(step, epoch, batch_idx, 0))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        row = {"step": float(step), "lr": optimizer.param_groups[0]["lr"]}
        row |= {name: loss.item() for name, loss in losses.items()}
        row |= {"feature_norm": sum(norms) / max(1, len(norms)), **gradient_norms(module)}
        norms.clear()
        yield row
        if not all(map(math.isfinite, row.values())):
            return
        if module.schedule.clip_grad_norm is not None:
            clip_grad_norm_(module.detector.parameters(), module.schedule.clip_grad_norm)
        optimizer.step()
        scheduler.step()


def record_feature_norms(detector: nn.Module) -> list[float]:
    """A list to which each forward pass appends the mean norm of the penultimate features, one entry per map."""
    norms: list[float] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norms.append(float(inputs[0].detach().norm(dim=1).mean()))

    tap_of(detector).classifier.register_forward_pre_hook(record)
    return norms


def gradient_norms(module: DetectionModule) -> dict[str, float]:
    """Norm of the whole gradient, and of the gradient of each part of the student."""
    gradients = {name: p.grad for name, p in module.detector.named_parameters() if p.grad is not None}
    norms = {"gradient": float(get_total_norm(gradients.values()))}
    for part, prefix in PARTS.items():
        of_part = [gradient for name, gradient in gradients.items() if name.startswith(prefix)]
        if of_part:
            norms[f"gradient_{part}"] = float(get_total_norm(of_part))
    return norms


def main() -> None:
    """Train with every factor, write the rows, and print the outcome."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of the train config")
    parser.add_argument(
        "--factor", type=float, action="append", help="multiplies the published rate; can be repeated"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("outputs/stability"))
    arguments = parser.parse_intermixed_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for factor in arguments.factor or [1.0]:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = compose("train", ["schedule=voc_24e", "output_dir=.", *arguments.overrides])
        config.schedule.lr = config.schedule.lr * factor
        rows = list(rows_of_run(config, arguments.steps))
        name = (
            f"{config.model.name}_{config.distill.name}_x{factor:g}_clip{config.schedule.clip_grad_norm}.csv"
        )
        with atomic_file(arguments.output / name) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        ended = "finite" if math.isfinite(rows[-1]["gradient"]) else f"not finite in step {len(rows) - 1}"
        largest = max(row["gradient"] for row in rows if math.isfinite(row["gradient"]))
        print(f"{name}: {ended}; largest finite gradient {largest:.3g}", flush=True)


if __name__ == "__main__":
    main()
