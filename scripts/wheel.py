"""How a wheel is built: `conf/`, which lies beside the package, is put inside it.

pyproject.toml names `BuildWithConfig`. setuptools loads this file by its path: it imports nothing of the project.
"""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

__all__ = ["BuildWithConfig"]

CONFIG = "conf"


class BuildWithConfig(build_py):
    """setuptools' step that copies the package, and after it the config files into the copy."""

    def run(self) -> None:
        """Copy both. An editable install finds `conf/` where it is, so nothing is copied for it."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "lshfm_pl" / CONFIG
        # A file that is gone since the last build must not stay.
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(CONFIG, target)

    def get_source_files(self) -> list[str]:
        """Also the config files, so that a source distribution has them."""
        return [*super().get_source_files(), *map(str, sorted(Path(CONFIG).rglob("*.yaml")))]
