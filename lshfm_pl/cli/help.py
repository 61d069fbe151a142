"""The list of config groups in `--help`."""

import textwrap
from typing import Any

from omegaconf import OmegaConf

from lshfm_pl.cli.config_tables import registered
from lshfm_pl.cli.names import group_choices
from lshfm_pl.paths import CONFIG_DIR

__all__ = ["CUT_CHOICES", "command_groups"]

HELP_WIDTH = 100
LISTED_CHOICES = 40
"""Groups with more choices than this, some of them lines of a table, show only `CUT_CHOICES` and their number."""

CUT_CHOICES = 6


def command_groups(command: str) -> str:
    """The config groups in the defaults of `conf/<command>.yaml` and their files, for `--help`."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / f"{command}.yaml"))
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    # Entries with a keyword (optional, override) depend on other choices.
    chosen = {group: choice for entry in entries for group, choice in entry.items() if " " not in group}
    if not chosen:
        return "This command has no groups."
    lines = ["Groups, chosen by group=name (* is the default; files in conf/<group>):"]
    for entry, default in chosen.items():
        directory, _, place = entry.partition("@")
        group = place or directory  # a package is written as a key: teacher.model=…
        names = group_choices(directory)
        marked = [f"{name}*" if name == default else name for name in names]
        if len(names) > LISTED_CHOICES and registered(directory):
            marked = [*marked[:CUT_CHOICES], f"… ({len(names)} in all)"]
        lines += textwrap.wrap(
            f"  {group}: {', '.join(marked)}", HELP_WIDTH, subsequent_indent="    ", break_on_hyphens=False
        )
    return "\n".join(lines)


OmegaConf.register_new_resolver("command_groups", command_groups, replace=True)
