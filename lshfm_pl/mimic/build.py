"""Building the trained terms from the `distill` section of a config."""

import inspect
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast

import torch
import yaml
from hydra.utils import get_class
from torch import nn

from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.kernels.winograd import SIDE, use_winograd
from lshfm_pl.mimic.balance import Rule
from lshfm_pl.mimic.features import FeatureTap, refuse_unpaired, tap_of
from lshfm_pl.mimic.losses.base import Loss, LossSum, require_number
from lshfm_pl.mimic.terms import Term, Terms, name_seed
from lshfm_pl.paths import CONFIG_DIR, named_in_own_configs
from lshfm_pl.seeding import mix_seed

__all__ = ["ENTRY_POINTS", "TeacherFacts", "build_losses", "refuse_unnamed_losses"]

ENTRY_POINTS = "lshfm_pl.losses"
"""Group of entry points with which other packages register their losses."""

OF_TERMS = ("weight", "warmup_steps", "until", "decay_from", "share", "match_scale")
"""Keys that are arguments of `Term`, not of the loss."""

BESIDE = "kd_beta"
"""Key that adds the class-logit loss to a feature loss. Its temperature is the key `temperature`."""

OF_TEACHER_ALONE = ("activation", "class_point")
"""Facts that do not belong to a point, and that a loss may need to choose its point."""

NOT_SETTINGS = ("check_teacher", "name", "_target_", "balance_rule", "pseudo_labels")

BALANCES = ("fixed", "share")


class TeacherFacts:
    """Facts about the teacher that can be defaults of a loss's constructor arguments (see `Loss.follows`).

    `num_features`: length D of a feature at `penultimate`, or of a 3×3 neighbourhood of the maps at `pyramid`: one
    for each level if levels differ.
    `classifier_std`: standard deviation of the classifier's weight. `activation`: `softmax` or `sigmoid`, which
    turns class logits into scores. `channels`: width of the features at the loss's point: a whole number; for
    `pyramid` one for each level that both detectors have; for `dense_head` one for each tower; for `class_maps` one
    for the pyramid and one for the logits. `student_channels`: the same of the student. `num_levels`: number of the
    student's pyramid levels. `class_point`: the point whose class logits have the shape that the head computes. A
    fact with `@<point>` after its name belongs to that point.

    Args:
        teacher: the detector that is mimicked.
        student: the detector that is trained.
    """

    def __init__(self, teacher: Any, student: Any) -> None:
        self._teacher, self._student = tap_of(teacher), tap_of(student)

    def fact(self, name: str, point: str) -> Any:
        """A fact by name, for a loss that compares at `point`.

        Raises:
            LSHFMError: student and teacher cannot be compared there.
        """
        name, _, other = name.partition("@")
        point = other or point
        if name not in OF_TEACHER_ALONE:
            refuse_unpaired([point], self._student, self._teacher)
        if name in ("channels", "student_channels"):
            tap = FeatureTap(self._student, self._teacher, frozenset({point}))
            return tap.channels(point)[name == "channels"]
        if name == "num_levels":
            return len(self._student.levels())
        if point == "pyramid" and name == "num_features":
            return self._num_features_of_maps()
        return getattr(self._teacher, name)

    def _num_features_of_maps(self) -> int | tuple[int, ...]:
        """Length of a 3×3 neighbourhood in the maps of the pyramid, or its length at each level if they differ."""
        widths = [width * SIDE**2 for width in self.fact("channels", "pyramid")]
        return widths[0] if len(set(widths)) == 1 else tuple(widths)


@cache
def built_in() -> dict[str, str]:
    """Name of each file in `conf/distill` that describes a loss → the import path of its class.

    Configs without `_target_`, such as those of older runs, name such a file.
    """
    files = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted(CONFIG_DIR.glob("distill/[!_]*.yaml"))
    ]
    return {content["name"]: content["_target_"] for content in files if "_target_" in content}


