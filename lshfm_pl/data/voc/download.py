"""Downloading PASCAL VOC."""

import http.client
import tarfile
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets import utils, voc

from lshfm_pl.data.listed import ListedFolders
from lshfm_pl.data.voc.layout import list_names
from lshfm_pl.data.voc.sources import ARCHIVES, resolve_source
from lshfm_pl.data.voc.splits import read_split
from lshfm_pl.errors import LSHFMError

__all__ = ["download_voc"]


def download_voc(root: str | Path, splits: Sequence[str]) -> None:
    """Download the PASCAL VOC archives that contain `splits` (`VOC2007/trainval`, …) to `root/VOCdevkit`.

    Addresses and MD5 checksums are torchvision's. An archive with another checksum is not unpacked, and unpacking
    can't write outside of `root`. A split whose files all exist is not downloaded again.

    Raises:
        LSHFMError: a split is not one of VOC2007 or VOC2012, or the download failed.
    """
    root = Path(root).expanduser()
    unknown = [split for split in splits if split not in ARCHIVES]
    if unknown:
        raise LSHFMError(
            f"data.download=true can't download '{unknown[0]}': expected one of {', '.join(ARCHIVES)}. "
            "Set data.download=false and data.root to your own data."
        )
    parent = root.parent if root.name == "VOCdevkit" else root
    for year, image_set in sorted({ARCHIVES[split] for split in splits}):
        if _is_complete(root, f"VOC{year}/{image_set}"):
            continue
        archive = voc.DATASET_YEAR_DICT["2007-test" if image_set == "test" else year]
        try:
            utils.download_url(archive["url"], parent, archive["filename"], archive["md5"])
            with tarfile.open(parent / archive["filename"]) as content:
                content.extractall(parent, filter="data")
        except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
            raise LSHFMError(
                f"Downloading VOC{year} {image_set} failed (network or mirror): {error}.\n"
                f"Download {archive['url']} (md5 {archive['md5']}) by hand and unpack it in {parent}, "
                f"so that {parent / 'VOCdevkit' / f'VOC{year}' / 'Annotations'} exists."
            ) from error


def _is_complete(root: Path, split: str) -> bool:
    try:
        source = resolve_source(root, split)
        image_ids = read_split(source)
        images, annotations = (
            list_names(folder, ListedFolders()) for folder in (source.image_folder, source.annotation_folder)
        )
    except LSHFMError:
        return False
    return all(f"{name}.jpg" in images and f"{name}.xml" in annotations for name, _ in image_ids)
