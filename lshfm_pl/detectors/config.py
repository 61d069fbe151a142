"""Validating a detector's configuration, and changing keys on which no weight depends."""

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lshfm_pl.detectors.architecture import (
    Architecture,
    architecture,
    import_architecture,
    known_architectures,
)
from lshfm_pl.detectors.backbones.backbone import backbone, import_backbone
from lshfm_pl.detectors.schema import expected_of
from lshfm_pl.detectors.start import START_KEYS
from lshfm_pl.errors import LSHFMError, first_few

__all__ = [
    "EVALUATION_SETTINGS",
    "change_evaluation",
    "complete_config",
    "import_parts",
    "refuse_unnamed_parts",
    "resolve_config",
]

#: What can be changed for the evaluation of a trained detector, with the commands' names.
EVALUATION_SETTINGS = ("postprocess", "score_thresh", "nms_thresh", "detections_per_img")


def resolve_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a detector's configuration to plain Python and validate it.

    Args:
        config: the flat keys of a ``conf/model`` file, as a dict or an OmegaConf node. ``START_KEYS`` belong to a
            run, not to its detector, and are left out. So are null values of keys that the architecture does not
            have, since they ask for nothing.

    Returns:
        A new dict of str, int, float, None and lists of these, in the order of ``config``. Missing keys with a
        default in the schema come last.

    Raises:
        LSHFMError: a key is unknown, missing, belongs to another architecture, or has an invalid value.
    """
    plain = {str(key): _plain(value) for key, value in config.items() if key not in START_KEYS}
    family = architecture(plain.get("architecture"))
    known = family.schema.model_fields
    plain = {key: value for key, value in plain.items() if value is not None or key in known}
    try:
        checked = family.schema.model_validate(plain)
    except ValidationError as error:
        raise LSHFMError(_message(error, family, plain)) from error
    return plain | checked.model_dump(exclude=set(plain))


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys that a configuration lacks because its file is older than these keys.

    Raises:
        LSHFMError: its architecture is unknown.
    """
    return {**architecture(config.get("architecture")).before, **config}


def change_evaluation(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with changed evaluation settings, on which no weight depends.

    Args:
        config: configuration of a detector.
        settings: any of ``EVALUATION_SETTINGS``; None keeps a value. The architecture says which key each one sets.

    Raises:
        LSHFMError: another key, or the architecture is unknown.
    """
    unknown = [key for key in settings if key not in EVALUATION_SETTINGS]
    if unknown:
        raise LSHFMError(f"{unknown[0]}: expected one of {', '.join(EVALUATION_SETTINGS)}.")
    keys = architecture(config.get("architecture")).evaluation
    return {**config, **{keys.get(key, key): value for key, value in settings.items() if value is not None}}


def import_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Import the parts that a command's own configuration names by import path, so that files may name them too.

    Args:
        config: configuration of a detector that the user has given (never one from a file of weights); empty for
            none.

    Returns:
        The same keys.

    Raises:
        LSHFMError: its architecture or backbone is unknown or cannot be imported.
    """
    if config:
        import_architecture(config.get("architecture"))
    if "backbone" in config:
        import_backbone(config["backbone"])
    return dict(config)


def refuse_unnamed_parts(config: Mapping[str, Any]) -> None:
    """Refuse a configuration from a file that names a part which neither this package nor the user names.

    Args:
        config: configuration of a detector; empty for none.

    Raises:
        LSHFMError: it names such a part.
    """
    if config:
        architecture(config.get("architecture"))
    if "backbone" in config:
        backbone(config["backbone"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _message(error: ValidationError, family: Architecture, plain: Mapping[str, Any]) -> str:
    """The first error: unknown keys, then missing keys, then values."""
    faults = error.errors(include_url=False)
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            return _unknown_key(str(fault["loc"][0]), family)
    missing = [str(fault["loc"][0]) for fault in faults if fault["type"] == "missing"]
    if missing:
        return f"model: {family.name} needs the key{'s' * (len(missing) > 1)} {', '.join(missing)}."
    fault = faults[0]
    if not fault["loc"]:
        return str(fault.get("ctx", {}).get("error", fault["msg"]))
    key = str(fault["loc"][0])
    expected = fault.get("ctx", {}).get("expected") if fault["type"] == "expected" else None
    return (
        f"model.{key}: expected {expected or expected_of(family.schema, key)}, "
        f"found {reprlib.repr(plain.get(key))}."
    )


def _unknown_key(key: str, family: Architecture) -> str:
    others = [other.name for other in known_architectures() if key in other.schema.model_fields]
    if others:
        return f"model.{key}: a key of {first_few(others, 8)}, but this detector is a {family.name}; leave it out."
    closest = difflib.get_close_matches(key, list(family.schema.model_fields), n=1, cutoff=0.0)[0]
    return f"model.{key}: no such key; the closest one is {closest}."
