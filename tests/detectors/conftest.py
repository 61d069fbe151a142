import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lshfm_pl.cli import CONFIG_DIR


@pytest.fixture(scope="session")
def model_config():
    """A function from the name of a conf/model file, and changes to it, to a plain config."""

    def composed(name, **changes):
        with initialize_config_dir(str(CONFIG_DIR / "model"), version_base="1.3"):
            return {**OmegaConf.to_container(compose(name)), **changes}

    return composed
