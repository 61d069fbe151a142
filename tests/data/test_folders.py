"""Searching folders of data, including links."""

from voc_files import SIZE, object_xml, write_voc

from lshfm_pl.data import VOCDataModule
from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.folders import no_picture, pictures_below, walk


def test_each_folder_comes_once_whatever_links_lead_to_it(tmp_path):
    top = tmp_path / "set"
    for folder in ("b/deep", "a"):
        (top / folder).mkdir(parents=True)
        (top / folder / "x.jpg").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.jpg").touch()
    (top / "linked").symlink_to(tmp_path / "elsewhere")
    (top / "b" / "up").symlink_to(top)
    (top / "z").symlink_to(top / "a")
    found = [(folder.relative_to(top).as_posix(), names) for folder, names in walk(top)]
    assert found == [(".", []), ("a", ["x.jpg"]), ("b", []), ("b/deep", ["x.jpg"]), ("linked", ["y.jpg"])]
    assert [folder.name for folder, _ in walk(top, 1)] == ["set", "a", "b", "linked"]


def test_hidden_files_and_folders_are_no_data(tmp_path):
    for name in ("a.jpg", "._a.jpg", ".b.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/._a.jpg", "c/.d/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert pictures_below(tmp_path, FaultLog()) == [tmp_path / "a.jpg"]


def test_pictures_that_are_not_read_are_counted_in_one_line(tmp_path):
    for name in ("a.png", "b.tif", "c.TIFF", "d.gif", "notes.txt"):
        (tmp_path / name).touch()
    log = FaultLog()
    assert [path.name for path in pictures_below(tmp_path, log)] == ["a.png"]
    (fault,) = log.faults
    assert str(fault).startswith(f"{tmp_path}/b.tif: and 2 more are of a format that is not read. Convert")
    (tmp_path / "a.png").unlink()
    assert "b.tif and 2 more are of a format that is not read" in no_picture(tmp_path)


def test_a_split_may_be_a_folder_that_is_or_holds_a_link(tmp_path):
    folder = write_voc(tmp_path / "real", "train", {name: (SIZE, [object_xml()]) for name in "abcde"})
    for kind in ("Annotations", "JPEGImages"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        (tmp_path / "set" / kind / "seq1").symlink_to(folder / kind)
    for split in ("seq1/", "0-100%", "seq1/0-100%"):
        datamodule = VOCDataModule(root=tmp_path / "set", train_split=split, val_split=split, num_workers=0)
        datamodule.setup("fit")
        assert [record.image_id for record in datamodule.train_set.records] == [
            f"set/seq1/{n}" for n in "abcde"
        ]
