"""The table of what every loss costs every student."""

import json
import logging

import pytest
from hydra import compose, initialize_config_dir

from lshfm_pl.benchmarking import methods
from lshfm_pl.benchmarking.methods import _figures, _measured, _wanted, measure_methods
from lshfm_pl.benchmarking.methods_table import row_text, table_text
from lshfm_pl.benchmarking.timing import Sample
from lshfm_pl.cli import CONFIG_DIR, as_dict
from lshfm_pl.cli.names import group_choices
from lshfm_pl.errors import LSHFMError

STUDENTS = ("retinanet_resnet10fpn_tiny", "fasterrcnn_resnet10fpn_tiny", "fcos_resnet10fpn_tiny")
SMALL = ("height=64", "width=96", "num_classes=4", "num_boxes=2", "repeats=1", "warmup=0", "memory=false")


def config_of(tmp_path, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(
            "benchmark", ["what=methods", *SMALL, f"output={tmp_path}/t.json", "output_dir=x", *overrides]
        )


def rows_of(config):
    return list(_wanted(config, {"CPU": "any"}))


def test_by_default_every_loss_is_measured_with_a_student_of_each_family_at_published_sizes(tmp_path):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("benchmark", ["what=methods", "output_dir=x"])
        on_gpu = compose("benchmark", ["what=methods", "output_dir=x", "device=cuda:1"])
        others = compose("benchmark", ["what=step", "output_dir=x", "device=cuda"])
    named = [(row["student"], row["teacher"], row["loss"]) for row, _ in rows_of(config)]
    losses = [name for name in group_choices("distill") if name != "none"]
    assert len(losses) >= 12
    assert named == [
        (f"{family}_resnet50fpn", f"{family}_resnet101fpn", loss)
        for family in ("retinanet", "fasterrcnn", "fcos")
        for loss in losses
    ]
    assert (on_gpu.batch_size, on_gpu.height, on_gpu.width) == (8, 800, 1088)
    assert (config.batch_size, config.height) == (1, 480)
    assert (others.batch_size, others.height) == (2, 480)


def test_rows_have_their_own_settings_and_those_of_the_command(tmp_path):
    models = "models=[{narrow:{model:retinanet_resnet10fpn_tiny,fpn_channels:16}}]"
    losses = "losses=[{few:{loss:lsh,num_hashes:16}},pkd+kd]"
    config = config_of(tmp_path, models, losses, "precision=bf16-mixed", "seed=3")
    (few, of_few), (_, of_sum) = rows_of(config)
    assert (few["student"], few["loss"]) == ("narrow", "few")
    assert (of_few.distill.name, of_few.distill.num_hashes, of_few.distill.seed) == ("lsh", 16, 3)
    assert of_few.model.fpn_channels == 16
    assert (of_few.precision, of_few.height, of_few.batch_size) == ("bf16-mixed", 64, 1)
    assert set(of_sum.distill.terms) == {"pkd", "kd"}


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_every_loss_has_figures_or_a_reason(student, tmp_path):
    config = config_of(tmp_path, f"models=[{student}]")
    without = []
    for row, settings in rows_of(config):
        if "poolings" in settings.distill:
            settings.distill.poolings = [2, 1, 1, 1]  # the published windows are larger than the maps
        found = _measured(settings)
        if "reason" in found:
            without.append(row["loss"])
            assert "; " not in found["reason"]
            assert found["reason"] in row_text({**row, **found})
            continue
        assert all(seconds > 0 for seconds in found["seconds"].values())
        expected = found["seconds"]["distill"] / (found["seconds"]["plain"] + found["seconds"]["teacher"])
        assert found["over_floor"] == [pytest.approx(expected)]
    assert without == (["crosskd"] if student.startswith("fasterrcnn") else [])


def test_ratios_are_those_of_each_round():
    of_rounds = {"plain": (2, 4), "teacher": (1, 2), "mimic": (1, 1), "distill": (6, 6)}
    samples = {
        name: [Sample(3 * seconds, seconds, None) for seconds in of_part]
        for name, of_part in of_rounds.items()
    }
    found = _figures(samples, is_processor_time=True)
    assert found["over_floor"] == [2.0, 1.0]
    assert found["over_plain"] == [3.0, 1.5]
    assert found["seconds"]["plain"] == 3
    assert found["elapsed_seconds"]["plain"] == 9
    assert found["busy"] == pytest.approx(1 / 3)
    assert _figures(samples, is_processor_time=False)["seconds"]["plain"] == 9


FIGURES = {
    "seconds": {"plain": 2.0, "teacher": 1.0, "mimic": 0.1, "distill": 3.1},
    "over_floor": [1.03, 1.04, 1.08],
    "over_plain": [1.5, 1.6, 1.7],
    "busy": 0.5,
    "peak_memory_bytes": {"plain": 1000, "distill": 1100, "frozen": 50},
}


def in_this_process(answers):
    """A stand-in for a process of a row: the answer with its loss's name."""
    asked = []

    def run(work, config, *args, **_):
        asked.append(config.distill.name)
        answer = answers.get(config.distill.name, FIGURES)
        if isinstance(answer, BaseException):
            raise answer
        return json.loads(json.dumps(answer))

    return run, asked


def test_interrupted_table_is_continued_and_rows_that_failed_are_repeated(tmp_path, monkeypatch, caplog):
    config = config_of(tmp_path, "models=[retinanet_resnet10fpn_tiny]", "losses=[l2,pkd,cwd]")
    broken = LSHFMError("benchmark: measuring pkd failed: RuntimeError: out of memory")
    run, asked = in_this_process({"pkd": broken, "cwd": KeyboardInterrupt()})
    monkeypatch.setattr(methods, "in_own_process", run)
    with pytest.raises(KeyboardInterrupt):
        measure_methods(config)
    assert [row["loss"] for row in json.loads((tmp_path / "t.json").read_text())["rows"]] == ["l2", "pkd"]
    run, asked = in_this_process({"cwd": broken})
    monkeypatch.setattr(methods, "in_own_process", run)
    with caplog.at_level(logging.INFO, "lshfm_pl"), pytest.raises(LSHFMError, match="1 of 3 rows .*: cwd of"):
        measure_methods(config)
    assert asked == ["pkd", "cwd"]
    assert "3 rows, 1 of them measured before" in caplog.text
    page = (tmp_path / "t.md").read_text()
    assert "- cwd: not measured: measuring pkd failed: RuntimeError: out of memory" in page
    assert "| pkd | 2.00 | 1.00 | 0.10 | 3.10 | 1.60 | 1.04 | 1.03 to 1.08 | – | – |" not in page
    assert "| pkd | 2.00 | 1.00 | 0.10 | 3.10 | 1.60 | 1.04 | 1.03 to 1.08 | 1.10 | 1.05 |" in page


def test_rows_with_other_settings_are_measured_anew(tmp_path, monkeypatch):
    for overrides, expected in (([], ["l2"]), ([], []), (["height=96"], ["l2"])):
        run, asked = in_this_process({})
        monkeypatch.setattr(methods, "in_own_process", run)
        measure_methods(config_of(tmp_path, "models=[retinanet_resnet10fpn_tiny]", "losses=[l2]", *overrides))
        assert asked == expected


def test_page_says_the_machine_and_how_often_was_measured(tmp_path):
    config = as_dict(config_of(tmp_path, "repeats=3", "precision=bf16-mixed"))
    facts = {
        "device": "CPU", "CPU": "Any <9>", "CPU instructions": "AVX2", "CPU cores": 2, "system": "Linux",
        "threads": 1, "torch": "2.14", "torchvision": "0.29", "lshfm_pl": "1", "code": "abc",
    }  # fmt: skip
    row = {"student": "s", "teacher": "t", "loss": "l2", **FIGURES}
    page = table_text({"machine": facts, "rows": [row]}, config)
    for part in ("CPU (AVX2), 2 cores", "threads: 1", "torch 2.14", "1 × 96×64 pixels", "bf16-mixed"):
        assert part in page
    assert "medians of 3 rounds after 0 untimed, of processor time" in page
    assert "ran 50% to 50% of the elapsed time" in page
    on_gpu = table_text(
        {"machine": {**facts, "device": "Some GPU", "memory": "80 GiB"}, "rows": [row]}, config
    )
    assert "Machine: Some GPU, 80 GiB; Any" in on_gpu
    assert "of GPU time" in on_gpu


def test_file_of_weights_is_refused(tmp_path):
    with pytest.raises(LSHFMError, match=r"expected names in conf/model, found the file a\.ckpt"):
        rows_of(config_of(tmp_path, "models=[a.ckpt]"))
