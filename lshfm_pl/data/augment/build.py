"""Building the transforms of training from the node `augment` of a config."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchvision.transforms import v2

from lshfm_pl.data.augment.mixing import MixingTransform
from lshfm_pl.data.augment.pipeline import LEAST_VISIBLE, SMALLEST_SIDE, Augmentation, Step
from lshfm_pl.errors import LSHFMError, first_few, printable, short_reason
from lshfm_pl.paths import named_in_own_configs

__all__ = ["build_augmentation"]

_KEYS = ("transforms", "smallest_side", "least_visible")

_SAFE_MODULES = ("torchvision.transforms.v2", "lshfm_pl.data.augment")
"""Packages whose classes a file of others may name."""

_FOR_CLASSES = {"MixUp": "lshfm_pl.data.augment.MixUp", "CutMix": "lshfm_pl.data.augment.CopyPaste"}
"""Transforms of torchvision for whole batches of classification → what there is for detection."""


def build_augmentation(config: Mapping[str, Any], *, is_trusted: bool = True) -> Augmentation | v2.Transform:
    """Build the transforms of a config, and try them out.

    A horizontal flip alone, as published, is torchvision's transform by itself, and so is an empty list: no rule of
    `Augmentation` then changes the boxes of the data.

    Args:
        config: `transforms`, a list of settings with `_target_`, and optionally `smallest_side` and
            `least_visible`, see `Augmentation`.
        is_trusted: whether the user has given the config. A config from a file of others may only name classes of
            torchvision and of this package, or those that the files of `--config-dir` name.

    Raises:
        LSHFMError: a class or an argument is unknown, or a transform does not fit detection.
    """
    for key in config:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            advice = f"did you mean {close[0]}?" if close else f"expected {', '.join(_KEYS)}"
            raise LSHFMError(f"augment.{printable(str(key))}: there is no such key; {advice}")
    entries = config.get("transforms")
    if isinstance(entries, str | Mapping) or not isinstance(entries, Sequence | None):
        raise LSHFMError(f"augment.transforms: expected a list of transforms, found {_short(entries)}")
    steps = []
    for index, entry in enumerate(entries or []):
        place = f"augment.transforms[{index}]"
        transform = _built(entry, place, is_trusted)
        if not callable(transform):
            raise LSHFMError(f"{place}: expected a transform, found {_short(transform)}")
        steps.append(Step(f"{place} ({entry['_target_'].rpartition('.')[2]})", transform))
    rules = {
        "smallest_side": _number(config, "smallest_side", SMALLEST_SIDE, None),
        "least_visible": _number(config, "least_visible", LEAST_VISIBLE, 1),
    }
    if not steps:
        return v2.Identity()
    if len(steps) == 1 and type(steps[0].transform) is v2.RandomHorizontalFlip:
        return steps[0].transform
    augmentation = Augmentation(steps, **rules)
    augmentation.try_out()
    return augmentation


def _built(entry: Any, place: str, is_trusted: bool) -> Any:
    """The object of an entry with `_target_`; other values as they are, with entries inside of them built."""
    if isinstance(entry, Mapping) and "_target_" in entry:
        return _instance(entry, place, is_trusted)
    if place.endswith("]") and place.count("[") == 1:
        raise LSHFMError(
            f"{place}: expected a transform such as {{_target_: torchvision.transforms.v2.RandomGrayscale}}, found "
            f"{_short(entry)}"
        )
    if isinstance(entry, Mapping):
        return {key: _built(value, f"{place}.{key}", is_trusted) for key, value in entry.items()}
    if isinstance(entry, list | tuple):
        return [_built(value, f"{place}.{index}", is_trusted) for index, value in enumerate(entry)]
    return entry


def _instance(entry: Mapping[str, Any], place: str, is_trusted: bool) -> Any:
    path = entry["_target_"]
    if not isinstance(path, str):
        raise LSHFMError(f"{place}._target_: expected the import path of a class, found {_short(path)}")
    if not is_trusted and not _is_known(path):
        raise LSHFMError(
            f"{place}: the file names {printable(path)}, which is not a transform of torchvision or of this "
            "package; give --config-dir=<folder> with an augment/<name>.yaml that names it, too"
        )
    kind = _imported(path, place)
    name = path.rpartition(".")[2]
    _refuse_unfit(kind, path, place)
    arguments = {
        str(key): _built(value, f"{place}.{key}", is_trusted)
        for key, value in entry.items()
        if key != "_target_"
    }
    try:
        known: Mapping[str, inspect.Parameter] = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        known = {}
    takes_all = not known or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    for key in arguments:
        if key not in known and not takes_all:
            close = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"it takes {first_few(known, 12)}"
            raise LSHFMError(f"{place}.{printable(key)}: {name} takes no such argument; {advice}")
    try:
        built = kind(**arguments)
    except LSHFMError as error:
        raise LSHFMError(f"{place}.{error}") from error
    except Exception as error:  # a transform may be the user's own
        raise LSHFMError(f"{place}: {name} cannot be built ({short_reason(error)})") from error
    if isinstance(built, v2.RandomIoUCrop) and not any(option >= 1 for option in built.options):
        raise LSHFMError(
            f"{place}.sampler_options: expected 1.0 among them, which leaves the picture as it is, found "
            f"{list(built.options)}: without it the search for a crop may never end"
        )
    return built


def _is_known(path: str) -> bool:
    return path.rpartition(".")[0] in _SAFE_MODULES or path in named_in_own_configs("augment", "_target_")


def _imported(path: str, place: str) -> Callable[..., Any]:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ValueError as error:
        raise LSHFMError(
            f"{place}._target_: expected an import path such as module.Class, found {path}"
        ) from error
    except Exception as error:  # a user's module may raise anything at import
        raise LSHFMError(
            f"{place}._target_: {path} cannot be imported ({short_reason(error)}); run the command where its file "
            "is, or put its folder on PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if callable(found):
        return found
    classes = [key for key, value in vars(module).items() if isinstance(value, type)]
    close = difflib.get_close_matches(name, classes, n=1)
    advice = f"; did you mean {module_name}.{close[0]}?" if close else ""
    raise LSHFMError(f"{place}._target_: there is no class {name} in {module_name}{advice}")


def _refuse_unfit(kind: Callable[..., Any], path: str, place: str) -> None:
    """Refuse classes that are known not to work for detection, with what to use instead.

    Raises:
        LSHFMError: it is one.
    """
    name = path.rpartition(".")[2]
    is_torchvisions = path.startswith("torchvision.")
    if is_torchvisions and not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
        instead = f"; did you mean torchvision.transforms.v2.{name}?" if hasattr(v2, name) else ""
        raise LSHFMError(
            f"{place}: {path} does not move boxes: expected a transform of torchvision.transforms.v2{instead}"
        )
    if is_torchvisions and name in _FOR_CLASSES:
        raise LSHFMError(
            f"{place}: {path} mixes batches for classification; for pictures with boxes there is "
            f"{_FOR_CLASSES[name]}"
        )
    if kind is v2.SanitizeBoundingBoxes:
        raise LSHFMError(
            f"{place}: leave {name} out: boxes are checked, cut and dropped after each transform, by "
            "augment.smallest_side and augment.least_visible"
        )
    if "." in place.partition("]")[2] and isinstance(kind, type) and issubclass(kind, MixingTransform):
        raise LSHFMError(
            f"{place}: {name} cannot be inside of another transform: put it into the list itself"
        )


def _number(config: Mapping[str, Any], key: str, default: float, most: float | None) -> float:
    value = config.get(key, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= (most or float("inf"))
    ):
        expected = "a number of at least 0" if most is None else f"a number between 0 and {most}"
        raise LSHFMError(f"augment.{key}: expected {expected}, found {_short(value)}")
    return float(value)


def _short(value: Any) -> str:
    return "nothing" if value is None else printable(repr(value))[:100]
