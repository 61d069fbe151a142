"""The rows of the table of `benchmark inference`: detectors by name or by file, with settings of their own.

Nothing here imports torch, so that a wrong name is refused before anything is loaded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lshfm_pl.cli.names import alternatives, close_choices, group_choices
from lshfm_pl.errors import LSHFMError

__all__ = ["Row", "read_rows"]

FILE = re.compile(r".*[./\\].*", re.DOTALL)
"""Texts that name a file: no name in `conf/model` has a dot or a slash."""


@dataclass(frozen=True)
class Row:
    """An entry of `models`.

    Attributes:
        name: what the table calls it; "" for the name that the detector's own config has.
        model: the file in `conf/model`; None if `checkpoint` says what it is.
        checkpoint: the file with its weights; None for random weights.
        settings: keys of `model` with other values.
    """

    name: str
    model: str | None
    checkpoint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def read_rows(entries: Any) -> list[Row]:
    """Read `models`: names in `conf/model`, files, or mappings from a name to settings; None is an empty list.

    A mapping's settings are keys of the detector's config, and `model` and `checkpoint`, as in
    `{narrow: {model: retinanet_mobilenetv2fpn, fpn_channels: 64}}`.

    Raises:
        LSHFMError: a name is unknown or repeated, or an entry is something else.
    """
    plain = OmegaConf.to_container(entries) if isinstance(entries, ListConfig | DictConfig) else entries
    if isinstance(plain, dict):
        plain = [{name: settings} for name, settings in plain.items()]
    listed = [] if plain is None else plain if isinstance(plain, list) else [plain]
    rows = [_read_row(entry) for entry in listed]
    names = [row.name for row in rows if row.name]
    for name in names:
        if names.count(name) > 1:
            raise LSHFMError(
                f"models: expected different names, found {name} twice; give one another name, as in "
                f"'models=[{name},{{other:{{model:{name}}}}}]'"
            )
    return rows


def _read_row(entry: Any) -> Row:
    if isinstance(entry, str) and FILE.fullmatch(entry):
        return Row("", None, entry)
    if isinstance(entry, str):
        return Row(entry, _known(entry))
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, settings = str(next(iter(entry))), next(iter(entry.values())) or {}
        if isinstance(settings, Mapping):
            rest = {str(key): value for key, value in settings.items() if key not in ("model", "checkpoint")}
            checkpoint, model = settings.get("checkpoint"), settings.get("model")
            if checkpoint is not None and rest:
                raise LSHFMError(
                    f"models: {name}: expected only model beside checkpoint, found {next(iter(rest))}: a file "
                    "says itself what it holds"
                )
            if model is not None or checkpoint is None:
                model = _known(name if model is None else str(model))
            return Row(name, model, None if checkpoint is None else str(checkpoint), rest)
    raise LSHFMError(
        "models: expected names in conf/model, files, or a name with settings such as "
        f"{{narrow:{{model:<name>,fpn_channels:64}}}}; found {entry!r}"
    )


def _known(name: str) -> str:
    names = group_choices("model")
    if name in names:
        return name
    close = close_choices(name, names)
    advice = f"did you mean {alternatives(close)}?" if close else "conf/model has them"
    raise LSHFMError(f"models: expected the name of a file in conf/model, found {name}; {advice}")
