"""Texts about the faults of a set: log lines about those that training continues with, and advice about errors."""

import logging
from collections.abc import Sequence

from pytorch_lightning.utilities import rank_zero_only

from lshfm_pl.data.faults import Fault, FaultLog, summaries

__all__ = ["NO_SKIPPING", "advice", "log_faults", "log_found", "log_skipped"]

log = logging.getLogger(__name__)

NO_SKIPPING = (
    "Evaluation needs all images, which data.on_bad_sample=skip does not change; "
    "python -m lshfm_pl.check_data with the same data=… lists all bad ones."
)


@rank_zero_only
def log_faults(split: str, faults: FaultLog) -> None:
    """Log what was found in a set, one line per kind."""
    overlap = "test-in-train"  # an error in check_data that does not stop training
    for line in summaries(fault for fault in faults.faults if not fault.is_error or fault.kind == overlap):
        log.warning("%s set: %s", split, line)
    if faults.on_error == "skip" and faults.errors:
        if left_out := len(faults.bad_images()):
            log.warning("data.on_bad_sample=skip: %d images are left out of the %s set", left_out, split)
        if others := sum(not fault.image_id for fault in faults.errors):
            text = "data.on_bad_sample=skip: %d entries or lines of the %s set belong to no image and are ignored"
            log.warning(text, others, split)
        for line in summaries(faults.errors):
            log.warning("%s set: %s", split, line)


@rank_zero_only
def log_found(text: str) -> None:
    """Log where the sets of a folder are, if no setting has said it."""
    log.info("data      %s", text)


def log_skipped(faults: Sequence[Fault]) -> None:
    """Log the images that were skipped, one line for each.

    Args:
        faults: the error of each image, or of an entry that belongs to no image.
    """
    lines = "".join(f"\n  {fault}" for fault in faults)
    log.warning("data.on_bad_sample=skip: %s:%s", _counted(faults), lines)


def _counted(faults: Sequence[Fault]) -> str:
    """The number of skipped images, and separately the number of entries that belong to no image."""
    images = sum(bool(fault.image_id) for fault in faults)
    counts = [f"{images} training images were skipped"] if images else []
    if entries := len(faults) - images:
        counts.append(f"{entries} entries that belong to no image of the set were ignored")
    return ", ".join(counts)


def advice(split: str, first: Fault, log: FaultLog, *, can_skip: bool) -> str:
    """What to do about the errors of a set; "" if the first error says everything.

    Args:
        split: name of the set.
        first: the error that stopped the reader.
        log: all faults of the set.
        can_skip: whether training can skip its bad images.
    """
    others = len(log.errors) - 1
    if others < 1 and not first.image_id:
        return ""
    more = f"The {split} set has {others:,} more error{'s' * (others > 1)}. " if others > 0 else ""
    if split != "train":
        return more + NO_SKIPPING
    skipping = ""
    if can_skip and (bad := len(log.bad_images())):
        skipping = f"; data.on_bad_sample=skip trains without the {bad:,} image{'s' * (bad > 1)} with errors"
    return f"{more}python -m lshfm_pl.check_data with the same data=… lists all of them{skipping}."
