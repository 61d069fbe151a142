"""A run on a folder whose format and sets are found, from the check to the evaluation of the checkpoint."""

import json

import pytest
from hydra import compose, initialize_config_dir
from yolo_files import write_yolo

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.check import check_data
from lshfm_pl.evaluate import evaluate
from lshfm_pl.training.run import train


@pytest.mark.slow
def test_a_folder_is_checked_copied_trained_on_and_evaluated(tmp_path, capsys):
    labels = {f"{number:02d}": f"{number % 2} 0.5 0.5 0.5 0.5\n" for number in range(16)}
    write_yolo(tmp_path / "own", {".": labels}, description=None)
    (tmp_path / "own" / "classes.txt").write_text("cat\ndog\n")
    data = [f"data.root={tmp_path}/own", "data.split=0.5/0.25/0.25", "data.num_workers=0", "data=auto"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        assert check_data(compose("check_data", overrides=[*data, f"fix={tmp_path}/copy"])).num_errors == 0
        assert "train 8 images with 8 objects; val 4" in capsys.readouterr().out
        run = tmp_path / "run"
        common = ["data.batch_size=2", "schedule=quickstart", "schedule.epochs=1", "schedule.warmup_steps=0",
                  "model=fasterrcnn_resnet10fpn_tiny", "model.min_size=[64]", "trainer.accelerator=cpu",
                  "trainer.enable_progress_bar=false"]  # fmt: skip
        results = train(compose("train", overrides=[*data, *common, f"output_dir={run}"]))
        again = [
            f"checkpoint={run}/checkpoints/last.ckpt",
            f"output_dir={tmp_path}/again",
            "trainer.accelerator=cpu",
        ]
        figures = evaluate(compose("evaluate", overrides=again))
        # The copy has the same images in the same sets, as files in COCO's format.
        copied = ["data=auto", f"data.root={tmp_path}/copy", "data.num_workers=0", *again]
        of_copy = evaluate(compose("evaluate", overrides=[*copied, f"output_dir={tmp_path}/of_copy"]))
    assert figures == pytest.approx(results["metrics"], abs=1e-9, nan_ok=True)
    assert of_copy == pytest.approx(figures, abs=0, nan_ok=True)
    parts = json.loads((run / "split.json").read_text())["images"]
    assert {name: len(paths) for name, paths in parts.items()} == {"train": 8, "val": 4, "test": 4}
    assert len({path for paths in parts.values() for path in paths}) == 16
