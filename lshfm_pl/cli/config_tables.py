"""Config files that are rows of tables: pairs of student and teacher, and experiments that differ in a few names.

Hydra finds each row as if it were a file of its group. They are registered when this module is imported.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from lshfm_pl.paths import CONFIG_DIR

__all__ = ["PAIRS_FILE", "pairs", "registered"]

PAIRS_FILE = CONFIG_DIR / "teacher_of" / "_pairs.yaml"
COCO_FILE = CONFIG_DIR / "experiment" / "_coco2017.yaml"

_names: dict[str, list[str]] = {}


def registered(group: str) -> list[str]:
    """The names in a group that are rows of a table, in the order of the table."""
    return list(_names.get(group, ()))


@cache
def pairs() -> dict[str, dict[str, str | None]]:
    """Student → `teacher`, and `checkpoint`, the path of the teacher's weights."""
    return _read(PAIRS_FILE)


def _read(path: Any) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _teachers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each student with the config node that adds its teacher."""
    for student, pair in pairs().items():
        yield (
            student,
            {
                "defaults": [{"/model@teacher.detector": pair["teacher"]}],
                "teacher": {"checkpoint": pair["checkpoint"]},
            },
        )


def _coco_experiments() -> Iterator[tuple[str, dict[str, Any]]]:
    """Experiments for each schedule and student: the teacher, the student alone, and the student with each loss."""
    table = _read(COCO_FILE)
    for length, schedule in table["schedules"].items():
        start = f"{table['data']}_{length}"
        common = [{"override /data": table["data"]}, {"override /schedule": schedule}]
        for student in table["students"]:
            teacher = str(pairs()[student]["teacher"])
            _, _, short = teacher.partition("_")
            yield (
                f"{start}_{teacher}",
                {"defaults": [{"override /model": teacher}, *common], "role": "teacher"},
            )
            yield f"{start}_{student}", {"defaults": [{"override /model": student}, *common]}
            for loss, settings in table["distill"].items():
                own = table["distill_of"].get(student, {}).get(loss, {})
                yield (
                    f"{start}_{student}_{short}_{loss}",
                    {
                        "defaults": [{"override /model": student}, {"override /distill": loss}, *common],
                        "distill": {**settings, **own},
                        "teacher": {"checkpoint": f"pretrained/{start}_{teacher}.ckpt"},
                    },
                )
    yield from _other_experiments(table)


def _other_experiments(table: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Experiments with other losses. A teacher or a student that is in no row above is trained alone, too."""
    listed = {*table["students"], *(pairs()[name]["teacher"] for name in table["students"])}
    for length, rows in table["others"].items():
        start = f"{table['data']}_{length}"
        common = [{"override /data": table["data"]}, {"override /schedule": table["schedules"][length]}]
        alone: dict[str, str] = {}
        for row in rows:
            student, teacher = row["student"], row["teacher"]
            alone |= {student: "student", teacher: "teacher"}
            _, _, short = teacher.partition("_")
            yield (
                f"{start}_{student}_{short}_{row['loss']}",
                {
                    "defaults": [
                        {"override /model": student},
                        {"override /model@teacher.detector": teacher},
                        {"override /distill": row["loss"]},
                        *common,
                    ],
                    "distill": {**table["weights"], **row.get("distill", {})},
                    "teacher": {"checkpoint": f"pretrained/{start}_{teacher}.ckpt"},
                    "student": {"inherit": row.get("inherit", [])},
                },
            )
        for name in sorted(alone.keys() - listed):
            yield f"{start}_{name}", {"defaults": [{"override /model": name}, *common], "role": alone[name]}


def _register() -> None:
    # Hydra copies what it looks up in, once for each group that `--help` lists. There is one store, of which it
    # copies the entries that it uses.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    for group, entries in (("teacher_of", _teachers()), ("experiment", _coco_experiments())):
        _names[group] = []
        for name, node in entries:
            store.store(name=name, node=node, group=group, package="_global_", provider="lshfm_pl")
            _names[group].append(name)


_register()
