"""results.json."""

import ast
import json
import re
import shutil
import subprocess

import pytest
from omegaconf import OmegaConf

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_json
from lshfm_pl.runs import results
from lshfm_pl.runs.lock import FolderInUseError
from lshfm_pl.runs.results import code_hash, config_hash, git_commit, record_failure
from lshfm_pl.runs.settings_of_run import training_settings


def test_file_is_whole_json_with_null_for_nan(tmp_path):
    write_json(
        {"metrics": {"AP": 1.5, "AP/cat": float("nan")}, "list": [float("nan"), 2]}, tmp_path / "a/b.json"
    )
    text = (tmp_path / "a/b.json").read_text()
    assert json.loads(text) == {"metrics": {"AP": 1.5, "AP/cat": None}, "list": [None, 2]}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_json({"old": 1}, tmp_path / "b.json")
    with pytest.raises(TypeError):
        write_json({"new": object()}, tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == {"old": 1}


def test_config_hash_is_of_the_settings_and_not_of_the_folder():
    def hashed(**changes):
        return config_hash(
            OmegaConf.create({"output_dir": "/a", "dir": "${output_dir}/x", "lr": 1, **changes})
        )

    assert hashed() == hashed(output_dir="/b")
    assert hashed() != hashed(lr=2)


def test_commit_is_that_of_the_checkout_or_none():
    shown = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert git_commit() == (shown.stdout.strip() if shown.returncode == 0 else None)


def test_code_hash_is_one_of_the_files():
    assert code_hash() == code_hash()
    assert re.fullmatch(r"[0-9a-f]{16}", code_hash())


def test_code_hash_is_of_everything_but_rooms_without_figures(tmp_path, monkeypatch):
    shutil.copytree(results.PACKAGE, tmp_path / "lshfm_pl", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "lshfm_pl"
    monkeypatch.setattr(results, "PACKAGE", package)
    before = code_hash()
    for name in ("report.py", "reporting/tables.py", "cli/help.py", "visualize.py", "benchmarking/step.py"):
        (package / name).write_text((package / name).read_text() + "# changed\n")
    (package / "reporting" / "new.py").write_text("")
    assert code_hash() == before
    for name in (
        "train.py",
        "evaluate.py",
        "monitoring.py",
        "data/voc.py",
        "new_module.py",
        "new_room/part.py",
    ):
        (package / name).parent.mkdir(exist_ok=True)
        with (package / name).open("a") as file:
            file.write("# changed\n")
        assert code_hash() != before, name
        before = code_hash()


def test_rooms_out_of_the_code_hash_are_used_by_the_others_for_drawing_and_messages_alone():
    allowed = {
        ("training/callbacks/monitoring", "drawing"),  # pictures in TensorBoard
        ("evaluate", "reporting"),  # labels for the printed table
        ("detectors/published", "cli"),  # composes settings
    }
    composing = ("evaluate", "import_checkpoint", "inference", "runs", "train", "training")
    used = set()
    for path in results.hashed_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lshfm_pl"):
                if node.module == "lshfm_pl.cli.names":
                    continue  # words of messages, such as the closest valid name
                names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                used |= {
                    (path.relative_to(results.PACKAGE).with_suffix("").as_posix(), name) for name in names
                }
    allowed |= {(user, "cli") for user, _ in used if user.split("/")[0] in composing}
    assert {(user, name) for user, name in used if name in results.WITHOUT_FIGURES} <= allowed


def test_settings_are_those_that_may_change_figures():
    config = {
        "model": {"name": "m"},
        "schedule": {"epochs": 2},
        "trainer": {"precision": "32-true", "devices": 1, "log_every_n_steps": 5},
        "seed": 1,
    }
    settings = training_settings(config)
    assert (settings["model"], settings["schedule"]) == ({"name": "m"}, {"epochs": 2})
    assert settings["trainer"]["precision"] == "32-true"
    assert not {"devices", "log_every_n_steps"} & settings["trainer"].keys()


def test_why_a_run_failed_is_kept_until_it_is_repeated(tmp_path):
    with pytest.raises(LSHFMError), record_failure(tmp_path):
        raise LSHFMError("data.root: expected a folder")
    assert (tmp_path / "error.txt").read_text() == "data.root: expected a folder\n"
    with pytest.raises(ZeroDivisionError), record_failure(tmp_path):
        1 / 0
    text = (tmp_path / "error.txt").read_text()
    assert text.startswith("Traceback")
    assert text.endswith("ZeroDivisionError: division by zero\n")
    with record_failure(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_an_interrupted_run_has_not_failed_and_one_that_is_there_is_not_touched(tmp_path):
    with pytest.raises(KeyboardInterrupt), record_failure(tmp_path):
        raise KeyboardInterrupt
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(LSHFMError), record_failure(tmp_path):
        raise LSHFMError("holds a run already")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    with pytest.raises(RuntimeError), record_failure(tmp_path):
        raise RuntimeError("out of memory")
    kept = (tmp_path / "error.txt").read_text()
    assert kept.endswith("RuntimeError: out of memory\n")
    with pytest.raises(LSHFMError), record_failure(tmp_path):
        raise LSHFMError("holds a run already")
    assert (tmp_path / "error.txt").read_text() == kept


def test_run_that_another_process_is_at_has_not_failed(tmp_path):
    with pytest.raises(LSHFMError), record_failure(tmp_path):
        raise FolderInUseError("process 1 is working on this run")
    assert not any(tmp_path.iterdir())


def test_failure_that_cannot_be_kept_is_raised_all_the_same(tmp_path):
    (tmp_path / "error.txt").mkdir()  # like a full disk: files can be neither removed nor written
    with pytest.raises(ZeroDivisionError), record_failure(tmp_path):
        1 / 0
