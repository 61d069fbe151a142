"""A user's data format is one file and its YAML; a checkpoint alone does not import it."""

import csv
import json
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from own_parts import run_with
from PIL import Image

from lshfm_pl import paths
from lshfm_pl.data import DetectionDataModule, VOCDataModule, build_datamodule, formats
from lshfm_pl.data.formats import ENTRY_POINTS, data_module_of
from lshfm_pl.errors import LSHFMError

TOY = Path(__file__).parents[1] / "toy_format"
STORED = {"_target_": "boxes_csv.BoxesCSV", "root": "/nowhere", "train": "train.csv", "val": "val.csv"}


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(TOY))
    yield
    sys.modules.pop("boxes_csv", None)


@pytest.fixture(scope="module")
def csv_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("csv")
    for split, count in (("train", 4), ("val", 2)):
        with (root / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "class", "x1", "y1", "x2", "y2"])
            for number in range(count):
                name = f"{split}_{number}.png"
                Image.new("RGB", (64, 48), (10 * number, 100, len(split))).save(root / name)
                table.writerow([name, "cat" if number % 2 else "dog", 8, 8, 40, 32])
    return root


def test_a_file_alone_imports_nothing(importable):
    with pytest.raises(
        LSHFMError, match=r"found 'boxes_csv.BoxesCSV'. For your own class give --config-dir="
    ):
        build_datamodule(STORED)
    assert "boxes_csv" not in sys.modules


def test_a_yaml_in_the_config_folder_of_the_command_names_a_format(importable, monkeypatch):
    monkeypatch.setattr(paths, "own_config_dir", lambda: TOY)
    datamodule = build_datamodule(STORED)
    assert type(datamodule).__name__ == "BoxesCSV"
    assert isinstance(datamodule, DetectionDataModule)
    with pytest.raises(LSHFMError, match="found 'os.system'"):
        build_datamodule({**STORED, "_target_": "os.system"})


def test_an_installed_entry_point_names_a_format_and_others_are_not_imported(importable, monkeypatch):
    points = [
        EntryPoint("other", "not_there:Other", ENTRY_POINTS),
        EntryPoint("csv", "boxes_csv:BoxesCSV", ENTRY_POINTS),
    ]
    monkeypatch.setattr(formats, "entry_points", lambda group: points if group == ENTRY_POINTS else [])
    assert data_module_of("boxes_csv.BoxesCSV").__name__ == "BoxesCSV"
    with pytest.raises(LSHFMError, match="not_there.Other cannot be imported .*put its folder on PYTHONPATH"):
        data_module_of("not_there.Other")


def test_what_is_no_data_module_is_refused(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.yaml").write_text("_target_: pathlib.Path\n")
    (tmp_path / "data/b.yaml").write_text("[\n")
    monkeypatch.setattr(paths, "own_config_dir", lambda: tmp_path)
    with pytest.raises(LSHFMError, match="expected a subclass of DetectionDataModule, found pathlib.Path"):
        data_module_of("pathlib.Path")


def test_targets_of_older_versions_are_known():
    assert data_module_of("lshfm_pl.data.datamodule.VOCDataModule") is VOCDataModule


command = partial(run_with, TOY)


@pytest.mark.slow
def test_a_format_of_ones_own_is_trained_on_resumed_evaluated_and_drawn(csv_folder, tmp_path):
    own = ["--config-dir", str(TOY)]
    run = [
        *own, "data=boxes_csv", f"data.root={csv_folder}", "model=retinanet_resnet10fpn_tiny",
        "kernels.winograd=false",
        "schedule=quickstart", "schedule.epochs=2", "model.min_size=[64]", "trainer.accelerator=cpu",
    ]  # fmt: skip
    printed = command(tmp_path, "train", *run, "hydra.run.dir=whole").stdout
    assert "folded" in printed
    assert "Winograd" not in printed
    half = [*run, "hydra.run.dir=parts", "callbacks.last.every_n_steps=2"]
    command(tmp_path, "train", *half, "trainer.max_steps=2")
    command(tmp_path, "train", *half, "resume=auto", "resume_allow_changes=true")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    results = json.loads((tmp_path / "whole/results.json").read_text())
    assert results["data"]["_target_"] == "boxes_csv.BoxesCSV"
    assert results["kernels"] == {
        "winograd": False,
        "folded_norms": True,
        "fused_hash_loss": True,
        "hash": "auto",
        "memory": True,
    }

    checkpoint = "checkpoint=whole/checkpoints/last.ckpt"
    cpu = "trainer.accelerator=cpu"
    refused = command(tmp_path, "evaluate", checkpoint, cpu, status=1).stderr
    assert "found 'boxes_csv.BoxesCSV'. For your own class give --config-dir=" in refused
    command(tmp_path, "evaluate", *own, checkpoint, cpu, "hydra.run.dir=evaluated")
    evaluated = json.loads((tmp_path / "evaluated/results.json").read_text())
    assert evaluated["metrics"] == pytest.approx(results["metrics"], nan_ok=True)
    command(tmp_path, "visualize", *own, checkpoint, "random=1", "device=cpu", "hydra.run.dir=drawn")
    assert list((tmp_path / "drawn").glob("*.png"))
    # The file leaves the numbers of images a step to the class; a comparison chooses them all the same.
    small = [f"{role}.model=retinanet_resnet10fpn_tiny" for role in ("teacher", "student")]
    compared = [
        *own, "data=boxes_csv", f"data.root={csv_folder}", *small, "distill=[none]", "seeds=1", "epochs=1",
        "image_size=64",
    ]  # fmt: skip
    command(tmp_path, "compare", *compared, cpu, "output_dir=compared")
    assert (tmp_path / "compared/detections.png").is_file()
    checked = command(tmp_path, "check_data", *own, "data=boxes_csv", f"data.root={csv_folder}")
    assert "4" in checked.stdout
