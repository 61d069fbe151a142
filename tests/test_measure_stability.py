"""scripts/measure_stability.py as a user calls it, for two steps of tiny detectors."""

import csv
import subprocess
import sys

import pytest

from lshfm_pl.paths import CONFIG_DIR

SCRIPT = CONFIG_DIR.parent / "scripts" / "measure_stability.py"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fasterrcnn", "retinanet"])
def test_every_step_has_a_row_with_losses_and_norms(architecture, tmp_path):
    process = subprocess.run(
        [
            sys.executable, str(SCRIPT), "--factor", "3", "--steps", "2", "--output", str(tmp_path / "stability"),
            f"model={architecture}_resnet10fpn_tiny", "model.min_size=[64]", "data=shapes", "data.num_train=4",
            "data.num_val=2", "data.num_test=2", "data.batch_size=2", f"data.root={tmp_path / 'data'}",
        ],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    name = f"{architecture}_resnet10fpn_tiny_none_x3_clip35.0.csv"
    assert process.stdout.startswith(f"{name}: finite; largest finite gradient ")
    with (tmp_path / "stability" / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0.0", "1.0"]
    assert all(float(row["feature_norm"]) > 0 and float(row["gradient_backbone"]) > 0 for row in rows)
