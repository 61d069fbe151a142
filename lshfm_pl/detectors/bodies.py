"""The parameters of a detector's backbone, apart from its neck and its heads."""

from torch import nn

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.build import Detector

__all__ = ["body_parameters"]


def body_parameters(detector: Detector) -> list[nn.Parameter]:
    """The parameters of the backbone, also of a last stage that follows the RoI pooling (C4)."""
    family = architecture_of(detector)
    is_cut = detector.config.get("neck") == "none" and bool(family.last_stage)
    return [
        parameter
        for name, parameter in detector.named_parameters()
        if (name.startswith(f"{family.body_modules[0]}.") and not name.startswith(family.neck))
        or (is_cut and name.startswith(f"{family.last_stage}."))
    ]
