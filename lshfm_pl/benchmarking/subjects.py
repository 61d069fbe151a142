"""What `benchmark inference` measures: detectors with random weights or from files, each with its pictures."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lshfm_pl.benchmarking.candidates import settle_norms, threshold_for, with_evaluation
from lshfm_pl.cli import as_dict
from lshfm_pl.cli.own_folder import composed
from lshfm_pl.cli.rows import Row, read_rows
from lshfm_pl.data.batches import as_float
from lshfm_pl.detectors import Detector, build_detector, load_detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.compiling import compile_backbones
from lshfm_pl.detectors.config import import_parts
from lshfm_pl.detectors.cost import detector_cost
from lshfm_pl.errors import LSHFMError
from lshfm_pl.inference.detect import choose_device, detect
from lshfm_pl.inference.exported import ExportedDetector, cost_of, is_exported
from lshfm_pl.training.precision import autocast

__all__ = ["PartClock", "Spent", "Subject", "draw_pictures", "read_subjects"]


class Spent(NamedTuple):
    """Time that a part of a program took."""

    seconds: float
    #: Processor time of all threads of this process.
    processor_seconds: float


@dataclass(frozen=True)
class Subject:
    """Something that detects objects in pictures: one row of the table.

    Attributes:
        name: what the table calls it.
        facts: what is known without timing, for the JSON file; `input` [H, W], `parameters` and `gflops` are
            in the table.
        run: detects objects in the pictures once. Returns the time of post-processing, or None if it is not known
            apart.
    """

    name: str
    facts: dict[str, Any]
    run: Callable[[], Spent | None]


class PartClock:
    """Adds up the time that methods of a detector take.

    Args:
        detector: the methods are replaced in this object.
        methods: paths in the detector, as in `Architecture.postprocessing`. None calls another one.
        device: of the detector; a GPU is waited for before and after each method.
    """

    def __init__(self, detector: nn.Module, methods: Iterable[str], device: torch.device) -> None:
        self.spent = Spent(0, 0)
        self._device = device
        for path in methods:
            owner, _, name = path.rpartition(".")
            part = detector.get_submodule(owner)
            setattr(part, name, self._timed(getattr(part, name)))

    def reset(self) -> None:
        """Start from 0 again."""
        self.spent = Spent(0, 0)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start, busy = self._now()
            try:
                return method(*args, **kwargs)
            finally:
                end, busy_at_end = self._now()
                so_far = self.spent
                self.spent = Spent(
                    so_far.seconds + end - start, so_far.processor_seconds + busy_at_end - busy
                )

        return timed

    def _now(self) -> Spent:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Spent(time.perf_counter(), time.process_time())


def draw_pictures(config: DictConfig) -> list[Tensor]:
    """`batch_size` pictures of random pixels, uint8 [3, height, width]."""
    generator = torch.Generator().manual_seed(config.seed)
    size = (3, config.height, config.width)
    return [
        torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in range(config.batch_size)
    ]


def read_subjects(config: DictConfig, *, only: int | None = None) -> list[Subject]:
    """The detectors of `models` and `checkpoint`, or that of `model` if neither is given.

    Args:
        config: see `conf/benchmark.yaml`.
        only: number of the single detector to read, from 0; None for all.

    Raises:
        LSHFMError: a detector cannot be built or loaded, or two have the same name.
    """
    rows = read_rows(config.models)
    if config.checkpoint is not None:
        rows.append(Row("", None, config.checkpoint))
    pictures = draw_pictures(config)
    if not rows:
        return [_subject(_random(as_dict(config.model), config), "", "random", config, pictures)]
    subjects = [_of_row(row, config, pictures) for row in (rows if only is None else rows[only : only + 1])]
    if only is not None:
        return subjects
    names = [subject.name for subject in subjects]
    for row, name in zip(rows, names, strict=True):
        if names.count(name) > 1 and not row.name:
            raise LSHFMError(
                f"models: expected different names, found {name} twice; name the file, as in "
                f"'models=[{{other:{{checkpoint:{row.checkpoint}}}}}]'"
            )
    return subjects


def _of_row(row: Row, config: DictConfig, pictures: list[Tensor]) -> Subject:
    model: dict[str, Any] = {}
    if row.model is not None:
        chosen = composed("benchmark", [f"model={row.model}"])
        OmegaConf.set_struct(chosen, False)
        model = import_parts(as_dict(OmegaConf.merge(chosen, {"model": row.settings}).model))
    if is_exported(row.checkpoint):
        return _exported(row, config, pictures)
    if row.checkpoint is not None:
        start = time.perf_counter()
        detector = load_detector(row.checkpoint, config=model or None, which=config.which)
        seconds = time.perf_counter() - start
        subject = _subject(detector, row.name, row.checkpoint, config, pictures)
        return replace(subject, facts={**subject.facts, **_facts_of_file(row.checkpoint, seconds)})
    try:
        detector = _random(model, config)
    except LSHFMError as error:
        raise LSHFMError(f"models: {row.name}: {error}") from error
    return _subject(detector, row.name, "random", config, pictures)


def _exported(row: Row, config: DictConfig, pictures: list[Tensor]) -> Subject:
    """An exported file, which resizes pictures itself and has its own score threshold."""
    start = time.perf_counter()
    detector = cast(Detector, ExportedDetector(str(row.checkpoint), threads=config.threads))
    facts = {
        "weights": row.checkpoint,
        "num_classes": detector.num_classes,
        "input": list(pictures[0].shape[-2:]),
        "candidates": None,
        **_facts_of_file(str(row.checkpoint), time.perf_counter() - start),
        "stored": cast(Any, detector).runtime.description.get("weights"),
        **cost_of(detector, pictures[0]),
    }

    def run() -> None:
        detect(detector, pictures)

    return Subject(row.name or Path(str(row.checkpoint)).name, facts, run)


def _facts_of_file(path: str, load_seconds: float) -> dict[str, Any]:
    return {"load_seconds": load_seconds, "file_bytes": Path(path).stat().st_size}


def _random(model: dict[str, Any], config: DictConfig) -> Detector:
    names = [f"class_{label}" for label in range(1, config.num_classes)]
    torch.manual_seed(config.seed)
    detector = build_detector(
        import_parts(model), num_classes=config.num_classes, class_names=names, load_backbone=False
    ).eval()
    settle_norms(detector, draw_pictures(config)[:1])
    return detector


def _subject(
    detector: Detector, name: str, weights: str, config: DictConfig, pictures: list[Tensor]
) -> Subject:
    # A family of the user's own may have no transform, and resize nothing.
    if not config.resize and (transform := _transform_of(detector)) is not None:
        transform.fixed_size = (config.width, config.height)
    candidates = None
    if config.candidates is not None:
        found = threshold_for(config.candidates, detector, pictures)
        if found is not None:
            threshold, candidates = found
            detector = with_evaluation(detector, {"score_thresh": threshold})
    device = choose_device(config.device)
    detector.to(device)
    facts = {
        "weights": weights,
        "num_classes": detector.num_classes,
        "input": _input_size(detector, pictures[0]),
        "candidates": candidates,
        **detector_cost(detector, pictures[0]),
    }
    if config.compile:
        compile_backbones(detector, device=device)
    return Subject(name or str(detector.config["name"]), facts, _runner(detector, pictures, config, device))


def _transform_of(detector: Detector) -> Any:
    return getattr(detector, "transform", None)


def _input_size(detector: Detector, picture: Tensor) -> list[int]:
    """Height and width of what the network gets for a picture, with the padding at its right and lower edges."""
    transform = _transform_of(detector)
    resized = picture if transform is None else transform(as_float([picture]))[0].tensors
    return list(resized.shape[-2:])


def _runner(
    detector: Detector, pictures: list[Tensor], config: DictConfig, device: torch.device
) -> Callable[[], Spent | None]:
    methods = architecture_of(detector).postprocessing
    clock = PartClock(detector, methods, device)

    def run() -> Spent | None:
        clock.reset()
        with autocast(config.precision, device):
            detect(detector, pictures)
        return clock.spent if methods else None

    return run
