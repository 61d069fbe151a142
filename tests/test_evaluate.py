import pytest
from omegaconf import OmegaConf
from run_files import write_run

from lshfm_pl.errors import LSHFMError
from lshfm_pl.evaluate import evaluate


def test_results_of_a_run_are_not_replaced(tmp_path):
    run = write_run(tmp_path / "run")
    before = (run / "results.json").read_bytes()
    with pytest.raises(LSHFMError, match="holds the results of a run, which would be overwritten"):
        evaluate(OmegaConf.create({"output_dir": str(run)}))
    assert (run / "results.json").read_bytes() == before
