"""Error messages for command lines that Hydra cannot compose: what is wrong, and the closest valid names."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli.grammar import Argument, for_shell, path_exists, quoted
from lshfm_pl.cli.help import CUT_CHOICES
from lshfm_pl.cli.inputs import OF_ALL_LOSSES
from lshfm_pl.cli.kinds import kind_of
from lshfm_pl.cli.names import (
    alternatives,
    choices_with_key,
    close_choices,
    closest_keys,
    commands_with_group,
    commands_with_key,
    group_choices,
    groups,
    groups_with_choice,
    trainer_arguments,
    valid_keys,
)
from lshfm_pl.cli.own_files import OF_OWN_FILES
from lshfm_pl.cli.own_folder import folders_of, is_group
from lshfm_pl.cli.ranges import choices_of
from lshfm_pl.errors import first_few
from lshfm_pl.paths import from_home

__all__ = ["config_error", "unknown_flag"]

PATH_SUFFIXES = {".ckpt", ".json", ".onnx", ".pt", ".pth", ".safetensors", ".xml", ".yaml", ".yml"}
"""Suffixes by which a value is recognised as a path."""

HYDRA_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/launcher")
"""Hydra's own settings that users change."""

KNOWN_FLAGS = ("--help", "--version", "--multirun", "--cfg", "--info")
"""Flags that users need."""

CLOSE_FLAG = 0.7
"""Smallest similarity, 0..1, of a flag that is suggested."""

TAKES_DATA = ("check_data", "compare", "train")
"""Commands for which a folder most likely contains data."""

INPUTS = {
    "evaluate": "checkpoint",
    "export": "checkpoint",
    "import_checkpoint": "src",
    "predict": "images",
    "replay": "file",
    "report": "runs",
    "train": "resume",
    "visualize": "checkpoint",
}
"""Command → key of its main input file or folder."""

WORDS_OF_OTHERS = {
    "amp": "trainer.precision",
    "annotations": "data.train_annotations",
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "ckpt": "checkpoint",
    "ckpt_path": "resume",
    "classes": "data.class_names",
    "conf": "score_threshold",
    "count": "random",
    "cuda": "trainer.accelerator",
    "dataset": "data",
    "device": "trainer.accelerator",
    "epoch": "schedule.epochs",
    "fp16": "trainer.precision",
    "gpu": "trainer.devices",
    "gpus": "trainer.devices",
    "image_size": "model.min_size",
    "images": "random",
    "img": "model.min_size",
    "img_size": "model.min_size",
    "imgsz": "model.min_size",
    "in": "src",
    "input": "images",
    "iterations": "trainer.max_steps",
    "learning_rate": "schedule.lr",
    "loss": "distill",
    "max_epochs": "schedule.epochs",
    "n": "random",
    "name": "hydra.run.dir",
    "names": "data.class_names",
    "num_images": "random",
    "num_samples": "random",
    "out": "hydra.run.dir",
    "out_dir": "hydra.run.dir",
    "output": "hydra.run.dir",
    "path": "data.root",
    "pretrained": "model.backbone_weights",
    "samples": "random",
    "save_dir": "hydra.run.dir",
    "size": "model.min_size",
    "source": "images",
    "steps": "trainer.max_steps",
    "student": "model",
    "threshold": "score_threshold",
    "wd": "schedule.optimizer.weight_decay",
    "weights": "checkpoint",
}
"""Names that other programs use → our key. Compared with the last part of a typed key."""

FOLLOWS_FROM = {
    "num_classes": "the number of classes follows from the data: from data.class_names, or from the annotations",
    "num_epochs": "give schedule.epochs=…",
}
"""Keys that do not exist here → what determines their values."""


def config_error(error: Exception, command: str, overrides: Sequence[str]) -> str:
    """The message for an error of composing `conf/<command>.yaml`: one or two lines with the closest valid names.

    Args:
        error: the exception of Hydra or OmegaConf.
        command: name of the command.
        overrides: the command line without flags.
    """
    message = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _no_such_choice(str(error.missing_cfg_file), command, overrides)
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override), message.splitlines()[0], command)
    if message.startswith("Could not override '"):
        _, _, others = message.partition("Did you mean to override ")
        further = others.partition("?")[0].removeprefix("one of ").split(", ") if others else []
        return _no_such_key(message.split("'")[1], command, overrides, further)
    if message.startswith("Multiple values for "):
        key = message.removeprefix("Multiple values for ").partition(". ")[0]
        typed = next((item for item in overrides if item.startswith(f"+{key}=")), f"+{key}=…")
        return f"{typed}: a file is already chosen for {key}; omit the +: {typed.removeprefix('+')}"
    if message.startswith("Could not append to config. An item is already at '"):
        key = message.split("'")[1]
        typed = next((item for item in overrides if item.startswith(f"+{key}=")), f"+{key}=…")
        return f"{typed}: this key exists already; omit the +: {for_shell(typed.removeprefix('+'))}"
    if message.startswith("Could not delete from config. "):
        return f"{message.splitlines()[0]} --cfg job lists the keys"
    if message.startswith("Error merging override "):
        override = message.splitlines()[0].removeprefix("Error merging override ")
        return f"{override}: expected a value of another type; a reference to another key is written ${{key}}"
    if message.startswith("Ambiguous value for argument '"):
        return _several_values(message.removeprefix("Ambiguous value for argument '").partition("'\n")[0])
    named = getattr(error, "full_key", None)
    if isinstance(error, OmegaConfBaseException) and named:
        return f"{named}: {message.splitlines()[0]}"
    return message.splitlines()[0] if message else type(error).__name__


