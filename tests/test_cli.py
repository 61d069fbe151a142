"""How failures are told."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lshfm_pl.cli import refuse_missing_values, told
from lshfm_pl.errors import LSHFMError


def failure_of(target, **arguments):
    with pytest.raises(Exception, match="Error in call") as caught:
        instantiate(OmegaConf.create({"part": {"_target_": target, **arguments}}).part)
    return caught.value


def test_own_failures_inside_instantiated_objects_are_told_as_they_are():
    error = failure_of("lshfm_pl.data.VOCDataModule", root="x", train_split="a", val_split="b", batch_size=0)
    assert told(error) == "data.batch_size must be a whole number of at least 1, found 0."
    assert told(LSHFMError("so it is")) == "so it is"


def test_other_failures_inside_instantiated_objects_name_key_and_reason():
    assert told(failure_of("pytorch_lightning.Trainer", max_epocs=1)).startswith("part: TypeError: ")


def test_values_that_must_be_given_are_named():
    refuse_missing_values(OmegaConf.create({"a": 1}))
    with pytest.raises(LSHFMError, match="no value for data.root: give data.root="):
        refuse_missing_values(OmegaConf.create({"data": {"root": "???"}}))
