import copy

import pytest
from small_detectors import model_file


@pytest.fixture(scope="session")
def model_config():
    """A function from the name of a conf/model file, and changes to it, to a plain config."""

    def composed(name, **changes):
        return {**copy.deepcopy(model_file(name)), **changes}

    return composed
