"""The examples run, and they are short."""

import runpy
from pathlib import Path

import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_parts.py"


def test_own_data_and_detector_are_distilled_in_under_forty_lines(capsys):
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) < 40
    torch.manual_seed(0)
    ended = runpy.run_path(str(EXAMPLE))
    assert "mimic_l2" in capsys.readouterr().out
    student = ended["student"]
    image, target = ended["Squares"]()[5]
    with torch.no_grad():
        (found,) = student([image / 255])
    best, (truth,) = found["boxes"][found["scores"].argmax()], target["boxes"]
    assert (best - truth).abs().max() < 8  # pixels: the student has learned to find the square
