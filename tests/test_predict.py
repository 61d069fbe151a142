"""The user's pictures: which files are used, what is written, and the exit status."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from data_faults import damaged_jpeg, write_sound_voc
from hydra import compose, initialize_config_dir
from PIL import Image, ImageOps
from pycocotools.coco import COCO
from small_detectors import ALL_LABELS, CLASS_NAMES, STUDENTS, as_float, random_batch, small_detector

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.images import decode_image
from lshfm_pl.detectors import detector_checkpoint
from lshfm_pl.errors import LSHFMError
from lshfm_pl.inference.detect import choose_device
from lshfm_pl.inference.pictures import find_pictures
from lshfm_pl.predict import SOME_UNREADABLE, predict


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A detector that reports something, untrained as it is."""
    path = tmp_path_factory.mktemp("detector") / "detector.ckpt"
    torch.save(detector_checkpoint(small_detector(STUDENTS[0], box_score_thresh=0.1)), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Four pictures, two of them with one name, and two files that are none."""
    images = random_batch(num_images=4)[0]
    names = ("a.jpg", "below/a.jpg", "below/b.PNG", "c d.webp")
    for name, image in zip(names, images, strict=True):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "below" / "broken.jpg").write_bytes((tmp_path / "in" / "a.jpg").read_bytes()[:200])
    return tmp_path / "in"


def run(checkpoint, images, output_dir, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        settings = [f"checkpoint='{checkpoint}'", f"images='{images}'", f"output_dir='{output_dir}'"]
        config = compose("predict", overrides=[*settings, "num_workers=0", "device=cpu", *overrides])
    return predict(config), json.loads((output_dir / "predictions.json").read_text())


def test_predictions_are_those_of_evaluation_in_coco_format(checkpoint, folder, tmp_path, capsys):
    unreadable, content = run(checkpoint, folder, tmp_path / "out")
    assert unreadable == ["below/broken.jpg"]
    assert [entry["file_name"] for entry in content["unreadable"]] == unreadable
    assert "is truncated" in content["unreadable"][0]["reason"]
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    assert sorted(names.values()) == ["a.jpg", "below/a.jpg", "below/b.PNG", "c d.webp"]
    assert content["categories"] == [
        {"id": label, "name": name} for label, name in enumerate(CLASS_NAMES, start=1)
    ]
    detector = small_detector(STUDENTS[0], box_score_thresh=0.1).eval()
    (tmp_path / "truth.json").write_text(json.dumps({**content, "annotations": []}))
    results = COCO(str(tmp_path / "truth.json")).loadRes(content["annotations"])
    for image_id, name in names.items():
        with torch.no_grad():
            expected = detector(as_float([decode_image(folder / name)]))[0]
        found = results.imgToAnns[image_id]
        assert len(found) == len(expected["labels"]) > 0
        assert [entry["category_id"] for entry in found] == expected["labels"].tolist()
        boxes = torch.tensor([entry["bbox"] for entry in found])
        torch.testing.assert_close(boxes[:, :2], expected["boxes"][:, :2])
        torch.testing.assert_close(boxes[:, 2:], expected["boxes"][:, 2:] - expected["boxes"][:, :2])
        torch.testing.assert_close(torch.tensor([entry["score"] for entry in found]), expected["scores"])
    told = capsys.readouterr()
    assert "broken.jpg: is truncated" in told.err
    assert "1 of 5 files could not be read and were left out" in told.err
    assert "\r" not in told.err  # no progress bar without a terminal


def test_every_detection_has_a_category_whatever_the_classes_are_called(folder, tmp_path):
    detector = small_detector(STUDENTS[1], **ALL_LABELS).eval()
    detector.class_names = ("unused_1", "N/A", "")
    for data in ({"category_ids": "contiguous"}, {"train_split": "train"}, {"category_ids": "keep"}, None):
        torch.save({**detector_checkpoint(detector), "data": data}, tmp_path / "retinanet.ckpt")
        _, content = run(tmp_path / "retinanet.ckpt", folder / "a.jpg", tmp_path / "out", "pictures=false")
        assert [entry["name"] for entry in content["categories"]] == ["unused_1", "N/A", ""]
        assert {entry["category_id"] for entry in content["annotations"]} == {1, 2, 3}


def test_the_background_that_a_retinanet_scores_is_not_detected(folder, tmp_path):
    detector = small_detector(STUDENTS[1], **ALL_LABELS).eval()
    torch.save(detector_checkpoint(detector), tmp_path / "retinanet.ckpt")
    _, content = run(tmp_path / "retinanet.ckpt", folder / "a.jpg", tmp_path / "out", "score_threshold=0")
    with torch.no_grad():
        assert (
            detector(as_float([decode_image(folder / "a.jpg")]))[0]["labels"].bincount().tolist() == [5] * 4
        )
    assert [entry["category_id"] for entry in content["annotations"]] == [1] * 5 + [2] * 5 + [3] * 5
    assert (tmp_path / "out/pictures/a.jpg.png").is_file()


def test_pictures_of_one_name_in_two_folders_are_both_kept(checkpoint, folder, tmp_path):
    run(checkpoint, folder, tmp_path / "out", "score_threshold=0")
    drawn = sorted(path.relative_to(tmp_path / "out/pictures").as_posix()
                   for path in (tmp_path / "out/pictures").rglob("*.png"))  # fmt: skip
    assert drawn == ["a.jpg.png", "below/a.jpg.png", "below/b.PNG.png", "c d.webp.png"]
    plain = np.asarray(Image.open(folder / "below/b.PNG"))
    boxes_on_it = np.asarray(Image.open(tmp_path / "out/pictures/below/b.PNG.png"))
    assert boxes_on_it.shape == plain.shape
    assert (boxes_on_it != plain).any()
    run(checkpoint, folder, tmp_path / "certain", "score_threshold=1")
    assert (np.asarray(Image.open(tmp_path / "certain/pictures/below/b.PNG.png")) == plain).all()


def test_pictures_that_are_damaged_inside_are_named(checkpoint, tmp_path, capfd):
    write_sound_voc(tmp_path / "set")
    damaged_jpeg(tmp_path / "set")
    unreadable, content = run(checkpoint, tmp_path / "set/JPEGImages", tmp_path / "out", "pictures=false")
    assert unreadable == []
    assert len(content["images"]) == 4
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith(
        f"warning: {tmp_path}/set/JPEGImages/a.jpg: is damaged inside (Corrupt JPEG data: "
    )


def test_batches_give_the_same_detections(checkpoint, folder, tmp_path):
    _, one = run(checkpoint, folder, tmp_path / "one", "pictures=false")
    _, three = run(checkpoint, folder, tmp_path / "three", "pictures=false", "batch_size=3", "num_workers=1")
    assert not (tmp_path / "one/pictures").exists()
    assert one["images"] == three["images"]
    assert [entry["category_id"] for entry in one["annotations"]] == [
        entry["category_id"] for entry in three["annotations"]
    ]
    for first, second in zip(one["annotations"], three["annotations"], strict=True):
        assert first["bbox"] == pytest.approx(second["bbox"], abs=1e-2)


def test_folders_patterns_files_and_lists_are_found(folder):
    def names(images):
        return [picture.name for picture in find_pictures(images)]

    assert names(folder) == ["a.jpg", "below/a.jpg", "below/b.PNG", "below/broken.jpg", "c d.webp"]
    assert names(f"{folder}/**/a.*") == ["a.jpg", "below/a.jpg"]
    assert names(f"{folder}/below/b.*") == ["b.PNG"]
    assert names(folder / "notes.txt") == ["notes.txt"]
    shutil.copytree(folder / "below", folder / "beside")
    pair = [folder / "below", folder / "beside", folder / "below/a.jpg"]
    assert names(pair) == [f"{name}/{file}" for name in ("below", "beside")
                           for file in ("a.jpg", "b.PNG", "broken.jpg")]  # fmt: skip


def test_files_that_macos_writes_beside_pictures_are_none(folder):
    (folder / "below" / "._a.jpg").write_bytes(b"Mac OS X")
    assert not [picture.name for picture in find_pictures(str(folder)) if "._" in picture.name]


def test_nothing_to_read_is_a_failure(checkpoint, folder, tmp_path):
    with pytest.raises(
        LSHFMError, match=r"images: expected a folder with pictures .* found no picture at .*\.tif"
    ):
        find_pictures(f"{folder}/*.tif")
    with pytest.raises(LSHFMError, match="images: none of the 1 files could be read, such as .*broken.jpg"):
        run(checkpoint, folder / "below/broken.jpg", tmp_path / "out")


def test_unknown_device_is_reported():
    with pytest.raises(LSHFMError, match=r"device: expected cpu, cuda or cuda:<number>, found gpu"):
        choose_device("gpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.slow
def test_exit_status_says_whether_all_could_be_read(checkpoint, folder, tmp_path):
    def status(images):
        process = subprocess.run(
            [sys.executable, "-m", "lshfm_pl.predict", f"checkpoint='{checkpoint}'", f"images='{images}'",
             f"hydra.run.dir='{tmp_path}/out'", "num_workers=0"],
            capture_output=True, text=True, cwd=CONFIG_DIR.parent, timeout=200,
        )  # fmt: skip
        assert not re.search("Traceback", process.stderr)
        return process.returncode

    assert status(folder / "a.jpg") == 0
    assert status(folder) == SOME_UNREADABLE
    assert status(folder / "nothing") == 1


def test_pictures_are_turned_as_exif_asks_and_other_formats_are_reported_in_a_line(tmp_path, capsys):
    pixels = np.random.RandomState(0).randint(0, 256, (48, 64, 3), dtype=np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(pixels).save(path, exif=exif)
        expected = np.array(ImageOps.exif_transpose(Image.open(path)))
        assert np.array_equal(decode_image(path, upright=True).permute(1, 2, 0).numpy(), expected)
        assert np.array_equal(decode_image(path).permute(1, 2, 0).numpy(), pixels)
    for name in ("x.gif", "y.TIF"):
        (tmp_path / name).write_bytes(b"GIF89a")
    assert len(find_pictures(str(tmp_path))) == 8
    assert capsys.readouterr().err.startswith("left out: 2 files of formats that are not supported")


def test_a_folder_of_anything_loses_no_picture_and_what_cannot_be_read_is_reported(
    checkpoint, tmp_path, capsys
):
    folder = tmp_path / "in"
    folder.mkdir()
    long_name = "n" * 251 + ".png"
    for name in (long_name, "\udcff.png"):
        Image.new("RGB", (40, 30)).save(folder / name)
    Image.new("RGB", (7000, 100)).save(folder / "line.png")
    os.mkfifo(folder / "pipe.png")
    for name, target in (("device.png", "/dev/zero"), ("loop.png", "loop.png"), ("gone.png", "nothing")):
        (folder / name).symlink_to(target)
    unreadable, content = run(checkpoint, folder, tmp_path / "out")
    assert sorted(unreadable) == ["device.png", "gone.png", "line.png", "loop.png", "pipe.png"]
    assert {entry["file_name"] for entry in content["images"]} == {long_name, "\udcff.png"}
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 2
    reasons = {entry["file_name"]: entry["reason"] for entry in content["unreadable"]}
    assert "expected a regular file, found a named pipe" in reasons["pipe.png"]
    assert "one side is more than 64 times the other" in reasons["line.png"]


def test_drawings_of_before_are_no_pictures_to_look_at(checkpoint, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for _ in range(2):
        _, content = run(checkpoint, tmp_path, tmp_path)
        assert [entry["file_name"] for entry in content["images"]] == ["a.png"]
    assert "left out: 1 pictures drawn by predict, such as" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["batch_size=0", "num_workers=-3"])
def test_numbers_out_of_range_are_reported(checkpoint, folder, tmp_path, setting):
    with pytest.raises(
        LSHFMError, match=r"(batch_size|num_workers): expected a whole number of at least [01], found"
    ):
        run(checkpoint, folder, tmp_path / "out", setting)


def test_names_of_any_length_are_drawn_in_no_time(folder, tmp_path):
    names = ["x" * 200_000 + str(number) for number in range(len(CLASS_NAMES))]
    detector = small_detector(STUDENTS[0], box_score_thresh=0.1)
    content = {**detector_checkpoint(detector), "class_names": names}
    torch.save(content, tmp_path / "detector.ckpt")
    begin = time.process_time()
    run(tmp_path / "detector.ckpt", folder / "a.jpg", tmp_path / "out")
    assert time.process_time() - begin < 20
