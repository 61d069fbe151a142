import copy

import pytest
from small_detectors import model_file


@pytest.fixture(scope="session")
def model_config():
    """A function that returns the config of a file of conf/model, with changes, as a dict."""

    def composed(name, **changes):
        return {**copy.deepcopy(model_file(name)), **changes}

    return composed
