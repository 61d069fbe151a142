"""The check finds every fault of `data_faults.py`, and training stops, skips or continues as listed there."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from data_faults import (
    COCO_CASES,
    VOC_CASES,
    YOLO_CASES,
    save,
    write_sound_coco,
    write_sound_voc,
    write_sound_yolo,
)
from data_modules import make
from hydra import compose, initialize_config_dir
from voc_files import SIZE, object_xml, write_voc

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data import COCODataModule
from lshfm_pl.data.check import check_data, find_faults
from lshfm_pl.data.faults import ERRORS, WARNINGS
from lshfm_pl.errors import LSHFMError

CASES = {**{f"voc: {name}": case for name, case in VOC_CASES.items()}}
CASES |= {f"coco: {name}": case for name, case in COCO_CASES.items()}
CASES |= {f"yolo: {name}": case for name, case in YOLO_CASES.items()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_sound_voc(folder / "voc")
    write_sound_coco(folder / "coco")
    write_sound_yolo(folder / "yolo")
    return folder


def train(folder, **settings):
    """One epoch of training: (batches, skipped images)."""
    datamodule = make(folder, **settings)
    datamodule.setup("fit")
    batches = list(datamodule.train_dataloader())
    assert all(len(images) == len(targets) == 2 for images, targets in batches)
    for _, targets in batches:
        for target in targets:
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
            assert (target["labels"] > 0).all()
    return batches, datamodule.skipped()


def one_case(sound, tmp_path, name):
    case = CASES[name]
    folder = tmp_path / "set"
    shutil.copytree(sound / name.partition(":")[0], folder)
    case.change(folder)
    return case, folder, dict(case.settings)


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_sound_data_have_no_faults(sound, kind):
    assert find_faults(make(sound / kind)).faults == []
    batches, skipped = train(sound / kind)
    assert (len(batches), skipped) == (2, [])


@pytest.mark.parametrize("name", CASES)
def test_fault(sound, tmp_path, name):
    case, folder, settings = one_case(sound, tmp_path, name)

    found = [fault for _, fault in find_faults(make(folder, **settings)).faults]
    assert {fault.kind for fault in found} == set(case.kinds.split())
    assert not found or any(case.place in str(fault) for fault in found), found

    if case.outcome == "pass":
        for on_bad_sample in ("error", "skip"):
            assert train(folder, on_bad_sample=on_bad_sample, **settings)[1] == []
        return
    with pytest.raises(LSHFMError) as caught:
        train(folder, **settings)
    told = str(caught.value)
    assert len(told.splitlines()) <= 2
    assert str(folder) in told
    if case.outcome == "fatal":
        with pytest.raises(LSHFMError):
            train(folder, on_bad_sample="skip", **settings)
        return
    batches, skipped = train(folder, on_bad_sample="skip", **settings)
    assert 1 <= len(batches) <= 2
    assert skipped
    assert {fault.kind for fault in skipped} <= {fault.kind for fault in found if fault.is_error}


@pytest.mark.parametrize("is_same", [True, False])
def test_copies_with_other_objects_are_reported(tmp_path, is_same):
    boxes = (11, 21, 30, 40), ((11, 21, 30, 40) if is_same else (1, 2, 30, 40))
    images = {name: (SIZE, [object_xml("cat", box)]) for name, box in zip("ab", boxes, strict=True)}
    folder = write_voc(tmp_path, "train", images)
    shutil.copy(folder / "JPEGImages/a.png", folder / "JPEGImages/b.png")
    found = find_faults(make(folder, val_split="train")).faults
    (text,) = {fault.text for _, fault in found if fault.kind == "image-repeated"}
    assert ("2 objects are annotated in only one" in text) is not is_same


def test_evaluation_images_with_errors_are_not_said_to_be_empty(tmp_path):
    folder = write_voc(tmp_path, "train", {"a": (SIZE, [object_xml()])})
    write_voc(folder, "val", {"b": (SIZE, [object_xml("submarine")])})
    found = {fault.kind for split, fault in find_faults(make(folder)).faults if split == "val"}
    assert found == {"class-unknown", "test-in-train"}


def test_the_table_has_every_kind_and_at_least_60_cases():
    used = {kind for case in CASES.values() for kind in case.kinds.split()}
    assert used == (set(ERRORS) | set(WARNINGS)) - {"setting", "test-in-val"}
    assert len(CASES) >= 60


def composed(*overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("check_data", overrides=[*overrides])


def faulty_folder(sound, tmp_path):
    """A truncated training image, a box without area on line 3, and two greyscale images."""
    folder = tmp_path / "set"
    shutil.copytree(sound / "voc", folder)
    VOC_CASES["jpeg cut in half"].change(folder)
    path = folder / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("<object>", "\n\n<object>").replace("<xmax>30", "<xmax>2"))
    for name in ("c", "d"):
        save("L", f"JPEGImages/{name}.jpg")(folder)
    return folder


def test_the_command_lists_every_fault_and_sums_up(sound, tmp_path, capsys):
    folder = faulty_folder(sound, tmp_path)
    data = ["data=voc_folder", f"data.root={folder}", "data.class_names=[cat,dog]"]
    overrides = [*data, f"output={tmp_path}/found.json", "threads=2"]
    check_data(composed(*overrides))
    *lines, total = capsys.readouterr().out.splitlines()
    assert f"train error box-reversed: {folder}/Annotations/b.xml:3: the box of object 1 (dog)" in lines[0]
    assert f"train error image-truncated: {folder}/JPEGImages/a.jpg: is truncated" in lines[1]
    assert "train warning image-greyscale: " in lines[2]
    assert "val warning image-greyscale: " in lines[3]
    assert "test-in-train" in lines[4]  # the two greyscale images have the same pixels
    summed = [line.split()[:3] for line in lines[5:]]
    assert summed == [
        ["error", "box-reversed", "1"],
        ["error", "image-truncated", "1"],
        ["error", "test-in-train", "1"],
        ["warning", "image-greyscale", "2"],
    ]
    assert total == "3 errors, 2 warnings; images read: train 3, val 1"

    content = json.loads((tmp_path / "found.json").read_text())
    assert (content["errors"], content["warnings"], content["images"]) == (3, 2, {"train": 3, "val": 1})
    first = content["faults"][0]
    assert (first["split"], first["severity"], first["kind"], first["line"], first["image_id"]) == (
        ("train", "error", "box-reversed", 3, "set/b")
    )
    check_data(composed(*overrides, "limit=1"))
    assert capsys.readouterr().out.count("image-greyscale: ") == 1


def test_threads_find_the_same_in_the_same_order(sound, tmp_path):
    folder = faulty_folder(sound, tmp_path)
    assert find_faults(make(folder), threads=4) == find_faults(make(folder), threads=1)


def test_splits_that_are_not_configured_are_not_read(sound):
    validation_only = {"train_annotations": None, "train_images": None}
    datamodule = COCODataModule(
        root=sound / "coco",
        val_annotations="annotations/instances_val.json",
        val_images="val",
        num_workers=0,
        **validation_only,
    )
    assert find_faults(datamodule).images == {"val": 1}


def test_impossible_settings_are_reported_as_faults(sound):
    ((_, fault), *_) = find_faults(make(sound / "coco", category_ids="sorted")).faults
    assert fault.kind == "setting"
    assert "keep or contiguous, found 'sorted'" in fault.text


def test_output_that_cannot_be_written_is_reported(sound, tmp_path):
    (tmp_path / "file").write_text("")
    overrides = ["data=voc_folder", f"data.root={sound}/voc", f"output={tmp_path}/file/found.json"]
    with pytest.raises(LSHFMError, match="output: .* can't be written"):
        check_data(composed(*overrides))


@pytest.mark.slow
@pytest.mark.parametrize("is_faulty", [False, True])
def test_the_exit_status_says_whether_there_are_errors(sound, tmp_path, is_faulty):
    folder = faulty_folder(sound, tmp_path) if is_faulty else sound / "voc"
    done = subprocess.run(
        [sys.executable, "-m", "lshfm_pl.check_data", "data=voc_folder", f"data.root={folder}"],
        cwd=CONFIG_DIR.parent,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == int(is_faulty), done.stderr
    assert "Traceback" not in done.stderr
    assert "images read: train 3, val 1" in done.stdout


def seconds_for(tmp_path, number):
    """CPU time for one annotation with this number of objects, each with several faults."""
    objects = [
        object_xml(f"class{index}", (70.5 + index % 50, 21, 150.5 + index / 7, 40)) for index in range(number)
    ]
    folder = write_voc(tmp_path / str(number), "train", {"a": ((64, 48), [*objects, object_xml("cat")])})
    write_voc(folder, "val", {"b": ((64, 48), [object_xml("cat")])})
    start = time.process_time()
    findings = find_faults(make(folder))
    assert findings.by_kind()["box-outside"] > 0.9 * number
    return time.process_time() - start


def test_time_is_linear_in_the_objects_of_a_file(tmp_path):
    seconds_for(tmp_path, 10)
    few, many = seconds_for(tmp_path, 500), seconds_for(tmp_path, 8000)
    assert many < 3 * 16 * few
    assert many < 30


def test_only_its_own_output_is_replaced(sound, tmp_path):
    folder = shutil.copytree(sound / "coco", tmp_path / "coco")
    annotations = folder / "annotations" / "instances_train.json"
    before = annotations.read_bytes()
    names = ["data=coco_json", f"data.root={folder}"]
    for split in ("train", "val"):
        names += [
            f"data.{split}_annotations=annotations/instances_{split}.json",
            f"data.{split}_images={split}",
        ]

    def check(output):
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            check_data(compose("check_data", overrides=[*names, f"output={output}"]))

    for other in (annotations, folder):
        with pytest.raises(LSHFMError, match=r"output: .*(found another file at|found a folder)"):
            check(other)
    assert annotations.read_bytes() == before
    for _ in range(2):
        check(tmp_path / "faults.json")
        assert json.loads((tmp_path / "faults.json").read_text())["errors"] == 0


@pytest.mark.timeout(60)
def test_a_list_that_is_a_pipe_is_not_called_missing(sound, tmp_path):
    folder = shutil.copytree(sound / "voc", tmp_path / "voc")
    (folder / "ImageSets/Main/train.txt").unlink()
    os.mkfifo(folder / "ImageSets/Main/train.txt")
    faults = [str(fault) for _, fault in find_faults(make(folder)).faults]
    assert any("train.txt: expected a regular file, found a named pipe" in fault for fault in faults)


def test_names_that_are_no_utf8_are_shared_out_too(sound, tmp_path):
    folder = shutil.copytree(sound / "voc", tmp_path / "voc")
    for name in ("JPEGImages/a.jpg", "Annotations/a.xml"):
        (folder / name).rename(folder / name.replace("a.", "\udcff."))
    findings = find_faults(make(folder, train_split="0-50%", val_split="50-100%"))
    assert findings.num_errors == 0
    assert sum(findings.images.values()) == 4
