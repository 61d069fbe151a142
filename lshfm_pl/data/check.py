"""Finding the faults of a data set with the readers that training uses."""

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
from lshfm_pl.cores import usable_cores
from lshfm_pl.data import DetectionDataModule, DetectionDataset
from lshfm_pl.data.clean_copy import FORMS, refuse_used_folder, write_clean_copy
from lshfm_pl.data.dataset import DetectionRecord, decode_with_faults, read_record
from lshfm_pl.data.faults import ERRORS, WARNINGS, Fault, FaultError, FaultLog, summaries
from lshfm_pl.data.images import decode_image, inspect_image
from lshfm_pl.data.jpeg_damage import capture_error_output, jpeg_messages
from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import open_regular, write_json
from lshfm_pl.paths import from_home

__all__ = ["Findings", "check_data", "find_faults", "summary"]


_IMAGES_PER_CHUNK = 64
"""Images that are decoded before the messages of the decoder are read."""

_START_OF_OUTPUT = b'{\n  "images": {'


@dataclass
class Findings:
    """Result of `find_faults`: the number of images of each split, and (split, fault) in the order of reading."""

    images: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[str, Fault]] = field(default_factory=list)

    @property
    def num_errors(self) -> int:
        """The number of faults that would stop training, or make it or its results wrong."""
        return sum(fault.is_error for _, fault in self.faults)

    def by_kind(self) -> dict[str, int]:
        """The number of faults of each kind, errors first."""
        counts = Counter(fault.kind for _, fault in self.faults)
        return {kind: counts[kind] for kind in (*ERRORS, *WARNINGS) if kind in counts}


def check_data(config: DictConfig) -> Findings:
    """Print the faults of all splits of `config.data` and a summary, and write them to `config.output` if given.

    With `config.fix`, a copy of the data without the faults is written to that folder.

    Raises:
        LSHFMError: the data can't be prepared (downloaded, generated), or `output` can't be written or is an
            existing file of another kind, or the folder `fix` has content.
    """
    if config.output is not None:
        _refuse_other_file(Path(config.output))
    if config.fix is not None:
        refuse_used_folder(from_home(config.fix))
        if config.fix_form not in FORMS:
            raise LSHFMError(f"fix_form: expected {' or '.join(FORMS)}, found {config.fix_form!r}.")
    datamodule: DetectionDataModule = instantiate(config.data)
    datamodule.prepare_data()
    findings = find_faults(datamodule, threads=config.threads or usable_cores(), progress=True)
    for line in _lines(findings, config.limit):
        print(line)
    print(summary(findings))
    if config.output is not None:
        _write(findings, Path(config.output))
    if config.fix is not None:
        for line in write_clean_copy(datamodule, from_home(config.fix), config.fix_form):
            print(line)
    return findings


def _lines(findings: Findings, limit: int | None) -> Iterator[str]:
    """Each error, and one line per split and kind of warning. With a limit, up to that many faults of each kind."""
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
    """Read every annotation and image of a prepared data module with the readers of training.

    Args:
        datamodule: the data module, before `setup`.
        threads: number of threads that decode images.
        progress: whether to show a progress bar on stderr if that is a terminal.
    """
    findings = Findings()
    seen: dict[str, dict[str, Path]] = {}
    try:
        splits = datamodule.splits_to_read()
    except LSHFMError as error:  # nothing says where the sets are
        fault = error.fault if isinstance(error, FaultError) else None
        fault = fault or Fault("setting", datamodule.root, str(error))
        return Findings(faults=[("train", fault)])
    if ("train" in splits and datamodule.has_set("val")) or not splits:
        splits.setdefault("val", "val")  # training needs it: reading it says what is missing
    if datamodule.unlabelled:  # before validation and test, with which they are compared
        splits = {
            **{split: splits[split] for split in ("train",) if split in splits},
            UNLABELLED: UNLABELLED,
            **splits,
        }
    for split, key in splits.items():
        log = FaultLog("skip")
        try:
            is_labelled = split != UNLABELLED
            dataset = datamodule.read(split, log) if is_labelled else datamodule.read_unlabelled(log)
        except FaultError as error:
            log.add(error.fault)
        except LSHFMError as error:
            log.add(Fault("setting", datamodule.root, f"data.{key}: {error}"))
        else:
            findings.images[split] = len(dataset) + len(dataset.left_out)
            paths, of_images = _check_images(dataset, split, threads, progress)
            log.faults += of_images
            if is_labelled:
                trained_on = {**seen.get(UNLABELLED, {}), **seen.get("train", {})}
                log.faults += _shared_images(paths, trained_on, seen.get("val", {}))
            seen[split] = paths
        # A file may be read for two purposes, which would report its faults twice.
        of_place: dict[tuple[object, ...], Fault] = {}
        for fault in log.faults:
            of_place.setdefault((fault.kind, fault.path, fault.line, fault.text), fault)
        findings.faults += [(split, fault) for fault in of_place.values()]
    return findings


