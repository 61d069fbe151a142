"""results.json."""

import json
import subprocess

import pytest
from omegaconf import OmegaConf

from lshfm_pl.results import config_hash, git_commit, write_json


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
