"""Files of other projects are converted to files of this project."""

import os
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from published_files import PUBLISHED, old_names, published_file, published_layout, zeros
from small_detectors import CLASS_NAMES, small_detector

from lshfm_pl import import_checkpoint as command
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data import VOC_CLASSES
from lshfm_pl.detectors import detector_checkpoint, load_detector, model_config
from lshfm_pl.errors import LSHFMError

TINY = "fasterrcnn_resnet10fpn_tiny"


def run(*overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("import_checkpoint", overrides=list(overrides))
    return command.import_checkpoint(config)


@pytest.fixture
def source(tmp_path):
    """A published file of a small detector with frozen batch norm, and that detector."""
    detector = small_detector(TINY, norm="frozen_bn", norm_eps=1e-3)
    return published_file(tmp_path / "published.ckpt", old_names(detector.state_dict())), detector


def test_imported_file_needs_nothing_else(source, tmp_path, capsys):
    path, detector = source
    target = tmp_path / "folder/own.ckpt"
    names = f"class_names=[{','.join(CLASS_NAMES)}]"
    assert run(f"src={path}", f"dst={target}", f"model={TINY}", "model.norm=frozen_bn", names) == target
    loaded = load_detector(target)
    assert loaded.class_names == CLASS_NAMES
    assert loaded.config == {**detector.config, "norm_eps": 0}
    expected = detector.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert [file.name for file in target.parent.iterdir()] == ["own.ckpt"]
    printed = capsys.readouterr().out
    assert f"{path}: {len(expected)} tensors loaded (published checkpoint, norm eps 0)" in printed
    assert f"{target}: {TINY}, 3 classes (circle, square, star)" in printed


def test_existing_files_are_kept_unless_overwritten(source, tmp_path):
    path, detector = source
    target = tmp_path / "own.ckpt"
    target.write_text("precious")
    overrides = [
        f"src={path}",
        f"dst={target}",
        f"model={TINY}",
        "model.norm=frozen_bn",
        "class_names=[a,b,c]",
    ]
    with pytest.raises(LSHFMError, match="own.ckpt exists already; give another path, or overwrite=true"):
        run(*overrides)
    assert target.read_text() == "precious"
    run(*overrides, "overwrite=true")
    assert load_detector(target).class_names == ("a", "b", "c")


def test_failed_write_leaves_the_old_file_and_no_other(source, tmp_path, monkeypatch):
    path, detector = source
    target = tmp_path / "own.ckpt"
    target.write_text("precious")

    def full_disk(content, file):
        file.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(command.torch, "save", full_disk)
    with pytest.raises(LSHFMError, match=r"own.ckpt cannot be written \(no space left\)"):
        command.write(detector, target)
    assert target.read_text() == "precious"
    assert {file.name for file in tmp_path.iterdir()} == {"own.ckpt", "published.ckpt"}


def test_classes_of_drawn_shapes_come_from_the_data(tmp_path):
    torch.save(small_detector(TINY).state_dict(), tmp_path / "weights.pth")
    data = ["data=shapes", f"data.root={tmp_path}", "data.num_train=1", "data.num_val=1", "data.num_test=1"]
    with pytest.raises(LSHFMError, match="another number of classes"):
        run(f"src={tmp_path}/weights.pth", f"dst={tmp_path}/own.ckpt", f"model={TINY}", *data)


def test_file_of_ours_keeps_its_own_classes(tmp_path):
    torch.save(detector_checkpoint(small_detector(TINY)), tmp_path / "own.ckpt")
    with pytest.raises(LSHFMError, match="its own class names circle, square, star; found a, b, c"):
        run(f"src={tmp_path}/own.ckpt", f"dst={tmp_path}/new.ckpt", "class_names=[a,b,c]")
    run(f"src={tmp_path}/own.ckpt", f"dst={tmp_path}/new.ckpt")
    assert load_detector(tmp_path / "new.ckpt").class_names == CLASS_NAMES


def test_nothing_to_import_is_reported(tmp_path):
    with pytest.raises(LSHFMError, match="give src=<file>, or weights=COCO_V1 with model="):
        run(f"dst={tmp_path}/own.ckpt")


@pytest.mark.slow
def test_command_recognises_a_published_pair(tmp_path):
    pair = PUBLISHED["containers"]["fasterrcnn_vgg11fpn_with_vgg16fpn__l2"]
    parts = [zeros(published_layout(pair[which]), which[0] + "_") for which in ("teacher", "student")]
    path = published_file(tmp_path / "pair.ckpt", parts[0] | parts[1])
    done = subprocess.run(
        [sys.executable, "-m", "lshfm_pl.import_checkpoint", f"src={path}", "dst=own.ckpt", "which=teacher"],
        cwd=tmp_path,  # the command writes no other file, wherever it runs
        env={**os.environ, "PYTHONPATH": str(CONFIG_DIR.parent)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"pair.ckpt", "own.ckpt"}
    assert "56 tensors loaded (teacher of a published checkpoint)" in done.stdout
    detector = load_detector(tmp_path / "own.ckpt")
    assert detector.config == model_config("fasterrcnn_vgg16fpn")
    assert detector.class_names == VOC_CLASSES
