"""The texts of overrides that are kept beside a run, whose folder may be moved."""

from pathlib import Path

__all__ = ["placed", "portable", "quoted"]


def quoted(path: Path) -> str:
    """A path as the value of a Hydra override, with special characters escaped."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def portable(override: str, folder: Path) -> str:
    """An override in which a path beside the run's folder begins with `../`, so that both may be moved together."""
    return override.replace(f"{_start_of_paths_beside(folder)}/", "'../")


def placed(override: str, folder: Path) -> str:
    """The inverse of `portable`: an override with the place that the run's folder has now."""
    return override.replace("'../", f"{_start_of_paths_beside(folder)}/")


def _start_of_paths_beside(folder: Path) -> str:
    return quoted(folder.parent).removesuffix("'")
