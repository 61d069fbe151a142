"""Import paths that files of older versions name, and what they are called today."""

from typing import Any

__all__ = ["current_path"]

_RENAMED = {
    "lshfm_pl.console.make_trainer": "lshfm_pl.training.trainer.make_trainer",
    "lshfm_pl.data.datamodule.COCODataModule": "lshfm_pl.data.coco.datamodule.COCODataModule",
    "lshfm_pl.data.datamodule.ShapesDataModule": "lshfm_pl.data.shapes.datamodule.ShapesDataModule",
    "lshfm_pl.data.datamodule.VOCDataModule": "lshfm_pl.data.voc.datamodule.VOCDataModule",
}


def current_path(target: Any) -> Any:
    """Today's import path of a `_target_`; anything else, such as another package's, stays as it is."""
    return _RENAMED.get(target, target) if isinstance(target, str) else target
