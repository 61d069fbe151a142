"""A skipped step is repeated with its weights, images and random numbers."""

import json
import re
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small_detectors import STUDENTS

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.replay import replay
from lshfm_pl.training.run import train


def replayed(file):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return replay(compose("replay", overrides=[f"file={file}"]))


@pytest.fixture(scope="module", params=STUDENTS)
def skipped(request, tmp_path_factory):
    """Folder of a run with two steps skipped: its loss is scaled to infinity in the middle."""
    folder = tmp_path_factory.mktemp("run")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(
            "train",
            [
                "data=shapes", f"data.root={folder}/data", "data.num_train=16", "data.num_val=2", "data.num_test=2",
                "data.batch_size=4", "schedule=quickstart", "schedule.epochs=1", f"model={request.param}",
                "model.min_size=[48,64,96]", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
                "+callbacks.spoil._target_=interruptions.SpoilWeights", f"output_dir={folder}/run",
            ],
        )  # fmt: skip
    train(config)
    return folder / "run" / "nonfinite"


@pytest.mark.slow
def test_replay_gives_the_recorded_losses_bit_by_bit(skipped):
    (file,) = skipped.glob("*.json")
    recorded = json.loads(file.read_text())
    rows = replayed(file)
    losses = recorded["batches"][0]["losses"]
    assert {row["name"] for row in rows} == {*losses, "gradient norm"}
    assert all(row["same"] for row in rows)
    finite = [row for row in rows if row["recorded"] == row["recorded"]]
    assert finite
    assert all(row["recorded"] == row["replayed"] for row in finite)
    assert len(finite) < len(rows)


@pytest.mark.slow
def test_other_random_numbers_are_noticed(skipped, tmp_path):
    (file,) = skipped.glob("*.json")
    content = json.loads(file.read_text())
    content["batches"][0]["place"]["batch_idx"] += 1
    (tmp_path / "step.json").write_text(json.dumps(content))
    (tmp_path / content["weights"]).write_bytes(file.with_name(content["weights"]).read_bytes())
    assert not all(row["same"] for row in replayed(tmp_path / "step.json"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weights": 3}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(LSHFMError, match="expected the step_….json of a run's nonfinite folder"):
        replayed(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model.architecture": "antigravity.FLY"}, "found 'antigravity.FLY'. A file may not make this"),
        ({"model.backbone": "antigravity.FLY"}, "found 'antigravity.FLY'. A file may not make this"),
        ({"distill._target_": "antigravity.Fly"}, "a file may not make this command import antigravity.Fly"),
        (
            {"distill.terms": {"l2": {"_target_": "antigravity.Fly"}}},
            "a file may not make this command import antigravity.Fly",
        ),
        (
            {"schedule.lr": "${of_architecture:antigravity.FLY,learning_rate}"},
            "expected values in the config of a run, found the reference ${of_architecture:antigravity.FLY",
        ),
        ({"data._target_": "antigravity.Fly"}, "found 'antigravity.Fly'. For your own class"),
    ],
)
def test_a_step_of_a_stranger_imports_nothing(tmp_path, change, told):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        start = [f"model={STUDENTS[0]}", "distill=l2", "data=shapes", "data.root=data", "output_dir=run"]
        config = compose("train", start)
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    for key, value in change.items():
        OmegaConf.update(config, key, value)
    content = {"state_dict": {}, "config": OmegaConf.to_container(config)}
    torch.save(content, tmp_path / "w.ckpt")
    place = {"step": 0, "epoch": 0, "batch_idx": 0, "rank": 0}
    batch = {"place": place, "images": [{"index": 0, "id": "1"}], "losses": {"loss": 1.0}}
    step = {"weights": "w.ckpt", "gradient_norm": 1.0, "world_size": 1, "batches": [batch]}
    (tmp_path / "x.json").write_text(json.dumps(step))
    with pytest.raises(LSHFMError, match=re.escape(told)):
        replayed(tmp_path / "x.json")
    assert "antigravity" not in sys.modules


def test_weights_are_looked_for_beside_the_file_alone(tmp_path):
    elsewhere = tmp_path / "elsewhere.ckpt"
    torch.save({"state_dict": {}, "config": {}}, elsewhere)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/x.json").write_text(json.dumps({"weights": "../elsewhere.ckpt"}))
    with pytest.raises(LSHFMError, match="inside/elsewhere.ckpt"):
        replayed(tmp_path / "inside/x.json")


def test_weights_without_their_config_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "w.ckpt")
    (tmp_path / "x.json").write_text(json.dumps({"weights": "w.ckpt"}))
    with pytest.raises(LSHFMError, match="expected weights with the config of their run"):
        replayed(tmp_path / "x.json")