def summary(findings: Findings) -> str:
    """A text with the number of faults of each kind and their meaning, errors first, and the number of images."""
    lines = [
        f"  {'error' if kind in ERRORS else 'warning':8}{kind:22}{count:>7}  {(ERRORS | WARNINGS)[kind]}"
        for kind, count in findings.by_kind().items()
    ]
    images = ", ".join(f"{split} {count:,}" for split, count in findings.images.items()) or "none"
    warnings = len(findings.faults) - findings.num_errors
    return "\n".join([*lines, f"{findings.num_errors} errors, {warnings} warnings; images read: {images}"])


def _severity(fault: Fault) -> str:
    return "error" if fault.is_error else "warning"


def _check_images(
    dataset: DetectionDataset, label: str, threads: int, progress: bool
) -> tuple[dict[str, Path], list[Fault]]:
    """Decode every image. Returns a mapping from pixel digest to path of the first such image, and the faults."""
    paths: dict[str, Path] = {}
    firsts: dict[str, DetectionRecord | Path] = {}
    faults: list[Fault] = []
    jobs: list[DetectionRecord | Path] = [*dataset.records, *dataset.left_out]
    is_shown = progress and is_terminal(sys.stderr)
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc=label, total=len(jobs), unit="image", disable=not is_shown) as bar,
    ):
        for start in range(0, len(jobs), _IMAGES_PER_CHUNK):
            some = jobs[start : start + _IMAGES_PER_CHUNK]
            with capture_error_output() as output:
                looks = list(pool.map(_check_image, some))
                has_messages = bool(jpeg_messages(output.take()))
            for job, (digest, path, found) in zip(some, looks, strict=True):
                faults += found
                if digest is None:
                    continue
                if has_messages:
                    faults += _jpeg_faults(job)
                if digest in paths:
                    text = f"has the pixels of {paths[digest]}{_different_objects(job, firsts[digest])}."
                    faults.append(Fault("image-repeated", path, text))
                paths.setdefault(digest, path)
                firsts.setdefault(digest, job)
            bar.update(len(some))
    return paths, faults


def _different_objects(image: DetectionRecord | Path, first: DetectionRecord | Path) -> str:
    """The text about objects of only one of two copies of an image: they are background in the other copy."""
    if isinstance(image, Path) or isinstance(first, Path):
        return ""
    objects, others = (
        {(label, *box) for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)}
        for record in (image, first)
    )
    alone = len(objects ^ others)
    return (
        f", but {alone} objects are annotated in only one: they are background in the other" if alone else ""
    )


def _jpeg_faults(image: DetectionRecord | Path) -> list[Fault]:
    """The decoder's messages for one image, which is decoded alone, since the messages do not name the file."""
    path = image if isinstance(image, Path) else image.image_path
    return decode_with_faults(path, lambda: decode_image(path))[1]


def _check_image(image: DetectionRecord | Path) -> tuple[str | None, Path, list[Fault]]:
    """The digest of an image's pixels (None if it can't be read), its path, and its faults."""
    path = image if isinstance(image, Path) else image.image_path
    try:
        pixels = decode_image(path) if isinstance(image, Path) else read_record(image)
        # JPEG's decoder stores the colours of a pixel together: so the memory is hashed without a copy.
        rows = pixels.permute(1, 2, 0).contiguous().numpy()
        digest = hashlib.blake2b(str(rows.shape).encode())
        digest.update(rows.data)
        return digest.hexdigest(), path, inspect_image(path)
    except FaultError as error:
        is_readable = error.fault.kind == "size-mismatch"
        return None, path, [error.fault, *(inspect_image(path) if is_readable else [])]


def _shared_images(
    paths: dict[str, Path], training: dict[str, Path], validation: dict[str, Path]
) -> Iterator[Fault]:
    """Images that are also in an earlier set, found by their pixels."""
    for digest, path in paths.items():
        if digest in validation:
            same = validation[digest]
            text = (
                "is a validation image too"
                if same == path
                else f"has the pixels of the validation image {same}"
            )
            yield Fault("test-in-val", path, f"{text}: the results would look better than they are.")
        if digest in training:
            same = training[digest]
            text = (
                "is a training image too" if same == path else f"has the pixels of the training image {same}"
            )
            yield Fault("test-in-train", path, f"{text}: the results would look better than they are.")


def _refuse_other_file(path: Path) -> None:
    """Refuse to replace a file that this command did not write, such as an annotation file."""
    if not os.path.lexists(path):
        return
    try:
        with open_regular(path) as file:
            is_ours = file.read(len(_START_OF_OUTPUT)) == _START_OF_OUTPUT
    except LSHFMError as error:
        raise LSHFMError(f"output: {error}. Give the path of a new JSON file.") from error
    if not is_ours:
        raise LSHFMError(
            f"output: expected a new file, or one that check_data has written, found another file at {path}. "
            "Give another path, or delete the file first."
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
