"""Values of config files that a detector family decides."""

import pytest
from compositions import composed

from lshfm_pl.cli.names import group_choices
from lshfm_pl.detectors.config import resolve_config
from lshfm_pl.runs.settings_of_run import comparable

ANCHORS = {
    "fasterrcnn": [[18], [30], [42], [60], [84]],
    "retinanet": [[15, 19, 24], [24, 30, 38], [38, 48, 60], [60, 76, 96], [96, 121, 152]],
}
"""Three quarters of those of the small models, which are for scenes of 128 pixels."""

SMALL = [name for name in group_choices("model") if name.endswith(("_small", "_tiny"))]


@pytest.mark.parametrize("name", SMALL)
def test_every_small_model_is_one_of_the_quickstarts(name):
    config = composed("output_dir=x", "experiment=quickstart", f"model={name}", command="train").model
    assert config.anchor_sizes == ANCHORS.get(config.architecture)
    resolved = resolve_config(config)
    assert ("anchor_sizes" in resolved) == (config.architecture in ANCHORS)
    assert resolved["min_size"] == [96]


def test_table_of_older_quickstarts_is_no_setting_of_a_run():
    assert comparable({"quickstart_anchors": ANCHORS, "seed": 0}) == {"seed": 0}
