"""What all commands share: starting with Hydra, help, closest names, and short error messages.

Nothing here imports torch or a package that imports it: `--help` and wrong names are answered without it.
"""

from lshfm_pl.cli.command import Command, main, start
from lshfm_pl.cli.failures import error_message
from lshfm_pl.cli.folders import comparison_folder
from lshfm_pl.cli.inputs import (
    has_teacher_labels,
    inherited_parts,
    needs_teacher,
    refuse_missing_teacher,
    refuse_no_weights,
    refuse_unlabelled_alone,
)
from lshfm_pl.cli.job import (
    as_dict,
    changed_data,
    config_folder_flags,
    in_multirun,
    is_main_process,
    job_command,
)
from lshfm_pl.cli.resolvers import register_resolvers
from lshfm_pl.cli.values import refuse_missing_values, refuse_named_teacher
from lshfm_pl.paths import CONFIG_DIR

register_resolvers()

__all__ = [
    "CONFIG_DIR",
    "Command",
    "as_dict",
    "changed_data",
    "comparison_folder",
    "config_folder_flags",
    "error_message",
    "has_teacher_labels",
    "in_multirun",
    "inherited_parts",
    "is_main_process",
    "job_command",
    "main",
    "needs_teacher",
    "refuse_missing_teacher",
    "refuse_missing_values",
    "refuse_named_teacher",
    "refuse_no_weights",
    "refuse_unlabelled_alone",
    "start",
]
