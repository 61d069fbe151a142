"""scripts/evidence.py: the planned comparisons on real pictures."""

import subprocess
import sys

import evidence
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from lshfm_pl.paths import CONFIG_DIR

SCRIPT = CONFIG_DIR.parent / "scripts" / "evidence.py"
PLAN = yaml.safe_load(evidence.PLAN.read_text(encoding="utf-8"))
TINY = {
    "arguments": [
        "data=shapes", "data.root={shapes}", "data.num_train=16", "data.num_val=2", "data.num_test=4",
        "data.batch_size=4", "epochs=1", "jobs=1", "trainer.accelerator=cpu",
    ],
    "comparisons": [
        {"name": "tiny", "arguments": [], "distill": "[none,{maps:{loss:l2,point:pyramid}}]", "seeds": [3]},
    ],
}  # fmt: skip


FOLDERS = {
    "voc": "/data/voc",
    "bccd": "/data/bccd",
    "weights": "/data/weights",
    "output": "outputs",
    "lists": "/lists",
}


@pytest.mark.parametrize("comparison", PLAN["comparisons"], ids=lambda comparison: comparison["name"])
def test_planned_comparison_is_one_that_the_command_takes(comparison):
    runs = evidence.runs_of(comparison)
    for _, _, command, *arguments in evidence.commands_of(PLAN, comparison, FOLDERS):
        assert not any(evidence.PLACES.search(item) for item in arguments)
        overrides = OverridesParser.create().parse_overrides(arguments)
        keys = [override.key_or_group for override in overrides]
        assert len(set(keys)) == len(keys)
        assert {"data", "data.root", "schedule", "output_dir", "distill"} <= set(keys)
        if command == "lshfm_pl.train":
            assert {"seed", "resume"} <= set(keys)
            assert all(run.startswith(f"{comparison['name']}_seed") for run in runs)
            continue
        trains_teacher = "teacher" not in comparison
        assert ("teacher.model" in keys, "teacher.checkpoint" in keys) == (trains_teacher, not trains_teacher)
        assert (runs[0] == "teacher") == trains_teacher


def test_teachers_are_runs_of_the_plan():
    runs = {
        f"{evidence.folder_of(comparison)}/{run}"
        for comparison in PLAN["comparisons"]
        for run in evidence.runs_of(comparison)
    }
    assert {comparison["teacher"] for comparison in PLAN["comparisons"] if "teacher" in comparison} < runs


def test_list_has_a_line_for_each_run_and_a_missing_folder_is_named(tmp_path, capsys):
    assert evidence.main(["--list", "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "runs.md").read_text().splitlines()[2:]
    assert len(lines) == len(set(lines))
    assert {line.split(" | ")[1] for line in lines} == {
        run for comparison in PLAN["comparisons"] for run in evidence.runs_of(comparison)
    }
    assert all("| planned |" in line for line in lines)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    assert evidence.main([f"voc={tmp_path}", "--output", str(tmp_path)]) == 1
    assert "train.txt: expected a list of images" in capsys.readouterr().err
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    assert evidence.main([f"voc={tmp_path}", "--output", str(tmp_path)]) == 1
    assert "needs a folder: give weights=<folder>" in capsys.readouterr().err
    assert (tmp_path / "third.txt").read_text() == "a\nd"
    assert (tmp_path / "others.txt").read_text() == "JPEGImages/b.jpg\nJPEGImages/c.jpg\nJPEGImages/d.jpg"


@pytest.mark.slow
def test_what_is_not_finished_is_done_and_listed(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    command = [
        sys.executable,
        str(SCRIPT),
        f"shapes={tmp_path}/data",
        "--plan",
        str(plan),
        "--output",
        str(tmp_path),
    ]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "runs.md").read_text().splitlines()[2:]
        assert [line.split(" | ")[1:3] for line in lines] == [
            ["teacher", "done"],
            ["none_seed3", "done"],
            ["maps_seed3", "done"],
        ]
    assert "already finished" in done.stdout + done.stderr