def unknown_flag(flag: str, command: str) -> str:
    """The message for a flag that Hydra does not have, such as `--epochs`."""
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    flags = difflib.get_close_matches(f"--{flag.lstrip('-')}", KNOWN_FLAGS, n=1, cutoff=CLOSE_FLAG)
    if flags:
        return f"{flag}: no such flag; did you mean {flags[0]}?"
    close = _close_keys(name, valid_keys(command, name, ()))
    advice = (
        f"did you mean {alternatives([f'{key}=…' for key in close])}?" if close else "--help lists the groups"
    )
    return f"{flag}: no such flag; arguments are written key=value: {advice}"


def _no_such_choice(missing: str, command: str, overrides: Sequence[str]) -> str:
    typed = [argument for item in overrides if (argument := Argument.of(item)) is not None]
    chosen = (argument.key.partition("@")[0] for argument in typed)
    group = next((group for group in chosen if missing.startswith(f"{group}/")), missing.rpartition("/")[0])
    name = missing.removeprefix(f"{group}/")
    choices = group_choices(group)
    if not choices:
        return f"{group}={name}: there is no such group; the groups are {alternatives(groups())}"
    key = next((a.key for a in typed if a.value == name and a.key.partition("@")[0] == group), group)
    key = key.partition("@distill.terms.")[0]  # of a sum of losses, typed as distill=[a,b]
    start = f"{key}={name}: no such file in {folders_of(group)}"
    if _is_path(name):
        if group in OF_OWN_FILES:
            return (
                f"{group}={name}: found no such file; expected a YAML file of your own, or one of "
                f"{first_few(choices, CUT_CHOICES)}"
            )
        advice = _for_path(group, name, command)
        return f"{group}={name}: expected the name of a file in {folders_of(group)}, found a path; {advice}"
    elsewhere = groups_with_choice(name)
    if elsewhere:
        return f"{start}; did you mean {alternatives([f'{other}={name}' for other in elsewhere])}?"
    close = close_choices(name, choices)
    if len(choices) <= CUT_CHOICES or not close:
        meant = f"; did you mean {alternatives(close)}?" if close else ""
        return f"{start}; expected one of {first_few(choices, CUT_CHOICES)} (--help lists them){meant}"
    return f"{start}; did you mean {alternatives(close)}? (--help lists them)"


def _is_path(name: str) -> bool:
    return (
        "/" in name or name.startswith(("~", ".")) or Path(name).suffix in PATH_SUFFIXES or path_exists(name)
    )


