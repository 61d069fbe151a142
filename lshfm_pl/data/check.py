"""The faults of a data set, found by the readers of training."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lshfm_pl.cli.console import is_terminal
from lshfm_pl.data import DetectionDataModule, DetectionDataset
from lshfm_pl.data.dataset import DetectionRecord, read_record, watched
from lshfm_pl.data.faults import ERRORS, WARNINGS, Fault, FaultError, FaultLog, summaries
from lshfm_pl.data.images import decode_image, inspect_image
from lshfm_pl.data.jpeg_damage import capture_error_output, jpeg_messages
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import open_regular, write_json

__all__ = ["Findings", "check_data", "find_faults", "summary"]


_TOGETHER = 64
"""Images that are decoded before what the decoder said is looked at."""

_START_OF_OUTPUT = b'{\n  "images": {'


@dataclass
class Findings:
    """What `find_faults` found: the number of images of each split, and (split, fault) in the order of reading."""

    images: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[str, Fault]] = field(default_factory=list)

    @property
    def num_errors(self) -> int:
        """The number of faults that would stop training, or falsify it or its figures."""
        return sum(fault.is_error for _, fault in self.faults)

    def by_kind(self) -> dict[str, int]:
        """The number of faults of each kind, errors first."""
        counts = Counter(fault.kind for _, fault in self.faults)
        return {kind: counts[kind] for kind in (*ERRORS, *WARNINGS) if kind in counts}


def check_data(config: DictConfig) -> Findings:
    """Print the faults of `config.data`, of all its splits, and a summary; write them to `config.output` too.

    Raises:
        LSHFMError: the data can't be prepared (downloaded, generated), or `output` can't be written or is a file of
            something else.
    """
    if config.output is not None:
        _refuse_other_file(Path(config.output))
    datamodule: DetectionDataModule = instantiate(config.data)
    datamodule.prepare_data()
    findings = find_faults(datamodule, threads=config.threads or os.cpu_count() or 1, progress=True)
    for line in _lines(findings, config.limit):
        print(line)
    print(summary(findings))
    if config.output is not None:
        _write(findings, Path(config.output))
    return findings


def _lines(findings: Findings, limit: int | None) -> Iterator[str]:
    """Each error, and a line for each kind of warning in a split; with a limit that many faults of each kind."""
    printed: Counter[str] = Counter()
    summarised = set()
    for split, fault in findings.faults:
        start = f"{split} {_severity(fault)}"
        if limit is None and not fault.is_error:
            if (split, fault.kind) not in summarised:
                summarised.add((split, fault.kind))
                of_kind = [
                    other for place, other in findings.faults if (place, other.kind) == (split, fault.kind)
                ]
                yield f"{start} {summaries(of_kind)[0]}"
            continue
        printed[fault.kind] += 1
        if limit is None or printed[fault.kind] <= limit:
            yield f"{start} {fault.kind}: {fault}"


def find_faults(datamodule: DetectionDataModule, *, threads: int = 1, progress: bool = False) -> Findings:
    """Read every annotation and image of a prepared data module, with the readers of training.

    Args:
        datamodule: before `setup`.
        threads: that decode images.
        progress: show a bar on stderr where that is a terminal.
    """
    findings = Findings()
    seen: dict[str, dict[str, Path]] = {}
    for split, key in datamodule.splits_to_read().items():
        log = FaultLog("skip")
        try:
            dataset = datamodule.read_set(split, log)
        except FaultError as error:
            log.add(error.fault)
        except LSHFMError as error:
            log.add(Fault("setting", datamodule.root, f"data.{key}: {error}"))
        else:
            findings.images[split] = len(dataset) + len(dataset.left_out)
            paths, of_images = _look_at_images(dataset, split, threads, progress)
            log.faults += of_images
            log.faults += _shared(paths, seen.get("train", {}), seen.get("val", {}))
            seen[split] = paths
        # One file may be read for two purposes, and would be told of twice.
        findings.faults += [(split, fault) for fault in dict.fromkeys(log.faults)]
    return findings


def summary(findings: Findings) -> str:
    """The number of faults by kind with what each means, errors first, and the number of images."""
    lines = [
        f"  {'error' if kind in ERRORS else 'warning':8}{kind:22}{count:>7}  {(ERRORS | WARNINGS)[kind]}"
        for kind, count in findings.by_kind().items()
    ]
    images = ", ".join(f"{split} {count:,}" for split, count in findings.images.items()) or "none"
    warnings = len(findings.faults) - findings.num_errors
    return "\n".join([*lines, f"{findings.num_errors} errors, {warnings} warnings; images read: {images}"])


def _severity(fault: Fault) -> str:
    return "error" if fault.is_error else "warning"


def _look_at_images(
    dataset: DetectionDataset, label: str, threads: int, progress: bool
) -> tuple[dict[str, Path], list[Fault]]:
    """Decode every image: (digest of the pixels → its first image's path, faults)."""
    paths: dict[str, Path] = {}
    firsts: dict[str, DetectionRecord | Path] = {}
    faults: list[Fault] = []
    jobs: list[DetectionRecord | Path] = [*dataset.records, *dataset.left_out]
    is_shown = progress and is_terminal(sys.stderr)
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc=label, total=len(jobs), unit="image", disable=not is_shown) as bar,
    ):
        for start in range(0, len(jobs), _TOGETHER):
            some = jobs[start : start + _TOGETHER]
            with capture_error_output() as output:
                looks = list(pool.map(_look_at, some))
                has_messages = bool(jpeg_messages(output.take()))
            for job, (digest, path, found) in zip(some, looks, strict=True):
                faults += found
                if digest is None:
                    continue
                if has_messages:
                    faults += _damage(job)
                if digest in paths:
                    text = f"has the pixels of {paths[digest]}{_disagreement(job, firsts[digest])}."
                    faults.append(Fault("image-repeated", path, text))
                paths.setdefault(digest, path)
                firsts.setdefault(digest, job)
            bar.update(len(some))
    return paths, faults


