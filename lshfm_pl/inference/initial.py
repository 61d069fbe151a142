"""A detector as it was before its training."""

import torch

from lshfm_pl.detectors import Detector, build_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.inference.loading import started_from, stored_data
from lshfm_pl.seeding import LARGEST_SEED, seed_everything

__all__ = ["initial_detector"]


def initial_detector(detector: Detector, file: str, seed: int) -> Detector:
    """Build a detector as it was before training.

    Args:
        detector: the trained one.
        file: its checkpoint. If it stores the seed of its run, that seed is used.
        seed: used otherwise.

    Raises:
        LSHFMError: the initial weights of its backbone are not available, or training started from a whole
            detector; before=false does without them.
    """
    if (start := started_from(file)) is not None:
        raise LSHFMError(
            f"before: the training of {file} started from the detector {start}, which is not read for a picture. "
            "Give before=false to draw the trained weights alone"
        )
    stored = (stored_data(file) or {}).get("seed")
    with torch.random.fork_rng():
        is_seed = isinstance(stored, int) and not isinstance(stored, bool) and 0 <= stored <= LARGEST_SEED
        seed_everything(int(stored) if is_seed else seed)  # type: ignore[arg-type]
        _refuse_download(detector.config.get("backbone_weights"), file)
        try:
            fresh = build_detector(
                detector.config, num_classes=detector.num_classes, class_names=detector.class_names
            )
        except LSHFMError as error:
            raise LSHFMError(f"{error}\nbefore=false draws the trained weights alone") from error
    return fresh.eval()


def _refuse_download(backbone_weights: str | None, file: str) -> None:
    """Refuse to download weights from an address that only a checkpoint names.

    Raises:
        LSHFMError: the backbone's weights come from such an address.
    """
    if backbone_weights is not None and backbone_weights.startswith(("http://", "https://")):
        raise LSHFMError(
            f"before: the backbone of {file} started with the weights of {backbone_weights}, which are not "
            "downloaded for a picture. Give before=false to draw the trained weights alone"
        )
