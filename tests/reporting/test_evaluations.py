"""The report's table of single evaluations."""

import json

from run_files import write_run

from lshfm_pl.reporting.finding import find_runs
from lshfm_pl.reporting.report import report


def write_evaluation(folder, file, ap, **changes):
    """The results of `evaluate`."""
    folder.mkdir(parents=True)
    results = {
        "status": "done",
        "checkpoint": file,
        "model": "a_detector",
        "metrics": {"AP": ap, "AP50": None},
        "test_set": {"hash": "abc", "images": 72},
        "cost": {"weights_bytes": 3_400_000, "gflops": None, "ms_per_image": 51.25},
    }
    (folder / "results.json").write_text(json.dumps({**results, **changes}))


def test_exported_files_have_rows_beside_their_checkpoint(tmp_path):
    write_run(tmp_path / "run", with_record=False)
    write_evaluation(tmp_path / "run" / "1", "a/last.int8.onnx", 48.3)
    write_evaluation(tmp_path / "run" / "2", "other<b>|.ckpt", 1, test_set={"hash": "x", "images": 10**40})
    write_evaluation(tmp_path / "run" / "3", "a/last.ckpt", 49.1)
    write_evaluation(tmp_path / "run" / "4", "a/last.onnx", 49.06)
    found = find_runs([tmp_path])
    assert ([run.folder.name for run in found.runs], found.aside) == (["run"], [])
    page = report(tmp_path, metrics=["AP", "AP50"], picture_images=0, resamples=0)
    lines = (
        (page.parent / "report.md").read_text().split("## Evaluations of single files\n\n")[1].splitlines()
    )
    assert lines[2:6] == [
        "| a/last.ckpt | a_detector | 72 images, abc | 49.1 | – | 3.4 | 51.2 |",
        "| a/last.int8.onnx | a_detector | 72 images, abc | 48.3 | – | 3.4 | 51.2 |",
        "| a/last.onnx | a_detector | 72 images, abc | 49.1 | – | 3.4 | 51.2 |",
        "| other&lt;b&gt;&#124;.ckpt | a_detector | x | 1.0 | – | 3.4 | 51.2 |",
    ]
    text = page.read_text()
    assert "a/last.int8.onnx" in text
    assert 'data-label="AP">48.3<' in text
    assert "other<b>" not in text


def test_evaluations_alone_make_a_report(tmp_path):
    write_evaluation(tmp_path / "int8", "a.int8.onnx", 48.3)
    page = report(tmp_path, picture_images=0)
    assert "a.int8.onnx" in page.read_text()