def _disagreement(image: DetectionRecord | Path, first: DetectionRecord | Path) -> str:
    """What makes a copy harmful: an object of one alone is background in the other."""
    if isinstance(image, Path) or isinstance(first, Path):
        return ""
    objects, others = (
        {(label, *box) for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)}
        for record in (image, first)
    )
    alone = len(objects ^ others)
    return (
        f", but {alone} objects are of one of them alone: in the other they are background" if alone else ""
    )


def _damage(image: DetectionRecord | Path) -> list[Fault]:
    """What the decoder says of one image, found by decoding it alone: it does not say of which file it speaks."""
    path = image if isinstance(image, Path) else image.image_path
    return watched(path, lambda: decode_image(path))[1]


def _look_at(image: DetectionRecord | Path) -> tuple[str | None, Path, list[Fault]]:
    """The digest of an image's pixels, None where it can't be read; its path; its faults."""
    path = image if isinstance(image, Path) else image.image_path
    try:
        pixels = decode_image(path) if isinstance(image, Path) else read_record(image)
        digest = hashlib.blake2b(str(pixels.shape).encode() + pixels.numpy().tobytes()).hexdigest()
        return digest, path, inspect_image(path)
    except FaultError as error:
        is_readable = error.fault.kind == "size-mismatch"
        return None, path, [error.fault, *(inspect_image(path) if is_readable else [])]


def _shared(
    paths: dict[str, Path], training: dict[str, Path], validation: dict[str, Path]
) -> Iterator[Fault]:
    """Images that an earlier set has too, by their pixels, whatever their files are."""
    for digest, path in paths.items():
        if digest in validation:
            same = validation[digest]
            text = (
                "is a validation image too"
                if same == path
                else f"has the pixels of the validation image {same}"
            )
            yield Fault("test-in-val", path, f"{text}: the figures would flatter the detector.")
        if digest in training:
            same = training[digest]
            text = (
                "is a training image too" if same == path else f"has the pixels of the training image {same}"
            )
            yield Fault("test-in-train", path, f"{text}: the figures would flatter the detector.")


def _refuse_other_file(path: Path) -> None:
    """Stop before a file is replaced that this command has not written, such as an annotation file."""
    if not os.path.lexists(path):
        return
    try:
        with open_regular(path) as file:
            is_ours = file.read(len(_START_OF_OUTPUT)) == _START_OF_OUTPUT
    except LSHFMError as error:
        raise LSHFMError(f"output: {error}. Give the path of a new JSON file.") from error
    if not is_ours:
        raise LSHFMError(
            f"output: expected a new file, or one that check_data has written, found another one at {path}. "
            "Give another path, or delete it first."
        )


def _write(findings: Findings, path: Path) -> None:
    content = {
        "images": findings.images,
        "errors": findings.num_errors,
        "warnings": len(findings.faults) - findings.num_errors,
        "kinds": findings.by_kind(),
        "faults": [
            {"split": split, "severity": _severity(fault), **asdict(fault), "path": str(fault.path)}
            for split, fault in findings.faults
        ],
    }
    try:
        write_json(content, path)
    except OSError as error:
        raise LSHFMError(f"output: {path} can't be written ({error}).") from error
