"""What the training of a detector starts from: keys of a command's `model` that are not stored with a detector."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lshfm_pl.detectors.schema import Text, expected_of
from lshfm_pl.errors import LSHFMError

__all__ = ["START_KEYS", "Start", "start_of"]


class Start(BaseModel):
    """The weights of a whole detector from which training starts; without `weights` only the backbone is loaded.

    Attributes:
        weights: name of torchvision's weights, such as `COCO_V1`, or path of a file; None for neither.
        which: the network in a file with several, see `load_detector`.
        match_classes: what to do if the classes differ from the detector's: `by_name` copies the rows of class
            layers for classes with the same name; `none` initialises these layers randomly.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    weights: Text | None = None
    which: Text = "student"
    match_classes: Literal["by_name", "none"] = "by_name"


START_KEYS = frozenset(Start.model_fields)


def start_of(config: Mapping[str, Any]) -> Start:
    """Read from a command's `model` config what training starts from. Missing keys have their defaults.

    Raises:
        LSHFMError: one of the keys has an invalid value.
    """
    try:
        return Start.model_validate({key: config[key] for key in START_KEYS & config.keys()})
    except ValidationError as error:
        key = str(error.errors(include_url=False)[0]["loc"][0])
        raise LSHFMError(
            f"model.{key}: expected {expected_of(Start, key)}, found {config[key]!r:.80}."
        ) from error
