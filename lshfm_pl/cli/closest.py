"""What helps on the command line: the groups that `--help` lists, and the closest valid names for wrong ones."""

import difflib
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from lshfm_pl.errors import few
from lshfm_pl.paths import CONFIG_DIR

__all__ = ["command_groups", "config_error", "group_choices"]

HELP_WIDTH = 100
LISTED_CHOICES = 40
"""A group of more files is cut after `CUT_CHOICES` in the help, and they are counted."""

CUT_CHOICES = 6
CLOSE = 0.6
"""Similarity, 0..1, from which a name is offered in place of a wrong one."""

LAST_PART_LESS = 0.15
"""How much less a match with the last part of a key counts than one with the whole."""

NEARLY_AS_CLOSE = 0.1
"""How much less similar than the closest further names may be."""

LIST_ITEM = re.compile(r"""(?:[^,\[\]"']|\[[^\[\]]*\]|"[^"]*"|'[^']*')+""")
"""An item of a list on the command line, with what it has in quotes or brackets of its own."""


def group_choices(group: str) -> list[str]:
    """The files of a group that can be chosen; those with a leading underscore are parts of others."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("[!_]*.yaml"))


def command_groups(command: str) -> str:
    """The groups in the defaults of `conf/<command>.yaml` with their files, for its `--help`."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / f"{command}.yaml"))
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    # Those with a keyword in front (optional, override) follow other choices.
    chosen = {group: choice for entry in entries for group, choice in entry.items() if " " not in group}
    if not chosen:
        return "This command has no groups."
    lines = ["Groups, chosen by group=name (* is the default; files in conf/<group>):"]
    for group, default in chosen.items():
        names = group_choices(group)
        marked = [f"{name}*" if name == default else name for name in names]
        if len(names) > LISTED_CHOICES:
            marked = [*marked[:CUT_CHOICES], f"… ({len(names)} in all)"]
        lines += textwrap.wrap(
            f"  {group}: {', '.join(marked)}", HELP_WIDTH, subsequent_indent="    ", break_on_hyphens=False
        )
    return "\n".join(lines)


OmegaConf.register_new_resolver("command_groups", command_groups, replace=True)


def config_error(error: Exception, command: str, overrides: Sequence[str]) -> str:
    """What to print of a failure to compose `conf/<command>.yaml`: one or two lines with the closest valid names.

    Args:
        error: what Hydra raised.
        command: its name.
        overrides: the command line without flags.
    """
    message = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _no_such_choice(str(error.missing_cfg_file))
    if isinstance(error, OverrideParseException):
        reason = message.splitlines()[0]
        return f"{error.override}: cannot be read ({reason}); {_quoting_advice(str(error.override))}"
    if message.startswith("Could not override '"):
        _, _, named = message.partition("Did you mean to override ")
        further = named.partition("?")[0].removeprefix("one of ").split(", ") if named else []
        return _no_such_key(message.split("'")[1], command, overrides, further)
    if message.startswith("Multiple values for "):
        key = message.removeprefix("Multiple values for ").partition(". ")[0]
        typed = next((item for item in overrides if item.startswith(f"+{key}=")), f"+{key}=…")
        return f"{typed}: a file is chosen for {key} already; leave the + out: {typed.removeprefix('+')}"
    if message.startswith("Ambiguous value for argument '"):
        argument = message.removeprefix("Ambiguous value for argument '").partition("'\n")[0]
        key, _, value = argument.partition("=")
        return f"{argument}: several values need --multirun; a list is written '{key}=[{value}]'"
    return message.splitlines()[0] if message else type(error).__name__


def _no_such_choice(missing: str) -> str:
    group, _, name = missing.rpartition("/")
    choices = group_choices(group)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=CLOSE)
    if len(choices) <= CUT_CHOICES or not close:
        advice = f"expected one of {few(choices, CUT_CHOICES)}" if choices else "there is no such group"
    else:
        advice = f"did you mean {_alternatives(close)}?"
    return f"{group}={name}: no such file in conf/{group}; {advice} (--help lists them)"


def _quoting_advice(override: str) -> str:
    """How to write an override that does not parse: what has a `=` inside a list needs quotes of its own."""
    key, _, value = override.partition("=")
    items = LIST_ITEM.findall(value[1:-1]) if value.startswith("[") and value.endswith("]") else []
    if not any("=" in item and item[0] not in "\"'" for item in items):
        return "quote it for the shell, as in 'key=[1,2]'"
    quoted = [f'"{item}"' if "=" in item and not {'"', "'"} & set(item) else item for item in items]
    return f"what has a = inside a list needs quotes of its own: '{key}=[{','.join(quoted)}]'"


def _no_such_key(key: str, command: str, overrides: Sequence[str], further: Sequence[str]) -> str:
    valid = _valid_keys(command, key, overrides)
    group, at, package = key.partition("@")
    if at and package in valid and (CONFIG_DIR / group).is_dir():
        typed = next((item for item in overrides if item.startswith(f"{key}=")), f"{key}=…")
        return (
            f"{typed}: no file is chosen for {package} here that this would replace; add one by a +: +{typed}"
        )
    close = _closest(key, [*further, *valid])
    advice = (
        f"did you mean {_alternatives(close)}?" if close else "--help lists the groups, --cfg job all keys"
    )
    adding = f" An argument of Lightning's Trainer that conf/trainer lacks needs a +: +{key}=…"
    return f"{key}: no such key or group; {advice}{adding if key.startswith('trainer.') else ''}"


def _valid_keys(command: str, wrong: str, overrides: Sequence[str]) -> list[str]:
    """All keys of the command's config with the groups as the command line chooses them."""
    choices = [override for override in overrides if _chooses_group(override, wrong)]
    # Hydra is still set up from the command line that failed.
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            config = compose(command, overrides=choices)
        except Exception:  # a second mistake: the names of the defaults are good enough
            config = compose(command)
    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name != "hydra"]
    return [*_dotted(config), *(group for group in groups if group not in config)]


def _chooses_group(override: str, wrong: str) -> bool:
    key, _, value = override.lstrip("+").partition("=")
    return key != wrong and "," not in value and (CONFIG_DIR / key.partition("@")[0]).is_dir()


def _dotted(config: DictConfig, prefix: str = "") -> Iterable[str]:
    for key, node in config.items_ex(resolve=False):
        name = str(key)
        yield f"{prefix}{name}"
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from _dotted(node, f"{prefix}{name}.")


def _closest(key: str, valid: Iterable[str]) -> list[str]:
    """The most similar keys, at most 3; one without a dot is compared with the last parts too, which count less."""

    def similarity(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        if "." in key:
            return whole
        last = difflib.SequenceMatcher(None, key, candidate.rpartition(".")[2]).ratio()
        return max(whole, last - LAST_PART_LESS)

    scored = sorted(
        ((similarity(candidate), candidate) for candidate in valid), key=lambda item: (-item[0], len(item[1]))
    )
    least = max(CLOSE, scored[0][0] - NEARLY_AS_CLOSE) if scored else CLOSE
    return [candidate for score, candidate in scored if score >= least][:3]


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
