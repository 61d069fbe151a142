"""Detectors and mimic losses on a device, compared with torch's plain operations on the CPU."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lshfm_pl.cli import as_dict
from lshfm_pl.cli.names import group_choices
from lshfm_pl.cli.own_folder import composed
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import Pair, build_losses
from lshfm_pl.mimic.nested import map_features, tensors_of
from lshfm_pl.selfchecks.findings import Line, judged
from lshfm_pl.selfchecks.subjects import (
    detector_named,
    loss_and_gradient,
    plain_operations,
    precision_of_products,
    random_batch,
    relative_errors,
    to_device,
    training_losses,
)
from lshfm_pl.training import DetectionModule, DistillationModule
from lshfm_pl.training.precision import autocast

__all__ = ["check_detectors", "check_losses", "distillation_of", "settings_of_losses"]

CPU = torch.device("cpu")


def _precisions(config: DictConfig, device: torch.device) -> list[str]:
    first_with_tf32 = 8
    names = list(config.precisions[device.type])
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < first_with_tf32:
        names.remove("tf32")
    return names


def check_detectors(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """Training losses and gradient of the smallest student of each family in each precision."""
    for name in config.pairs:
        module = DetectionModule(detector_named(name, config.seed)).train()

        with plain_operations():
            # On the CPU itself float32 would be compared with itself.
            dtype = torch.float64 if device.type == "cpu" else torch.float32
            expected = _whole_step(module, config, CPU, "32-true", dtype)
        for precision in _precisions(config, device):
            found = _whole_step(module, config, device, precision, torch.float32)
            yield judged(
                f"{name}, {precision}",
                relative_errors(found, expected),
                config.tolerances.detectors[precision],
            )


def _whole_step(
    module: DetectionModule, config: DictConfig, device: torch.device, precision: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum of the training losses of a copy of the module, and the gradient of its parameters."""
    module = copy.deepcopy(module).to(device, dtype)
    images, targets = to_device(random_batch(config), device)
    images = [image.to(dtype) for image in images]
    targets = [{**target, "boxes": target["boxes"].to(dtype)} for target in targets]
    with precision_of_products(precision), autocast(precision, device):
        loss = training_losses(module, (images, targets), config.seed)
    return loss_and_gradient(loss, [p for p in module.parameters() if p.requires_grad])


def settings_of_losses(config: DictConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """A name and the settings of each loss at each of its points."""
    for loss in sorted(set(group_choices("distill")) - {"none"}):
        settings = as_dict(composed("benchmark", [f"distill={loss}", "output_dir=unused"]).distill)
        settings |= {key: value for key, value in as_dict(config.for_small_images).items() if key in settings}
        if loss in config.at_points:
            for point in config.points:
                yield f"{loss} at {point}", {**settings, "point": point}
        else:
            yield loss, settings


def distillation_of(
    student: str, teacher: str, settings: Mapping[str, Any], config: DictConfig
) -> DistillationModule:
    """A student and a teacher of random weights with a loss, on the CPU in training mode.

    Raises:
        LSHFMError: the family does not have the point of the loss.
    """
    settings = dict(settings)
    of_teacher, of_student = detector_named(teacher, config.seed + 1), detector_named(student, config.seed)
    losses = build_losses(settings.pop("name"), of_teacher, student=of_student, **settings)
    return DistillationModule(of_student, of_teacher, losses).train()


def check_losses(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """Every loss at each of its points in every family and precision, on equal features."""
    losses = list(settings_of_losses(config))
    for student, teacher in config.pairs.items():
        for loss, settings in losses:
            title = f"{student}, {loss}"
            try:
                module = distillation_of(student, teacher, settings, config)
            except LSHFMError as error:
                yield Line(title, "not checked", str(error))
                continue
            with plain_operations():
                batch = random_batch(config)
                with torch.no_grad(), module.tap.recording() as record:
                    training_losses(DetectionModule(module.detector).train(), batch, config.seed)
                    pairs = module.tap.pairs(record)
            for precision in _precisions(config, device):
                of_precision = _in_precision(pairs, precision)
                with plain_operations():
                    expected = _terms(module, _as_float(of_precision), record["batch"], CPU, "32-true")
                found = _terms(module, of_precision, record["batch"], device, precision)
                errors = relative_errors(found, expected)
                if device.type == "cpu" and not any(errors.values()):
                    same = "on the CPU its operations are those of the reference; it gives equal bits"
                    yield Line(f"{title}, {precision}", "not checked", same)
                    continue
                yield judged(f"{title}, {precision}", errors, config.tolerances.losses[precision])


def _terms(
    module: DistillationModule, pairs: Mapping[str, Pair], batch: Any, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    """The sum of the mimic terms of given features, and its gradient for the student's features."""
    module.to(device)
    module.teacher.to(device)
    moved = {
        point: pair._replace(
            student=map_features(lambda x: _leaf(x, device), pair.student),
            teacher=map_features(lambda x: x.to(device), pair.teacher),
            weights=to_device(pair.weights, device),
        )
        for point, pair in pairs.items()
    }
    leaves = [leaf for pair in moved.values() for leaf in tensors_of(pair.student)]
    with precision_of_products(precision), autocast(precision, device):
        terms = module.mimic_terms(moved, to_device(batch, device))
    return loss_and_gradient(torch.stack(list(terms.values())).sum(), leaves)


def _leaf(features: Tensor, device: torch.device) -> Tensor:
    return features.detach().to(device, copy=True).requires_grad_()


def _in_precision(pairs: Mapping[str, Pair], precision: str) -> dict[str, Pair]:
    """In bf16-mixed, maps are bfloat16. Rows, which are sampled from them, stay float32."""

    def rounded(features: Tensor) -> Tensor:
        return features.bfloat16() if precision == "bf16-mixed" and features.ndim == 4 else features

    return _changed(pairs, rounded)


def _as_float(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    return _changed(pairs, Tensor.float)


def _changed(pairs: Mapping[str, Pair], change: Callable[[Tensor], Tensor]) -> dict[str, Pair]:
    return {
        point: pair._replace(
            student=map_features(change, pair.student), teacher=map_features(change, pair.teacher)
        )
        for point, pair in pairs.items()
    }
