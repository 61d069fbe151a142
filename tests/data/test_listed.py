"""The names in folders."""

import pytest

from lshfm_pl.data.listed import ListedFolders


def test_a_folder_is_listed_once(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    listed = ListedFolders()
    assert listed.names(tmp_path) == {"a.jpg": False, "link.jpg": True}
    (tmp_path / "b.jpg").touch()
    assert "b.jpg" not in listed.names(str(tmp_path))
    assert "b.jpg" in ListedFolders().names(tmp_path)


def test_names_are_found_in_other_spellings_and_without_suffix(tmp_path):
    composed, decomposed = "\u00f6.jpg", "O\u0308.JPG"
    for name in (composed, decomposed, "\u00f6.png", "o.jpg"):
        (tmp_path / name).touch()
    listed = ListedFolders()
    assert listed.alike(tmp_path, composed) == sorted([composed, decomposed])
    assert listed.of_stem(tmp_path, "\u00d6") == sorted([composed, decomposed, "\u00f6.png"])
    assert not listed.alike(tmp_path, "x.jpg")


def test_a_missing_folder_has_no_names_unless_it_must_be_read(tmp_path):
    listed = ListedFolders()
    with pytest.raises(FileNotFoundError):
        listed.read(tmp_path / "none")
    assert not listed.names(tmp_path / "none")
    assert not listed.alike(tmp_path / "none", "a.jpg")
