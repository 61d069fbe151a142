"""The data modules that a stored config may name. A stored file alone can't make this machine import a module."""

import reprlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lshfm_pl.data.auto import AutoDataModule
from lshfm_pl.data.coco.datamodule import COCODataModule
from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.pictures.datamodule import PicturesDataModule
from lshfm_pl.data.shapes.datamodule import ShapesDataModule
from lshfm_pl.data.voc.datamodule import VOCDataModule
from lshfm_pl.data.yolo.datamodule import YOLODataModule
from lshfm_pl.errors import LSHFMError
from lshfm_pl.paths import named_in_own_configs
from lshfm_pl.renamed import current_path

__all__ = ["ENTRY_POINTS", "data_module_of"]

ENTRY_POINTS = "lshfm_pl.data"
"""Group of entry points with which installed packages register data modules."""

_BUILT_IN: dict[str, type[DetectionDataModule]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (
        VOCDataModule,
        COCODataModule,
        YOLODataModule,
        AutoDataModule,
        PicturesDataModule,
        ShapesDataModule,
    )
}


def data_module_of(target: Any) -> type[DetectionDataModule]:
    """The data module class of a `_target_` from a checkpoint or `results.json`.

    It must be a class of this package, one that an installed package registers as an entry point of the group
    `lshfm_pl.data`, or one that a YAML file in `data/` of the command's `--config-dir` names.

    Raises:
        LSHFMError: it is none of these, cannot be imported, or is not a `DetectionDataModule`.
    """
    path = current_path(target)
    if not isinstance(path, str):
        raise _unknown(target)
    if path in _BUILT_IN:
        return _BUILT_IN[path]
    for entry in entry_points(group=ENTRY_POINTS):
        if _target_of(entry) == path:
            return _checked(path, entry.value)
    if path in named_in_own_configs("data", "_target_"):
        module, _, name = path.rpartition(".")
        return _checked(path, f"{module}:{name}")
    raise _unknown(target)


def _target_of(entry: EntryPoint) -> str:
    return entry.value.replace(":", ".").replace(" ", "")


def _checked(path: str, value: str) -> type[DetectionDataModule]:
    try:
        found = EntryPoint(name=path, value=value, group=ENTRY_POINTS).load()
    except Exception as error:  # a user's module may raise anything at import
        raise LSHFMError(
            f"data._target_: {path} cannot be imported ({type(error).__name__}: {error}); "
            "run the command where its file is, or put its folder on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, DetectionDataModule)):
        raise LSHFMError(f"data._target_: expected a subclass of DetectionDataModule, found {path}")
    return found


def _unknown(target: Any) -> LSHFMError:
    return LSHFMError(
        f"data._target_: expected {' or '.join(_BUILT_IN)}, found {reprlib.repr(target)}. For your own class give "
        "--config-dir=<folder> with a data/<name>.yaml that names it, or also data=<name>."
    )
