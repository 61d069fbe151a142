"""Import paths in checkpoints and configs of older versions, and the current paths of the same objects."""

from typing import Any

__all__ = ["current_path"]

_RENAMED = {
    "lshfm_pl.console.make_trainer": "lshfm_pl.training.trainer.make_trainer",
    "lshfm_pl.data.datamodule.COCODataModule": "lshfm_pl.data.coco.datamodule.COCODataModule",
    "lshfm_pl.data.datamodule.ShapesDataModule": "lshfm_pl.data.shapes.datamodule.ShapesDataModule",
    "lshfm_pl.data.datamodule.VOCDataModule": "lshfm_pl.data.voc.datamodule.VOCDataModule",
}


def current_path(target: Any) -> Any:
    """The current import path of a `_target_`. Paths that were not renamed are returned unchanged."""
    return _RENAMED.get(target, target) if isinstance(target, str) else target
