"""The layers of a detector's backbone, apart from its neck and its heads."""

from torch import nn

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.build import Detector

__all__ = ["body_layers"]


def body_layers(detector: Detector) -> list[list[nn.Parameter]]:
    """The parameters of each layer of the backbone, also of a last stage that follows the RoI pooling (C4).

    A layer is a module that has parameters of its own. They are in the order of their registration, which is
    nearly that in which they run.
    """
    family = architecture_of(detector)
    is_cut = detector.config.get("neck") == "none" and bool(family.last_stage)
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if (name.startswith(f"{family.body_modules[0]}.") and not name.startswith(family.neck)) or (
            is_cut and name.startswith(f"{family.last_stage}.")
        ):
            layers.setdefault(name.rpartition(".")[0], []).append(parameter)
    return list(layers.values())
