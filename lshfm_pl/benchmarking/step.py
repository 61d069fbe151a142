"""Benchmark of a distillation step and its parts, compared with plain training and the reference implementation."""

import gc
import importlib.util
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from statistics import median
from types import ModuleType
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lshfm_pl.benchmarking.timing import in_own_process, reset_peak_memory, samples_in_turn
from lshfm_pl.cli import as_dict
from lshfm_pl.detectors import Detector, build_detector
from lshfm_pl.detectors.capturing import capture_backbone
from lshfm_pl.detectors.compiling import compile_backbones
from lshfm_pl.detectors.config import import_parts
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.memory import peak_memory_bytes
from lshfm_pl.kernels.switches import set_switches
from lshfm_pl.mimic import Moment, Pair, Terms, build_losses
from lshfm_pl.mimic.nested import map_features, tensors_of
from lshfm_pl.paths import CONFIG_DIR
from lshfm_pl.training import DetectionModule, DistillationModule
from lshfm_pl.training.precision import autocast, autocast_dtype

__all__ = ["PARTS", "StepParts", "load_published", "measure_steps", "peak_of", "refuse_unknown_precision"]

log = logging.getLogger(__name__)

PARTS = {
    "plain": "step of the student without a teacher",
    "teacher": "forward pass of the teacher, as far as the mimic term needs it",
    "mimic": "mimic term alone, forward and backward",
    "distill": "whole step of distillation",
    "reference": "the same step by the reference implementation, in float32",
}
"""Name of a part → its description."""

REFERENCE_LOSSES = ("l2", "lsh", "lshl2")
"""The losses of the reference implementation, which are at `penultimate`."""

PRECISIONS = ("32-true", "bf16-mixed")
DEVICES = ("cpu", "cuda")

MEMORY_STEPS = 2
"""Steps in a process that measures memory: the second step reuses memory that the first one freed."""


