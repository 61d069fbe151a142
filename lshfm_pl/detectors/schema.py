"""pydantic schemas of detector configs. A family's own schema extends one of these.

Every number and every list has a limit: a config may come from an untrusted file and must not request all memory.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "AnchorDetectorConfig",
    "BodyConfig",
    "Count",
    "DetectorConfig",
    "Fraction",
    "Positive",
    "PyramidDetectorConfig",
    "Text",
    "expected_of",
]

LARGEST_NUMBER = 1e9
"""Pixels, ratios and the like."""
LONGEST_LIST = 64
"""Sizes of an image, or anchor sizes of a level."""
STRIDES = "strides of a pyramid, each twice the one before or equal to it, such as [8, 16, 32], or null"

Text = Annotated[str, Field(min_length=1, max_length=1000)]
"""A name, path or URL."""
Finite = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Positive = Annotated[float, Field(gt=0, le=LARGEST_NUMBER)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=100_000)]
"""Number of proposals, candidates or detections of an image."""


class DetectorConfig(BaseModel):
    """Keys of every detector's config. Unknown keys are refused, and values of another type are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    #: Keys on which the meaning of trained weights depends, although no shape of a tensor does.
    weights_depend_on: ClassVar[tuple[str, ...]] = ()

    name: Text
    architecture: Text


class BodyConfig(DetectorConfig):
    """Keys of a detector with a backbone of `detectors/backbones` and torchvision's resizing of images."""

    weights_depend_on: ClassVar[tuple[str, ...]] = ("image_mean", "image_std")

    backbone: Text
    backbone_weights: Text | None = Field(description="pretrained, imagenet, a path, a URL or null")
    width: Annotated[float, Field(gt=0, le=16)]
    norm: Literal["frozen_bn", "bn", "bn_frozen_stats", "gn", "ln", "none"]
    norm_eps: Annotated[float, Field(ge=0, le=LARGEST_NUMBER)]
    trainable_stages: Annotated[int, Field(ge=0, le=5)]
    image_mean: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    image_std: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    min_size: Annotated[
        list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1, max_length=LONGEST_LIST)
    ]
    max_size: Annotated[int, Field(ge=1, le=8192)]
    size_divisible: Annotated[int, Field(ge=1, le=1024)]


class PyramidDetectorConfig(BodyConfig):
    """Keys of a detector on the maps of a feature pyramid or on a single map."""

    #: Number of maps for each neck.
    levels: ClassVar[Mapping[str, int]] = {"fpn": 5, "none": 1}

    neck: Literal["fpn", "none"]
    fpn_channels: Annotated[int, Field(ge=1, le=4096)] | None
    #: Pixels from one location to the next, of each level of the pyramid; None for those of the family.
    fpn_strides: (
        Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=LONGEST_LIST)]
        | None
    ) = Field(None, description=STRIDES)

    @field_validator("fpn_strides", mode="wrap")
    @classmethod
    def _doubling(cls, value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
        if value is not None and info.data.get("neck") == "none":
            return _checked(value, handler, "null, as there is no pyramid (neck: none)", lambda found: False)
        return _checked(
            value, handler, STRIDES, lambda found: all(b in (a, 2 * a) for a, b in pairwise(found or []))
        )

    @field_validator("fpn_channels", mode="wrap")
    @classmethod
    def _channels_of_a_pyramid(cls, value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
        has_pyramid = info.data.get("neck", "fpn") == "fpn"
        expected = (
            "a whole number from 1 to 4096" if has_pyramid else "null, as there is no pyramid (neck: none)"
        )
        return _checked(value, handler, expected, lambda found: (found is not None) == has_pyramid)


AnchorsOfLevel = Annotated[list[Positive], Field(min_length=1, max_length=LONGEST_LIST)]


class AnchorDetectorConfig(PyramidDetectorConfig):
    """Keys of a detector with anchors of configurable sizes."""

    weights_depend_on: ClassVar[tuple[str, ...]] = (
        *BodyConfig.weights_depend_on,
        "anchor_sizes",
        "anchor_aspect_ratios",
    )

    anchor_sizes: list[AnchorsOfLevel]
    anchor_aspect_ratios: list[AnchorsOfLevel]

    @field_validator("anchor_sizes", "anchor_aspect_ratios", mode="wrap")
    @classmethod
    def _a_list_each_level(cls, value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
        levels = len(info.data.get("fpn_strides") or range(cls.levels[info.data.get("neck", "fpn")]))
        expected = f"a list of {levels}, each a list of one or more, each a number above 0"
        return _checked(value, handler, expected, lambda found: len(found) == levels)

    @model_validator(mode="after")
    def _one_number_of_anchors(self) -> Self:
        anchors = {
            len(sizes) * len(ratios)
            for sizes, ratios in zip(self.anchor_sizes, self.anchor_aspect_ratios, strict=True)
        }
        if len(anchors) > 1:
            raise ValueError(
                "model.anchor_sizes, model.anchor_aspect_ratios: one head serves every level, so each level "
                f"needs the same number of anchors (sizes × ratios); found {sorted(anchors)}."
            )
        return self


def _checked(value: Any, handler: Callable[[Any], Any], expected: str, holds: Callable[[Any], bool]) -> Any:
    """Validate a value. The error says what was expected."""
    try:
        found = handler(value)
    except ValidationError:
        found, is_right = value, False
    else:
        is_right = holds(found)
    if not is_right:
        raise PydanticCustomError("expected", "expected {expected}", {"expected": expected})
    return found


def expected_of(schema: type[BaseModel], key: str) -> str:
    """A description of the valid values of a key: its own, or one derived from its type."""
    content = schema.model_json_schema()
    return _words(content["properties"][key], content.get("$defs", {}))


def _words(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if part.get("type") == "object":
        return "settings"
    if "description" in part:
        return str(part["description"])
    if "$ref" in part:
        return _words(definitions[part["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in part:
        words = [_words(choice, definitions) for choice in part["anyOf"] if choice.get("type") != "null"]
        return " or ".join(words) + ", or null" * (len(words) < len(part["anyOf"]))
    if "enum" in part or "const" in part:
        return "one of " + ", ".join(map(str, part.get("enum", [part.get("const")])))
    match part.get("type"):
        case "integer" if {"minimum", "maximum"} <= part.keys():
            return f"a whole number from {part['minimum']} to {part['maximum']}"
        case "integer":
            return "a whole number"
        case "number":
            return _number_words(part)
        case "array":
            least, most = part.get("minItems"), part.get("maxItems")
            count = f"{least}" if least is not None and least == most else "one or more"
            return f"a list of {count}, each {_words(part['items'], definitions)}"
        case "boolean":
            return "true or false"
        case "string":
            return "a text"
    return "settings"


def _number_words(part: Mapping[str, Any]) -> str:
    above, least, most = part.get("exclusiveMinimum"), part.get("minimum"), part.get("maximum")
    is_limited = most is not None and most < LARGEST_NUMBER
    if above is not None:
        return f"a number above {above:g}" + (f", at most {most:g}" if is_limited else "")
    if least is None or least <= -LARGEST_NUMBER:
        return "a number"
    return f"a number from {least:g} to {most:g}" if is_limited else f"a number, {least:g} or above"
