"""The classes of a teacher, which are those of its student if the training data have no labels."""

from omegaconf import DictConfig

from lshfm_pl.cli import as_dict
from lshfm_pl.detectors import load_detector
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.config import import_parts
from lshfm_pl.detectors.contents import described_class_names
from lshfm_pl.detectors.published import torchvision_weights
from lshfm_pl.errors import LSHFMError

__all__ = ["teacher_class_names"]


def teacher_class_names(teacher: DictConfig) -> tuple[str, ...]:
    """The names of the teacher's classes 1..C.

    Args:
        teacher: the node `teacher` of a config of `train` or `compare`; the latter takes only files that describe
            their detector.

    Raises:
        LSHFMError: the file does not say them and is no well-known one, or it cannot be read.
    """
    named = import_parts(as_dict(teacher.get("detector")))
    if teacher.get("weights") is not None:
        return torchvision_weights(teacher.weights, named).class_names
    names = described_class_names(read_checkpoint(teacher.checkpoint))
    if names is not None:
        return names
    try:
        return load_detector(teacher.checkpoint, config=named, which=teacher.which).class_names
    except LSHFMError as error:
        raise LSHFMError(
            f"data.train_labels=teacher takes the classes from the teacher, but: {error}"
        ) from error
