"""Data modules for folders that tests create."""

from lshfm_pl.data import COCODataModule, VOCDataModule, YOLODataModule


def make(folder, **settings):
    settings = {"num_workers": 0, "batch_size": 2, **settings}
    if (folder / "annotations").is_dir():
        files = {
            key: value
            for split in ("train", "val")
            for key, value in (
                (f"{split}_annotations", f"annotations/instances_{split}.json"),
                (f"{split}_images", split),
            )
        }
        return COCODataModule(root=folder, **files, **settings)
    if (folder / "labels").is_dir():
        return YOLODataModule(root=folder, **settings)
    splits = {"train_split": "train", "val_split": "val"}
    return VOCDataModule(root=folder, **{**splits, "class_names": ("cat", "dog"), **settings})
