"""The command with sums of losses, and with a user's own loss from another folder."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from test_train import ROOT, SMALL

from lshfm_pl.runs.result_files import RESULTS_FILE

LOSS = """
    import torch.nn.functional as F
    from torch import nn

    from lshfm_pl.mimic import Loss


    class MapLoss(Loss):
        point = "pyramid"
        follows = {"channels": "channels"}

        def __init__(self, channels, gain):
            super().__init__()
            self.gain = gain
            self.layers = nn.ModuleList(nn.Conv2d(width, width, 1) for width in channels)

        def forward(self, student, teacher, context):
            levels = zip(self.layers, student, teacher)
            return self.gain * sum(F.mse_loss(layer(ours), theirs) for layer, ours, theirs in levels)
"""
CONFIG = """
    name: map_loss
    _target_: map_loss.MapLoss
    gain: 0.5
    check_teacher: false
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a loss and its config, and one with a teacher."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "conf/distill").mkdir(parents=True)
    (folder / "conf/distill/map_loss.yaml").write_text(textwrap.dedent(CONFIG))
    (folder / "map_loss.py").write_text(textwrap.dedent(LOSS))
    train(folder, folder / "teacher", "model=retinanet_resnet18fpn_small", "role=teacher")
    return folder


def train(own, output, *overrides, status=0):
    done = subprocess.run(
        [
            sys.executable, "-m", "lshfm_pl.train", f"--config-dir={own}/conf", *SMALL, f"data.root={own}/shapes",
            f"hydra.run.dir={output}", *overrides,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{own}"},
        capture_output=True,
        text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == status, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_loss_of_ones_own_is_a_class_and_a_file_beside_the_packages(own, tmp_path):
    student = [
        "model=fasterrcnn_resnet10fpn_tiny", "model.fpn_channels=32", "distill=map_loss", "distill.gain=2",
        f"teacher.checkpoint={own}/teacher/checkpoints/last.ckpt", "schedule.epochs=2",
    ]  # fmt: skip
    told = train(own, tmp_path / "whole", *student)
    assert "adapter" in told
    train(own, tmp_path / "part", *student, "trainer.max_epochs=1")
    train(
        own, tmp_path / "part", *student, "resume=auto", "trainer.max_epochs=2", "resume_allow_changes=true"
    )
    whole, part = (
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "part")
    )
    assert {"mimic.map_loss.loss.layers.0.weight", "mimic.map_loss.adapter.layers.0.weight"} < whole.keys()
    assert whole.keys() == part.keys()
    assert all(torch.equal(value, part[key]) for key, value in whole.items())
    best = torch.load(tmp_path / "whole/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert not any(key.startswith("mimic.") for key in best)
    assert "train/mimic_map_loss" in (tmp_path / "whole/metrics.csv").read_text()
    assert json.loads((tmp_path / "whole" / RESULTS_FILE).read_text())["distill"]["gain"] == 2


@pytest.mark.slow
def test_sum_of_losses_is_one_run_with_settings_of_each(own, tmp_path):
    train(
        own,
        tmp_path / "run",
        "model=retinanet_resnet10fpn_tiny",
        "distill=[lshl2,kd,pkd,map_loss]",
        "distill.terms.pkd.levels=3",
        "distill.terms.lshl2.num_hashes=16",
        "distill.terms.kd.beta=0.25",
        "distill.terms.map_loss.gain=0.75",
        f"teacher.checkpoint={own}/teacher/checkpoints/last.ckpt",
    )
    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"train/mimic_{name}" for name in ("l2", "lsh", "kd", "pkd", "map_loss")} <= set(header)
    distill = json.loads((tmp_path / "run" / RESULTS_FILE).read_text())["distill"]
    assert distill["name"] == "lshl2+kd+pkd+map_loss"
    assert distill["terms"]["kd"]["beta"] == 0.25


@pytest.mark.slow
def test_setting_of_a_single_loss_is_refused_for_a_sum(own, tmp_path):
    told = train(
        own, tmp_path / "run", "model=retinanet_resnet10fpn_tiny", "distill=[l2,kd]", "+distill.beta=3",
        f"teacher.checkpoint={own}/teacher/checkpoints/last.ckpt", status=1,
    )  # fmt: skip
    assert "did you mean distill.terms.l2.beta=3, distill.terms.kd.beta=3" in told
