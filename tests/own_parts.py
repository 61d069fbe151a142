"""Runs commands with parts outside of the package, such as a user's own file and its YAML."""

import os
import subprocess
import sys

from lshfm_pl.cli import CONFIG_DIR


def run_with(parts, folder, name, *arguments, status=0):
    """Run `lshfm_pl.<name>` in `folder`, the modules of the folder `parts` being importable."""
    done = subprocess.run(
        [sys.executable, "-m", f"lshfm_pl.{name}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(parts), str(CONFIG_DIR.parent)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    return done
