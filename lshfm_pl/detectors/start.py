"""What the training of a detector starts from: keys of a command's `model` that no detector keeps."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lshfm_pl.detectors.schema import Text, expected_of
from lshfm_pl.errors import LSHFMError

__all__ = ["START_KEYS", "Start", "start_of"]


class Start(BaseModel):
    """A whole detector that training starts from; without `weights` it starts from those of the backbone.

    Attributes:
        weights: name of torchvision's weights, such as `COCO_V1`, or path of a file; None for neither.
        which: the network of a file that holds several, see `load_detector`.
        match_classes: where the classes are other ones than the detector's, `by_name` takes the rows of the class
            layers for classes of the same name; `none` makes these layers anew.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    weights: Text | None = None
    which: Text = "student"
    match_classes: Literal["by_name", "none"] = "by_name"


START_KEYS = frozenset(Start.model_fields)


def start_of(config: Mapping[str, Any]) -> Start:
    """What the `model` config of a command starts training from; keys that it lacks have their defaults.

    Raises:
        LSHFMError: one of the keys holds what it may not.
    """
    try:
        return Start.model_validate({key: config[key] for key in START_KEYS & config.keys()})
    except ValidationError as error:
        key = str(error.errors(include_url=False)[0]["loc"][0])
        raise LSHFMError(
            f"model.{key}: expected {expected_of(Start, key)}, found {config[key]!r:.80}."
        ) from error
