import contextlib
import hashlib
import io
import tarfile
from urllib.error import URLError

import pytest
from torchvision.datasets import utils, voc
from voc_files import SIZE, write_voc

from lshfm_pl.data.voc.download import download_voc
from lshfm_pl.errors import LSHFMError


class FakeDownload:
    """Replaces torchvision's function: writes an archive with one file, without a checksum."""

    def __init__(self, error=None, member="VOCdevkit/readme.txt"):
        self.error = error
        self.member = member
        self.calls = []

    def __call__(self, url, root, filename, md5):
        self.calls.append((root, filename, md5))
        if self.error is not None:
            raise self.error
        with tarfile.open(root / filename, "w") as archive:
            archive.addfile(tarfile.TarInfo(self.member), io.BytesIO())


@pytest.mark.parametrize(
    "error", [URLError("name resolution"), RuntimeError("File not found or corrupted."), EOFError("cut")]
)
def test_failed_download_is_one_clear_error(tmp_path, monkeypatch, error):
    monkeypatch.setattr(utils, "download_url", FakeDownload(error))
    with pytest.raises(LSHFMError) as caught:
        download_voc(tmp_path, ["VOC2007/test"])
    text = str(caught.value)
    assert "Downloading VOC2007 test failed (network or mirror)" in text
    assert "VOCtest_06-Nov-2007.tar (md5 b6e924de25625d8de591ea690078ad9f) by hand" in text
    assert str(tmp_path / "VOCdevkit" / "VOC2007") in text


def test_download_fetches_each_archive_once_next_to_vocdevkit(tmp_path, monkeypatch):
    fake = FakeDownload()
    monkeypatch.setattr(utils, "download_url", fake)
    splits = ["VOC2007/train", "VOC2007/val", "VOC2012/trainval", "VOC2007/test"]
    download_voc(tmp_path / "VOCdevkit", splits)
    assert fake.calls == [
        (tmp_path, "VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
        (tmp_path, "VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
        (tmp_path, "VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"),
    ]
    assert (tmp_path / "VOCdevkit" / "readme.txt").is_file()


@pytest.mark.parametrize("member", ["../outside.txt", "{}/outside.txt"])
def test_archive_does_not_write_outside_of_its_folder(tmp_path, monkeypatch, member):
    monkeypatch.setattr(utils, "download_url", FakeDownload(member=member.format(tmp_path)))
    root = tmp_path / "data"
    root.mkdir()
    with contextlib.suppress(LSHFMError):
        download_voc(root, ["VOC2007/test"])
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_archive_of_another_checksum_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_is_remote_location_available", lambda: False)
    fetch = FakeDownload()

    def save_as(url, path):
        fetch(url, tmp_path, "fetched.tar", None)
        (tmp_path / "fetched.tar").rename(path)

    monkeypatch.setattr(utils, "_urlretrieve", save_as)
    with pytest.raises(LSHFMError, match="File not found or corrupted"):
        download_voc(tmp_path, ["VOC2007/test"])
    assert not (tmp_path / "VOCdevkit").exists()
    archive = tmp_path / "VOCtest_06-Nov-2007.tar"
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(
        voc.DATASET_YEAR_DICT, "2007-test", {**voc.DATASET_YEAR_DICT["2007-test"], "md5": md5}
    )
    download_voc(tmp_path, ["VOC2007/test"])
    assert (tmp_path / "VOCdevkit").exists()


def test_download_leaves_complete_data_alone_and_repairs_the_rest(tmp_path, monkeypatch):
    fake = FakeDownload()
    monkeypatch.setattr(utils, "download_url", fake)
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    write_voc(folder, "test", {"a": (SIZE, []), "b": (SIZE, [])}, suffix=".jpg")
    download_voc(tmp_path, ["VOC2007/test"])
    assert fake.calls == []
    (folder / "JPEGImages" / "b.jpg").unlink()
    download_voc(tmp_path, ["VOC2007/test"])
    assert len(fake.calls) == 1


def test_download_of_other_data_is_refused(tmp_path):
    with pytest.raises(LSHFMError, match=r"can't download 'mine/train'.*VOC2007/trainval"):
        download_voc(tmp_path, ["mine/train"])
