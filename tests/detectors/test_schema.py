"""Schemas of configs: the allowed values of each key, and their descriptions."""

import math
from typing import Annotated, Literal

import pytest
from pydantic import Field

from lshfm_pl.detectors.config import resolve_config
from lshfm_pl.detectors.faster_rcnn import FASTER_RCNN
from lshfm_pl.detectors.schema import Count, DetectorConfig, Fraction, Text, expected_of
from lshfm_pl.errors import LSHFMError

FASTER_RCNN_FILE = "fasterrcnn_resnet50fpn"


class Example(DetectorConfig):
    texts: list[Text]
    of_two: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    choice: Literal["a", "b"]
    only: Literal["a"]
    count: Count
    integer: int
    number: float
    share: Fraction | None
    switch: bool
    told: int = Field(description="an answer")
    settings: DetectorConfig


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("texts", "a list of one or more, each a text"),
        ("of_two", "a list of 2, each a number from 0 to 1"),
        ("choice", "one of a, b"),
        ("only", "one of a"),
        ("count", "a whole number from 1 to 100000"),
        ("integer", "a whole number"),
        ("number", "a number"),
        ("share", "a number from 0 to 1, or null"),
        ("switch", "true or false"),
        ("told", "an answer"),
        ("settings", "settings"),
    ],
)
def test_types_are_reported_in_words(key, words):
    assert expected_of(Example, key) == words


@pytest.mark.parametrize("key", FASTER_RCNN.schema.model_fields)
@pytest.mark.parametrize(
    "value", [True, math.nan, math.inf, 10**12, -(10**12), -1, "", "x" * 2000, {}, [[]], [1] * 1000, 1.5j]
)
def test_no_key_takes_anything_of_another_kind_or_without_limit(model_config, key, value):
    config = {**model_config(FASTER_RCNN_FILE), key: value}
    with pytest.raises(LSHFMError, match=rf"^model\.{key}: (?s:.*), found ") as failure:
        resolve_config(config)
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 300


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("width", 0.001, 16),
        ("fpn_channels", 1, 4096),
        ("box_head_width", 1, 16384),
        ("box_pool_size", 1, 64),
        ("box_sampling_ratio", 0, 64),
        ("max_size", 1, 8192),
        ("size_divisible", 1, 1024),
        ("trainable_stages", 0, 5),
        ("rpn_batch_size_per_image", 1, 100_000),
        ("box_nms_thresh", 0, 1),
        ("norm_eps", 0, 1e9),
        ("min_size", [1], [4096] * 64),
    ],
)
def test_limits_themselves_are_taken_and_kept_as_they_are(model_config, key, least, most):
    for value in (least, most):
        found = resolve_config(model_config(FASTER_RCNN_FILE, **{key: value}))[key]
        assert (found, type(found)) == (value, type(value))


def test_whole_numbers_stay_whole_where_any_number_is_taken(model_config):
    sizes = [[32], [64], [128], [256], [512.5]]
    found = resolve_config(model_config(FASTER_RCNN_FILE, width=1, anchor_sizes=sizes))
    assert type(found["width"]) is int
    assert [type(size) for (size,) in found["anchor_sizes"]] == [int] * 4 + [float]