def _for_path(group: str, path: str, command: str) -> str:
    """Advice for a path that was given instead of a choice."""
    folder = from_home(path)
    if folder.suffix == ".yaml" and folder.stem in group_choices(group):
        return f"did you mean {group}={folder.stem}?"
    if group == "data":
        if folder.suffix in PATH_SUFFIXES and not folder.is_dir():
            return "did you mean data=coco_json data.train_annotations=… or data=voc_folder data.root=…?"
        has_json = folder.is_dir() and any([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
        has_yaml = folder.is_dir() and any(folder.glob("data.y*ml"))
        layout = "coco_json" if has_json and not (folder / "ImageSets").is_dir() else "voc_folder"
        layout = "yolo" if has_yaml else layout
        root = for_shell(f"data.root={path}")
        return f"did you mean data={layout} {root}?"
    if group == "model":
        keys = {"train": ("model.weights", "model.backbone_weights"), "import_checkpoint": ("src",)}
        meant = [for_shell(f"{key}={path}") for key in keys.get(command, ("checkpoint",))]
        return f"did you mean {alternatives(meant)}?"
    return f"it is one of {first_few(group_choices(group), CUT_CHOICES)}"


def _unreadable(override: str, reason: str, command: str) -> str:
    """The message for an argument that Hydra's grammar does not accept, even with quotes around text."""
    argument = Argument.of(override)
    if argument is not None:
        text = for_shell(f"{argument.sign}{argument.key}={quoted(argument.value)}")
        return (
            f"{override}: cannot be read ({reason}); a list is written 'key=[1,2]'; to use these characters "
            f"literally write {text}"
        )
    start = f"{override}: expected key=value"
    key, colon, value = override.partition(":")
    if colon and value and key in valid_keys(command, key, ()):
        return f"{start}; did you mean {for_shell(f'{key}={value}')}?"
    elsewhere = groups_with_choice(override)
    if elsewhere:
        return f"{start}; did you mean {alternatives([f'{group}={override}' for group in elsewhere])}?"
    if command in TAKES_DATA and _is_path(override) and from_home(override).is_dir():
        return f"{start}, found a folder; {_for_path('data', override, command)}"
    if command == "benchmark" and (what := close_choices(override, choices_of("what"))):
        return f"{start}, or one of {', '.join(choices_of('what'))}; did you mean {alternatives(what)}?"
    if command in INPUTS and _is_path(override):
        return f"{start}, found a path; did you mean {for_shell(f'{INPUTS[command]}={override}')}?"
    close = [f"{key}=…" for key in _close_keys(override, valid_keys(command, override, ()))]
    return f"{start}; {f'did you mean {alternatives(close)}?' if close else '--help lists the groups'}"


def _several_values(argument: str) -> str:
    key, _, value = argument.partition("=")
    kind = kind_of(key)
    ways = []
    if kind is None or kind.is_list or not kind.is_text:
        ways.append(f"a list is written '{key}=[{value}]'")
    if kind is not None and kind.is_text and not kind.is_list:
        ways.append(f"a text with a comma is written {for_shell(f'{key}={quoted(value)}')}")
    return f"{argument}: several values need --multirun; {', '.join(ways)}"


def _no_such_key(key: str, command: str, overrides: Sequence[str], further: Sequence[str]) -> str:
    valid = valid_keys(command, key, overrides)
    typed = next((item for item in overrides if item.startswith(f"{key}=")), f"{key}=…")
    group, at, package = key.partition("@")
    if at and package in valid and is_group(group):
        return f"{typed}: there is no choice for {package} here that this could replace; add one with a +: +{typed}"
    of_other = _of_another_choice(key, typed, valid, overrides)
    if of_other is not None:
        return of_other
    follows = FOLLOWS_FROM.get(key.rpartition(".")[2])
    if follows is not None:
        return f"{key}: no such key; {follows}"
    if key.startswith("trainer."):
        return _no_such_trainer_argument(key, typed, valid)
    close = _close_keys(key, [*further, *(HYDRA_KEYS if key.startswith("hydra.") else valid)])
    advice = f"did you mean {alternatives(close)}?" if close else _elsewhere(key, typed, command)
    return f"{key}: no such key or group; {advice}"


def _no_such_trainer_argument(key: str, typed: str, valid: Sequence[str]) -> str:
    """The message for a trainer key that is not in conf/trainer. Arguments of Lightning's Trainer need a +."""
    arguments = [f"trainer.{name}" for name in trainer_arguments()]
    if key in arguments:
        return f"{key}: arguments of Lightning's Trainer that are not in conf/trainer need a +: +{for_shell(typed)}"
    close = _close_keys(key, [*(name for name in valid if name.startswith("trainer.")), *arguments])
    named = [name if name in valid else f"+{name}" for name in dict.fromkeys(close)]
    advice = f"did you mean {alternatives(named)}?" if named else "--cfg job lists the keys"
    return f"{key}: Lightning's Trainer has no such argument; {advice}"


def _of_another_choice(key: str, typed: str, valid: Sequence[str], overrides: Sequence[str]) -> str | None:
    """The message for a key that another file of the same group has; None if no file has it."""
    group, _, inside = key.partition(".")
    if not inside or group not in valid or not is_group(group):
        return None
    choices = choices_with_key(group, inside)
    if not choices:
        return None
    of_terms = [
        name
        for name in valid
        if name.startswith(f"{group}.terms.")
        and name.endswith(f".{inside}")
        and name.removeprefix(f"{group}.terms.").split(".")[1] not in OF_ALL_LOSSES
    ]
    if of_terms:
        given = alternatives([name + typed.removeprefix(key) for name in of_terms])
        return f"{key}: in a sum of losses it belongs to each of them; give {given}"
    chosen = next((item.partition("=")[2] for item in overrides if item.startswith(f"{group}=")), None)
    example = max(choices, key=lambda choice: (_common_prefix(choice, chosen or ""), choices.index(choice)))
    named = alternatives(choices) if len(choices) <= CUT_CHOICES else first_few(choices, CUT_CHOICES)
    now = "" if chosen is None else f", but {group}={chosen} is chosen"
    return f"{key}: a key of {group}={named}{now}; give for instance {group}={example} {for_shell(typed)}"


def _common_prefix(one: str, other: str) -> int:
    return next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)


def _close_keys(key: str, valid: Sequence[str]) -> list[str]:
    """The closest keys. A key that other programs call by this name takes precedence."""
    meant = WORDS_OF_OTHERS.get(key.rpartition(".")[2])
    known = [meant] if meant is not None and (meant in valid or meant.startswith("hydra.")) else []
    close = closest_keys(key, valid)
    return known or close


def _elsewhere(key: str, typed: str, command: str) -> str:
    """Where else a value or a key exists, or how to list all keys."""
    value = typed.partition("=")[2]
    if takers := commands_with_group(key):
        return f"it is a group of {alternatives(takers)}, and {command} has no use for it"
    group = groups_with_choice(value)
    if group:
        return f"did you mean {alternatives([f'{name}={value}' for name in group])}?"
    others = [name for name in commands_with_key(key) if name != command]
    if others:
        return f"it is a key of {alternatives(others)}; --cfg job shows those of {command}"
    return "--help lists the groups, --cfg job all keys"
