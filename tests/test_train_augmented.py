"""Runs with mixed pictures: resumed in the middle of an epoch, replayed, and in comparisons."""

import pytest
import torch
from compositions import composed, small_training
from hydra import compose, initialize_config_dir
from interruptions import Killed

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.replay import replay
from lshfm_pl.runs.planning import make_plan
from lshfm_pl.training.run import train

MIXED = ("augment=strong", "augment.transforms.1.p=0.5", "augment.transforms.2.p=0.5")


def config_of(folder, *overrides):
    return small_training(folder, "data.num_train=16", "model.min_size=[48,64,96]", *overrides)


@pytest.mark.slow
def test_run_is_resumed_bit_identically_in_the_middle_of_an_epoch(tmp_path):
    stop = "+callbacks.stop={_target_: interruptions.StopAt, batch: 5}"
    train(config_of(tmp_path, f"output_dir={tmp_path}/whole", *MIXED))
    with pytest.raises(Killed):
        train(config_of(tmp_path, f"output_dir={tmp_path}/cut", stop, *MIXED))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert 4 < torch.load(last, weights_only=True)["global_step"] < 8
    with pytest.raises(LSHFMError, match="augment: CopyPaste.* → published. Resume with the same settings"):
        train(config_of(tmp_path, f"output_dir={tmp_path}/cut", f"resume={last}", "augment=published"))
    train(config_of(tmp_path, f"output_dir={tmp_path}/cut", f"resume={last}", "data.num_workers=2", *MIXED))
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "cut")
    )
    assert whole["global_step"] == resumed["global_step"] == 8
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key


@pytest.mark.slow
def test_a_skipped_step_is_repeated_with_the_same_pictures(tmp_path):
    spoil = "+callbacks.spoil._target_=interruptions.SpoilWeights"
    train(
        config_of(
            tmp_path, f"output_dir={tmp_path}/run", "data.num_train=8", "schedule.epochs=1", spoil, *MIXED
        )
    )
    (file,) = (tmp_path / "run" / "nonfinite").glob("*.json")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        rows = replay(compose("replay", overrides=[f"file={file}"]))
    assert all(row["same"] for row in rows)
    assert any(row["recorded"] == row["recorded"] for row in rows)


def test_all_runs_of_a_comparison_have_the_same_augmentation(tmp_path):
    plan = make_plan(composed("augment=strong", "augment.transforms.0.p=0.9"))
    for role in ("teacher", "student"):
        assert plan.of_role(role)[-2:] == ["augment=strong", "augment.transforms.0.p=0.9"]
