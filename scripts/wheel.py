"""Building of a wheel: `conf/`, which lies beside the package, is copied into it.

pyproject.toml names `BuildWithConfig`. setuptools loads this file by its path, so it must not import the project.
"""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

__all__ = ["BuildWithConfig"]

CONFIG = "conf"


class BuildWithConfig(build_py):
    """setuptools' build step for the package, which also copies the config files into it."""

    def run(self) -> None:
        """Copy package and config files. An editable install uses `conf/` in place, so nothing is copied."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "lshfm_pl" / CONFIG
        # A file that was deleted since the last build must not remain.
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(CONFIG, target)

    def get_source_files(self) -> list[str]:
        """The source files including the config files, so that a source distribution contains them."""
        return [*super().get_source_files(), *map(str, sorted(Path(CONFIG).rglob("*.yaml")))]