def build_losses(
    name: str, teacher: nn.Module, *, student: nn.Module | None = None, init_seed: int = 0, **settings: Any
) -> Terms:
    """Build the terms that a config of the group `distill` describes.

    Args:
        name: name of the config, under which a single loss is logged.
        teacher: detector whose features are mimicked.
        student: detector that is trained, which determines the pyramid levels for losses with one trained part per
            level; None to use the teacher's levels.
        init_seed: seed of the initial weights of trained parts. The global random state stays unchanged.
        settings: the other keys of the config. `_target_` is the import path of a `Loss` or a `LossSum`; without
            it, `name` is an entry point of the group `lshfm_pl.losses` or a built-in loss. `weight`,
            `warmup_steps`, `until`, `decay_from`, `share` and `match_scale` are arguments of the term. `balance`
            says how its weight is set, and `balance_rule` how weights follow from gradients. `kd_beta` above 0 adds
            the class-logit loss with `temperature`. `terms` replaces all of these by the settings of several
            losses, by name; `balance` beside it, if not None, is that of all of them. Other keys are arguments of
            the loss.

    Raises:
        LSHFMError: unknown name or key, invalid number, or a hash file that does not fit.
    """
    rule = _rule_of(settings)
    overall = _checked_balance(settings.get("balance"))
    entries = settings.pop("terms", None)
    if entries is None:
        entries, prefix = {name: settings}, "distill."
    else:
        prefix = "distill.terms."
        others = [key for key in settings if key not in (*NOT_SETTINGS, "balance")]
        if others:
            raise LSHFMError(
                f"distill.{others[0]}: with several losses, each has its own settings; give "
                f"{' or '.join(f'{prefix}{entry}.{others[0]}=…' for entry in entries)}"
            )
    facts = TeacherFacts(teacher, teacher if student is None else student)
    found: list[tuple[str, str, Term]] = []
    with torch.random.fork_rng(devices=[]):
        for entry, own in entries.items():
            torch.manual_seed(mix_seed(init_seed, name_seed(entry)))
            try:
                of_entry = dict(own) if overall is None else {**own, "balance": overall}
                found += [(entry, part, term) for part, term in _terms_of(entry, of_entry, facts)]
            except LSHFMError as error:
                if prefix == "distill." or not str(error).startswith("distill."):
                    raise
                raise LSHFMError(str(error).replace("distill.", f"{prefix}{entry}.", 1)) from error
    parts = [part for _, part, _ in found]
    terms = Terms(
        {part if parts.count(part) == 1 else f"{entry}_{part}": term for entry, part, term in found}
    )
    terms.rule = rule
    use_winograd(terms)  # such convolutions are almost all of the time of the losses that train some
    return terms


def _checked_balance(value: Any) -> str | None:
    if value is not None and value not in BALANCES:
        raise LSHFMError(f"distill.balance: expected {' or '.join(BALANCES)}, found {value!r}")
    return cast(str | None, value)


def _rule_of(settings: Mapping[str, Any]) -> Rule:
    """How the factors of balanced terms follow from their gradients."""
    given = dict(settings.get("balance_rule") or {})
    unknown = [key for key in given if key not in Rule._fields]
    if unknown:
        expected = ", ".join(Rule._fields)
        raise LSHFMError(f"distill.balance_rule.{unknown[0]}: expected one of {expected}")
    rule = Rule(**given)
    rule.check()
    return rule


def refuse_unnamed_losses(settings: Mapping[str, Any]) -> None:
    """Stop if the `distill` config of a file that a stranger may have written would import a module.

    Losses of this package, of installed packages, and those that a YAML in `--config-dir` names are known.

    Raises:
        LSHFMError: it names another class.
    """
    terms = settings.get("terms") or {"": settings}
    installed = {point.value.replace(":", ".") for point in entry_points(group=ENTRY_POINTS)}
    known = {None, *built_in().values(), *installed, *named_in_own_configs("distill", "_target_")}
    for target in (dict(term).get("_target_") for term in terms.values()):
        if target not in known:
            raise LSHFMError(
                f"distill._target_: a file may not make this command import {target}. Put the folder of its module "
                "on PYTHONPATH, and give --config-dir=<folder> with a distill/<name>.yaml that names it."
            )