def load_published() -> ModuleType:
    """Import `benchmarks/published.py`, the reference implementation, which is not part of the package.

    Raises:
        LSHFMError: the file does not exist.
    """
    path = CONFIG_DIR.parent / "benchmarks" / "published.py"
    if not path.is_file():
        raise LSHFMError(
            f"benchmark: expected the reference implementation in {path}, which only a checkout of the repository "
            "has; found no file. Leave it out with published=false"
        )
    spec = importlib.util.spec_from_file_location("published", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refuse_unknown_precision(precision: str) -> None:
    """Raise an LSHFMError unless the benchmarks have this precision."""
    if precision not in PRECISIONS:
        raise LSHFMError(f"benchmark: precision: expected {' or '.join(PRECISIONS)}, found {precision}")


class StepParts:
    """The parts of a step on one random batch. Each part is a method that leaves no gradients behind.

    Args:
        config: see `conf/benchmark.yaml`.

    Raises:
        LSHFMError: the student has no teacher, or settings do not fit together.
    """

    def __init__(self, config: DictConfig) -> None:
        set_switches(as_dict(config.get("kernels")))
        torch.manual_seed(config.seed)
        if str(config.device).partition(":")[0] not in DEVICES:
            raise LSHFMError(f"benchmark: device: expected {' or '.join(DEVICES)}, found {config.device}")
        self.device = torch.device(config.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise LSHFMError("benchmark: device=cuda, but torch finds no GPU; give device=cpu")
        refuse_unknown_precision(config.precision)
        self.config = config
        self.images = [
            torch.rand(3, config.height, config.width, device=self.device) for _ in range(config.batch_size)
        ]
        self.targets = [self._random_boxes() for _ in self.images]

    def _random_boxes(self) -> dict[str, Tensor]:
        config = self.config
        size = torch.tensor([config.width, config.height])
        corners = torch.rand(config.num_boxes, 2) * size * 0.6
        sides = (0.05 + 0.3 * torch.rand(config.num_boxes, 2)) * size
        labels = torch.randint(1, config.num_classes, (config.num_boxes,))
        boxes = torch.cat([corners, corners + sides], dim=1)
        return {"boxes": boxes.to(self.device), "labels": labels.to(self.device)}

    def _build(self, model: dict[str, Any]) -> Detector:
        names = [f"class_{label}" for label in range(1, self.config.num_classes)]
        sides = self.config.height, self.config.width
        wanted = {"backbone_weights": None, "min_size": [min(sides)], "max_size": max(sides)}
        model = import_parts(model) | {key: value for key, value in wanted.items() if key in model}
        detector = build_detector(model, num_classes=len(names) + 1, class_names=names)
        tame_random_norms(detector)
        return detector.to(self.device)

    @cached_property
    def student(self) -> Detector:
        """The student of random weights, in training mode."""
        return self._compiled(self._build(as_dict(self.config.model))).train()

    @cached_property
    def teacher(self) -> Detector:
        """The teacher of random weights."""
        teacher = self._build_teacher().eval().requires_grad_(False)
        if not self.config.cuda_graphs:
            return self._compiled(teacher)
        capture_backbone(teacher, device=self.device)
        return teacher

    def _build_teacher(self) -> Detector:
        if self.config.teacher.detector is None:
            raise LSHFMError(
                f"benchmark: no teacher is known for {self.config.model.name}; give +model@teacher.detector=…"
            )
        return self._build(as_dict(self.config.teacher.detector))

    def _compiled(self, detector: Detector) -> Detector:
        if self.config.compile:
            compile_backbones(detector, device=self.device)
        return detector

    def _losses(self, teacher: Detector) -> Terms:
        settings = as_dict(self.config.distill)
        name = settings.pop("name")
        if name == "none":
            raise LSHFMError("benchmark: distill: expected a loss, such as lshl2, found none")
        return build_losses(name, teacher, **settings)

    @cached_property
    def distillation(self) -> DistillationModule:
        """Student, teacher and mimic losses."""
        losses = self._losses(self.teacher)
        dtype = autocast_dtype(self.config.precision)
        module = DistillationModule(self.student, self.teacher, losses, teacher_dtype=dtype)
        module.moment = Moment(step=losses.rule.usual_step)
        return module.to(self.device).train()

    @cached_property
    def _plain(self) -> DetectionModule:
        return DetectionModule(self.student).train()

    @cached_property
    def _record(self) -> dict[str, Any]:
        # Without a graph: gradients of the mimic term end at these features.
        with torch.no_grad(), self._autocast(), self.distillation.tap.recording() as record:
            self.student(self.images, self.targets)
        return record

    @cached_property
    def _pairs(self) -> dict[str, Pair]:
        with self._autocast():
            pairs = self.distillation.tap.pairs(self._record)
        return {
            point: pair._replace(student=map_features(_leaf, pair.student)) for point, pair in pairs.items()
        }

    @cached_property
    def _reference(self) -> tuple[nn.Module, Callable[[], Tensor]]:
        """The reference implementation's student and its loss. It has its own networks; ours are not in memory."""
        published = load_published()
        student = published.as_published(self._build(as_dict(self.config.model)).train())
        teacher = self._build_teacher().eval().requires_grad_(False)
        terms = self._losses(teacher).to(self.device)
        losses = [term.loss for _, term in terms.named() if term.loss.point == "penultimate"]
        published.as_published(teacher)
        return student, lambda: published.published_step(student, teacher, losses, self.images, self.targets)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.config.precision, self.device)

    def _forward_backward(self, module: DetectionModule) -> None:
        with self._autocast():
            loss = torch.stack(
                [loss.float() for loss in module.losses(self.images, self.targets).values()]
            ).sum()
        loss.backward()
        module.zero_grad(set_to_none=True)

    def plain(self) -> None:
        """Forward and backward of the student alone."""
        self._forward_backward(self._plain)

    def distill(self) -> None:
        """Forward and backward of a step of distillation."""
        self._forward_backward(self.distillation)

    def run_teacher(self) -> None:
        """The teacher's forward pass in a step."""
        tap = self.distillation.tap
        with self._autocast():
            tap.pairs({**self._record, "teacher": tap.teacher_maps(self._batch)})

    @cached_property
    def _batch(self) -> Tensor:
        return cast(Any, self.student.transform)(self.images)[0].tensors

    def run_mimic(self) -> None:
        """The mimic losses of fixed features, and their gradients for the student's features and trained parts."""
        with self._autocast():
            terms = self.distillation.mimic_terms(self._pairs, self._record["batch"])
        leaves = [*_students_of(self._pairs), *self.distillation.mimic.parameters()]
        # A loss may leave out a part of the features, such as levels.
        torch.autograd.grad(torch.stack(list(terms.values())).sum(), leaves, allow_unused=True)

    def run_reference(self) -> None:
        """Forward and backward of the same step by the reference implementation."""
        student, loss = self._reference
        loss().backward()
        student.zero_grad(set_to_none=True)

    def prepare(self, name: str) -> None:
        """Build the networks and inputs of a part beforehand, so that they are not measured."""
        needed = {
            "plain": ("_plain",),
            "teacher": ("_record", "_batch"),
            "mimic": ("_pairs",),
            "distill": ("distillation",),
            "reference": ("_reference",),
        }
        for cached in needed[name]:
            getattr(self, cached)

    def peak(self, name: str) -> int:
        """Peak memory in bytes of this process while it repeats a part; nothing else may have been built before."""
        part = self.by_name()[name]
        self.prepare(name)
        reset_peak_memory(self.device)
        for _ in range(MEMORY_STEPS):
            part()
        return peak_memory_bytes(self.device)

    def frozen_bytes(self) -> int:
        """Bytes that distillation needs besides the student: the teacher's weights and the hash functions."""
        frozen = (self.teacher, self.distillation.mimic)
        return sum(tensor.nbytes for part in frozen for tensor in part.state_dict().values())

    def by_name(self) -> dict[str, Callable[[], None]]:
        """Name, as in `PARTS`, → method, for the parts that the config asks for."""
        parts = {
            "plain": self.plain,
            "teacher": self.run_teacher,
            "mimic": self.run_mimic,
            "distill": self.distill,
        }
        if not self.config.published:
            return parts
        if not _is_in_reference(as_dict(self.config.distill)):
            log.info("the reference implementation has no %s, and is left out", self.config.distill.name)
            return parts
        return parts | {"reference": self.run_reference}


def _is_in_reference(distill: dict[str, Any]) -> bool:
    """Whether the reference implementation has a loss of this config."""
    terms = distill.get("terms") or {distill["name"]: distill}
    return any(
        own.get("name", entry) in REFERENCE_LOSSES and own.get("point") in (None, "penultimate")
        for entry, own in terms.items()
    )


def tame_random_norms(detector: nn.Module) -> None:
    """Halve the weights of frozen norms. With unit statistics random features would grow with every block."""
    for module in detector.modules():
        if "FrozenBatchNorm" in type(module).__name__:
            module.weight.fill_(0.5)  # type: ignore[operator]


def _leaf(tensor: Tensor) -> Tensor:
    """A copy that is a leaf of the autograd graph."""
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def _students_of(pairs: dict[str, Pair]) -> list[Tensor]:
    """The student's tensors of all pairs."""
    return [tensor for pair in pairs.values() for tensor in tensors_of(pair.student)]


def measure_steps(config: DictConfig) -> dict[str, Any]:
    """Measure the time and the peak memory of each part.

    Returns:
        `seconds`, `processor_seconds` (of all threads, which depends less on other loads), `peak_memory_bytes` and
        `images_per_second` by the names in `PARTS`, and `ratios`. The floor of a distillation step is, in time, a
        plain step plus the teacher's forward pass, and in memory a plain step plus all frozen weights.
    """
    parts = StepParts(config)
    for name in parts.by_name():
        parts.prepare(name)
    samples = samples_in_turn(
        parts.by_name(), repeats=config.repeats, warmup=config.warmup, device=parts.device
    )
    seconds = {name: median(sample.seconds for sample in of_part) for name, of_part in samples.items()}
    busy = {name: median(sample.processor_seconds for sample in of_part) for name, of_part in samples.items()}
    frozen_bytes = parts.frozen_bytes()
    del parts  # the processes that measure memory need the GPU too
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    ratios = {
        "distill_over_plain": seconds["distill"] / seconds["plain"],
        "distill_over_floor": seconds["distill"] / (seconds["plain"] + seconds["teacher"]),
    }
    if "reference" in seconds:
        ratios["distill_over_reference"] = seconds["distill"] / seconds["reference"]
    memory = {}
    if config.memory:
        memory = {
            name: int(median(in_own_process(peak_of, config, name) for _ in range(config.memory_repeats)))
            for name in seconds
        }
        ratios["memory_distill_over_plain"] = memory["distill"] / memory["plain"]
        ratios["memory_floor_over_plain"] = 1 + frozen_bytes / memory["plain"]
    whole = [name for name in ("plain", "distill", "reference") if name in seconds]
    return {
        "seconds": seconds,
        "processor_seconds": busy,
        "ratios": ratios,
        "images_per_second": {name: config.batch_size / seconds[name] for name in whole},
        "peak_memory_bytes": memory,
    }


def peak_of(config: DictConfig, name: str) -> int:
    """Peak memory in bytes of a part, named as in `PARTS`; for a process that has measured nothing else."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return StepParts(config).peak(name)
