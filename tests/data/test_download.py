from urllib.error import URLError

import pytest
import torchvision
from voc_files import SIZE, write_voc

from lshfm_pl.data.download import download_voc
from lshfm_pl.errors import LSHFMError


class FakeDownload:
    """Stands in for torchvision.datasets.VOCDetection."""

    def __init__(self, error=None):
        self.error = error
        self.calls = []

    def __call__(self, root, year, image_set, download):
        assert download
        self.calls.append((root, year, image_set))
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error", [URLError("name resolution"), RuntimeError("File not found or corrupted."), EOFError("cut")]
)
def test_failed_download_is_one_clear_error(tmp_path, monkeypatch, error):
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", FakeDownload(error))
    with pytest.raises(LSHFMError) as caught:
        download_voc(tmp_path, ["VOC2007/test"])
    text = str(caught.value)
    assert "Downloading VOC2007 test failed (network or mirror)" in text
    assert "VOCtest_06-Nov-2007.tar (md5 b6e924de25625d8de591ea690078ad9f) by hand" in text
    assert str(tmp_path / "VOCdevkit" / "VOC2007") in text


def test_download_fetches_each_archive_once_next_to_vocdevkit(tmp_path, monkeypatch):
    fake = FakeDownload()
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", fake)
    splits = ["VOC2007/train", "VOC2007/val", "VOC2012/trainval", "VOC2007/test"]
    download_voc(tmp_path / "VOCdevkit", splits)
    expected = [("2007", "test"), ("2007", "trainval"), ("2012", "trainval")]
    assert fake.calls == [(str(tmp_path), *archive) for archive in expected]


def test_download_leaves_complete_data_alone_and_repairs_the_rest(tmp_path, monkeypatch):
    fake = FakeDownload()
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", fake)
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    write_voc(folder, "test", {"a": (SIZE, []), "b": (SIZE, [])}, suffix=".jpg")
    download_voc(tmp_path, ["VOC2007/test"])
    assert fake.calls == []
    (folder / "JPEGImages" / "b.jpg").unlink()
    download_voc(tmp_path, ["VOC2007/test"])
    assert len(fake.calls) == 1


def test_download_of_other_data_is_refused(tmp_path):
    with pytest.raises(LSHFMError, match=r"can't fetch 'mine/train'.*VOC2007/trainval"):
        download_voc(tmp_path, ["mine/train"])