def _terms_of(entry: str, settings: dict[str, Any], facts: TeacherFacts) -> list[tuple[str, Term]]:
    """The terms of one entry, by the names under which they are logged."""
    loss_type = _type_of(str(settings.get("name", entry)), settings.get("_target_"))
    for key in NOT_SETTINGS:
        settings.pop(key, None)
    balance = _checked_balance(settings.pop("balance", None))
    of_term = {key: settings.pop(key) for key in OF_TERMS if key in settings}
    beside = []
    of_logits_too = {key: value for key, value in of_term.items() if key != "match_scale"}
    if BESIDE in settings:
        beta, temperature = settings.pop(BESIDE), settings.pop("temperature", 1.0)
        require_number(BESIDE, beta)
        of_logits = {"beta": beta, "temperature": temperature}
        if beta == 0:
            of_logits["activation"] = "softmax"  # without the term the detectors need no logits to compare
        logits = _construct("kd", _type_of("kd", None), of_logits, facts)
        beside = [("kd", Term(cast(Loss, logits), **of_logits_too))] if beta > 0 else []
    loss = _construct(entry, loss_type, settings, facts)
    parts = loss.losses.items() if isinstance(loss, LossSum) else [(entry, loss)]
    terms = [(part, Term(cast(Loss, each), **of_term)) for part, each in parts]
    for _, term in terms:
        term.num_parts = len(terms)
    for _, term in [*terms, *beside]:
        term.is_balanced = balance == "share"
    return [*terms, *beside]


def _type_of(name: str, target: str | None) -> type[Loss | LossSum]:
    path = target
    if path is None:
        named = entry_points(group=ENTRY_POINTS, name=name)
        path = next((point.value.replace(":", ".") for point in named), None) or built_in().get(name)
    if path is None:
        raise LSHFMError(
            f"distill: expected one of {', '.join(built_in())}, or a file of your own with _target_, found {name!r}"
        )
    try:
        found = get_class(path)
    except Exception as error:  # a third-party module may raise anything at import
        reason = str(error).splitlines()[0]
        raise LSHFMError(f"distill._target_: {path} cannot be imported: {reason}") from error
    if not issubclass(found, Loss | LossSum):
        raise LSHFMError(f"distill._target_: expected a subclass of lshfm_pl.mimic.Loss, found {path}")
    return found


def _construct(
    name: str, loss_type: type[Loss | LossSum], settings: dict[str, Any], facts: TeacherFacts
) -> Loss | LossSum:
    known = _arguments_of(loss_type)
    for argument, fact in getattr(loss_type, "follows", {}).items():
        if settings.get(argument) is None:
            point = str(settings.get("point") or getattr(loss_type, "point", "penultimate"))
            settings[argument] = facts.fact(fact, point)
    unknown = [key for key in settings if key not in known]
    if unknown:
        expected = first_few([key for key in known if key not in getattr(loss_type, "follows", {})], 20)
        raise LSHFMError(f"distill.{unknown[0]}: {name} has no such setting; expected one of {expected}")
    missing = [key for key, is_needed in known.items() if is_needed and key not in settings]
    if missing:
        raise LSHFMError(f"distill.{missing[0]}: {name} needs it; give distill.{missing[0]}=…")
    return loss_type(**settings)


def _arguments_of(loss_type: Any) -> dict[str, bool]:
    """The names of a constructor's arguments, and whether each is required."""
    found: dict[str, bool] = {}
    for parameter in inspect.signature(loss_type).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = getattr(loss_type, "settings_of", None)  # the class that takes the keyword arguments
            found |= {} if rest is None else {**_arguments_of(rest), **found}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[parameter.name] = parameter.default is parameter.empty
    return found
