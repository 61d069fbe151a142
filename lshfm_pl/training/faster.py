"""The settings of a training that only change its speed: compiled backbones, and CUDA graphs of the teacher."""

import torch
from omegaconf import DictConfig

from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.capturing import capture_backbone
from lshfm_pl.detectors.compiling import compile_backbones
from lshfm_pl.errors import LSHFMError

__all__ = ["make_faster", "refuse_unfit_graphs"]


def make_faster(
    config: DictConfig, student: Detector, teacher: Detector | None, device: torch.device
) -> None:
    """Compile or capture body and neck, as `trainer.compile` and `trainer.cuda_graphs` ask for.

    Names and weights of the detectors stay the same, so that a run can be resumed with other values of both.

    Args:
        config: of the training; configs of older runs lack these keys.
        student: the detector that is trained.
        teacher: the frozen teacher; None for plain training.
        device: device on which they will run.

    Raises:
        LSHFMError: this cannot be done here.
    """
    detectors = [student] if teacher is None else [student, teacher]
    if teacher is not None and config.trainer.get("cuda_graphs", False):
        capture_backbone(teacher, device=device)
        detectors.remove(teacher)
    if config.trainer.get("compile", False):
        compile_backbones(*detectors, device=device)


def refuse_unfit_graphs(config: DictConfig) -> None:
    """Refuse `trainer.cuda_graphs` where no size of images would occur often enough.

    Raises:
        LSHFMError: there is no teacher, or images are resized to several sizes.
    """
    if not config.trainer.get("cuda_graphs", False):
        return
    if config.distill.name == "none":
        raise LSHFMError(
            "trainer.cuda_graphs: expected a loss, whose teacher is captured, found distill=none; leave it out"
        )
    sizes = config.model.get("min_size")
    if sizes is not None and len(sizes) > 1:
        raise LSHFMError(
            f"trainer.cuda_graphs: expected images of one size, found {len(sizes)} in model.min_size; give for "
            f"example model.min_size=[{sizes[-1]}], or leave it out"
        )
