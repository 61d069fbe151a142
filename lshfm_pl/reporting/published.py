"""The published figures, which the experiments' files tell in their heads."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from lshfm_pl.paths import CONFIG_DIR
from lshfm_pl.reporting.runs import Run

__all__ = ["data_name", "published_ap50", "published_of_run"]

NOT_A_DATA_SET = ("root", "download", "batch_size", "eval_batch_size", "num_workers", "aspect_ratio_groups",
                  "flip_probability", "seed", "class_names", "on_bad_sample")  # fmt: skip
"""Keys of `data` that do not say which images it is."""


@cache
def published_ap50(experiment: str) -> float | None:
    """The published AP50 (0–100) of `conf/experiment/<experiment>.yaml`; None without such a file or figure."""
    path = CONFIG_DIR / "experiment" / f"{experiment}.yaml"
    if not path.is_file():
        return None
    found = re.search(r"^# .*Published: AP50 (\d+\.\d)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return float(found[1]) if found else None


def published_of_run(run: Run) -> float | None:
    """The published AP50 of the row that has a run's data, detector, teacher and loss; None where there is none."""
    names = [data_name(run.results.get("data")), run.model]
    if run.role == "student" and not run.is_plain:
        architecture = run.model.partition("_")[0]
        names += [str(run.teacher).removeprefix(f"{architecture}_"), run.loss]
    return None if names[0] is None else published_ap50("_".join(map(str, names)))


def data_name(data: Any) -> str | None:
    """The file of `conf/data/` whose images a run's data are; None for one's own."""
    if not isinstance(data, Mapping):
        return None
    wanted = _images(data)
    return next((name for name, images in _known_data().items() if images == wanted), None)


@cache
def _known_data() -> dict[str, dict[str, Any]]:
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in CONFIG_DIR.glob("data/*.yaml")
    }
    return {name: _images(data) for name, data in files.items() if "???" not in data.values()}


def _images(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in NOT_A_DATA_SET}
