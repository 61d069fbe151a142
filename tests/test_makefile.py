"""`make install` on machines with an unsuitable python3."""

import shutil
import subprocess
import sys

import pytest

from lshfm_pl.cli import CONFIG_DIR

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

OLD = """#!/bin/sh
[ "$1" = --version ] && echo Python 3.9.2
exit 1
"""


@pytest.fixture
def project(tmp_path):
    """The Makefile alone, with a Python that is too old."""
    shutil.copy(CONFIG_DIR.parent / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / "old").write_text(OLD)
    (tmp_path / "old").chmod(0o755)
    return tmp_path


def make(project, *arguments):
    return subprocess.run(["make", *arguments], cwd=project, capture_output=True, text=True, timeout=120)


def test_old_python_is_refused_before_a_venv_is_made_of_it(project):
    process = make(project, "test", "PYTHON=./old")
    assert process.returncode != 0
    told = process.stderr.splitlines()[0]
    assert told == (
        "error: expected Python 3.11 or newer, found Python 3.9.2: give another one, as in: "
        "make test PYTHON=python3.12"
    )
    assert not (project / ".venv").exists()


def test_venv_of_an_old_python_is_made_anew_and_a_good_one_is_kept(project):
    # Nothing is installed; the test looks at what would be.
    (project / "Makefile").write_text(
        (project / "Makefile").read_text().replace("-m pip install", "-c 'import sys; print(sys.prefix)'")
    )
    (project / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(project / "old", project / ".venv" / "bin" / "python")
    process = make(project, "install", f"PYTHON={sys.executable}")
    assert process.returncode == 0, process.stderr
    assert str(project / ".venv") in process.stdout.splitlines()
    (project / ".venv" / "kept").touch()
    (project / ".venv" / ".installed").unlink()
    assert make(project, "install", "PYTHON=./old").returncode == 0
    assert (project / ".venv" / "kept").exists()
