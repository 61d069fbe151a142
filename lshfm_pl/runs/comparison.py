"""The runs of a comparison, and the overrides with which each of them is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from lshfm_pl.cli import has_teacher_labels, inherited_parts
from lshfm_pl.cli.students import Student
from lshfm_pl.data.fingerprint import Fingerprint
from lshfm_pl.runs.defaults import Choice
from lshfm_pl.runs.overrides import quoted

__all__ = ["Plan", "Typed"]

PASSED_ON = ("augment", "data", "kernels", "schedule", "trainer")
"""Config groups whose overrides on the command line are passed to every run."""


@dataclass(frozen=True)
class Typed:
    """The overrides on a comparison's command line.

    Attributes:
        of: role → the overrides for its runs, as pairs of a key and the argument of `train`.
        given: all keys on the command line.
    """

    of: Mapping[str, Sequence[tuple[str, str]]]
    given: frozenset[str]

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "Typed":
        """Sort the overrides of a command line by the role that they are for: `teacher` or `student`."""
        of: dict[str, list[tuple[str, str]]] = {"teacher": [], "student": []}
        given = set()
        for override in OverridesParser.create().parse_overrides(list(arguments)):
            key, argument = override.key_or_group, str(override.input_line)
            given.add(key)
            first = key.partition(".")[0]
            for role, passed in of.items():
                if first in PASSED_ON and key != "data":
                    passed.append((key, argument))
                elif key == "model" and override.package == f"{role}.model":
                    given.add(f"{role}.model")
                elif key.startswith(f"{role}.model."):
                    own = key.removeprefix(f"{role}.")
                    passed.append((own, argument.replace(key, own, 1)))
        return cls(of, frozenset(given))

    def keys(self, role: str) -> set[str]:
        """The keys that are given for a role."""
        return {key for key, _ in self.of[role]}

    def overrides(self, role: str) -> list[str]:
        """The arguments of `train` that are given for a role."""
        return [argument for _, argument in self.of[role]]


@dataclass
class Plan:
    """The overrides of the runs of each role.

    Attributes:
        config: config of the comparison.
        typed: overrides of its command line.
        models: role → name of the file in `conf/model/`.
        data: name of the file in `conf/data/`.
        experiments: role → name of the file in `conf/experiment/` that the runs use instead of `models` and `data`,
            as in the quickstart; None without experiments.
        chosen: role → settings that were chosen by the images and objects of the data.
        fingerprint: of the data; None if they were not read.
    """

    config: DictConfig
    typed: Typed
    models: Mapping[str, str]
    data: str
    experiments: Mapping[str, str] | None
    chosen: dict[str, list[Choice]] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None

    def of_role(self, role: str) -> list[str]:
        """The overrides that all runs of a role share."""
        if self.experiments is not None:
            overrides = [f"experiment={self.experiments[role]}"]
            if f"{role}.model" in self.typed.given:
                overrides.append(f"model={self.models[role]}")
        else:
            overrides = [f"model={self.models[role]}", f"data={self.data}", "schedule=quickstart"]
            overrides += [] if role == "student" else ["role=teacher"]
        chosen = [item for choice in self.chosen.get(role, []) for item in choice.overrides]
        epochs, side = self.epochs(role), self.config.image_size
        if not chosen:
            chosen += [] if epochs is None else [f"schedule.epochs={epochs}"]
            chosen += [] if side is None else [f"model.min_size=[{side}]"]
        own = {item.partition("=")[0] for item in chosen} | self.typed.keys(role)
        kept = [item for item in overrides if item.partition("=")[0] not in own]
        typed = self.typed.keys(role)
        kept += [self._addable(item) for item in chosen if item.partition("=")[0] not in typed]
        return [*kept, *self.typed.overrides(role)]

    def _addable(self, item: str) -> str:
        """An override that also adds its key where the file of the data does not have it: their class does."""
        group, _, key = item.partition("=")[0].partition(".")
        return f"++{item}" if group == "data" and key not in self.config.data else item

    def epochs(self, role: str) -> int | None:
        """The number of epochs that is given for a role; None if it is to be chosen."""
        own = self.config[role].epochs
        return self.config.epochs if own is None else own

    def teacher(self) -> list[str]:
        """The overrides of the teacher's training."""
        seed = [] if self.config.seed == 0 else [f"seed={self.config.seed}"]
        return [*_without_unlabelled(self.of_role("teacher")), *seed]

    def evaluation(self) -> list[str]:
        """The overrides for evaluating a given teacher."""
        teacher = self.config.teacher
        keys = ("data.", "kernels.", "trainer.accelerator", "trainer.devices", "trainer.limit_test_batches")
        chosen = [item for choice in self.chosen.get("teacher", []) for item in choice.overrides]
        typed = self.typed.keys("teacher")
        return [
            f"checkpoint={quoted(Path(teacher.checkpoint))}",
            f"which={teacher.which}",
            f"data={self.data}",
            *(
                self._addable(item)
                for item in chosen
                if item.startswith("data.eval_batch_size=") and "data.eval_batch_size" not in typed
            ),
            *(argument for key, argument in self.typed.of["teacher"] if key.startswith(keys)),
        ]

    def is_taught(self, student: Student) -> bool:
        """Whether a student has a teacher: it mimics it, gets labels from it, or inherits its parts."""
        inherits = student.inherits or bool(inherited_parts(self.config))
        return inherits or has_teacher_labels(self.config) or self._uses_pictures(student)

    @staticmethod
    def _uses_pictures(student: Student) -> bool:
        """Whether a student can learn from unlabelled pictures."""
        return student.loss != "none" or any("distill.pseudo_labels" in item for item in student.overrides)

    def student(self, student: Student, seed: int, teacher: Path) -> list[str]:
        """The overrides of a student's training; `teacher` is the teacher's checkpoint."""
        distilled = []
        parts = inherited_parts(self.config)
        if parts and not student.inherits:
            distilled.append(f"student.inherit=[{','.join(parts)}]")
        if self.is_taught(student):
            distilled.append(f"teacher.checkpoint={quoted(teacher)}")
            if self.config.teacher.which != "student":
                distilled.append(f"teacher.which={self.config.teacher.which}")
        of_role = self.of_role("student")
        return [
            *(of_role if self._uses_pictures(student) else _without_unlabelled(of_role)),
            f"distill={student.loss}",
            f"seed={seed}",
            *distilled,
            *student.overrides,
        ]


def _without_unlabelled(overrides: Sequence[str]) -> list[str]:
    """Overrides for a run that cannot learn from pictures without labels."""
    return [item for item in overrides if not item.lstrip("+").startswith("data.unlabelled")]
