"""An interrupted run ends like an uninterrupted one, or says why it cannot continue."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from interruptions import Killed, LastStep
from omegaconf import OmegaConf, open_dict
from torture_bench import rows, same, scalars

from lshfm_pl.cli import CONFIG_DIR, error_message
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs import resumable, resume
from lshfm_pl.runs.data_of_run import RunData
from lshfm_pl.runs.result_files import LAST, PREVIOUS
from lshfm_pl.runs.resumable import read_resumable
from lshfm_pl.runs.resume import resolve_resume
from lshfm_pl.signals import Interrupted
from lshfm_pl.training.build import make_schedule
from lshfm_pl.training.run import train

TINY = [
    "data=shapes", "data.num_train=10", "data.num_val=3", "data.num_test=2", "data.batch_size=2",
    "data.eval_batch_size=2", "data.num_workers=0", "schedule=quickstart", "schedule.epochs=2",
    "model.min_size=[48,64]", "trainer.accelerator=cpu", "trainer.deterministic=true",
    "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "resume=auto",
]  # fmt: skip
STEPS_PER_EPOCH = 5


def config_of(run, data_root, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train", overrides=[*TINY, f"data.root={data_root}", f"output_dir={run}", *overrides])


def run_to_end(run, data_root, *overrides, **stop):
    config = config_of(run, data_root, *overrides)
    if stop:
        with open_dict(config):
            config.callbacks.stop = {"_target_": "interruptions.StopAt", **stop}
    try:
        return train(config)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def teachers(data_root, tmp_path_factory):
    """The checkpoint of a teacher of an architecture, created on demand."""
    folder, made = tmp_path_factory.mktemp("teachers"), {}

    def teacher(architecture):
        if architecture not in made:
            run = folder / architecture
            run_to_end(
                run, data_root, f"model={architecture}_resnet18fpn_small", "schedule.epochs=1",
                "trainer.limit_train_batches=1",
            )  # fmt: skip
            made[architecture] = run / "checkpoints" / LAST
        return made[architecture]

    return teacher


@pytest.fixture(scope="module")
def settings(teachers):
    def of(architecture, loss):
        chosen = [f"model={architecture}_resnet10fpn_tiny", f"distill={loss}"]
        if loss != "none":
            chosen.append(f"teacher.checkpoint={teachers(architecture)}")
        return [*chosen, *(["distill.num_hashes=64"] if loss.startswith("lsh") else [])]

    return of


@pytest.fixture(scope="module")
def uninterrupted(data_root, settings, tmp_path_factory):
    """The folder of a finished run with these settings, created on demand."""
    folder, made = tmp_path_factory.mktemp("uninterrupted"), {}

    def run(architecture, loss, *further):
        key = (architecture, loss, *further)
        if key not in made:
            made[key] = folder / str(len(made))
            run_to_end(made[key], data_root, *settings(architecture, loss), *further)
        return made[key]

    return run


def resolved(config):
    """The checkpoint of a run that may choose its folder."""
    resume.choose_folder(config, RunData(config))
    return resolve_resume(config)


def read_last(run, name=LAST):
    return torch.load(run / "checkpoints" / name, weights_only=True)


def assert_same_end(run, reference):
    a, b = read_last(run), read_last(reference)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(a[key], b[key]), key
    assert a["loops"]["fit_loop"] == b["loops"]["fit_loop"]
    assert rows(run) == rows(reference)
    assert scalars(run) == scalars(reference)
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, reference)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["teacher"] == results[1]["teacher"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["none", "l2", "lsh", "lshl2"])
@pytest.mark.parametrize("architecture", ["fasterrcnn", "retinanet"])
def test_killed_in_the_middle_of_an_epoch(architecture, loss, uninterrupted, settings, data_root, tmp_path):
    reference = uninterrupted(architecture, loss)
    every_two = "callbacks.last.every_n_steps=2"
    chosen = settings(architecture, loss)
    for batch in (3, 6):
        with pytest.raises(Killed):
            run_to_end(tmp_path, data_root, *chosen, every_two, batch=batch)
    assert read_last(tmp_path)["global_step"] == 5
    run_to_end(tmp_path, data_root, *chosen, every_two, "data.num_workers=1")
    assert_same_end(tmp_path, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("further", "stop", "step"),
    [
        ((), {"validation": 0}, 5),
        ((), {"validation": 1}, 10),
        ((), {"batch": 4}, None),
        (("callbacks.images.every_n_epochs=1",), {"batch": 5}, 5),
        (("trainer.check_val_every_n_epoch=2",), {"batch": 5}, 5),
        (("trainer.val_check_interval=2", "callbacks.last.every_n_steps=1"), {"batch": 3}, 3),
        (("trainer.val_check_interval=2", "callbacks.last.every_n_steps=1"), {"batch": 2}, 2),
        (("trainer.accumulate_grad_batches=2", "callbacks.last.every_n_steps=1"), {"batch": 3}, 1),
        (("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"), {"validation": 0}, None),
        (("trainer.max_steps=7", "callbacks.last.every_n_steps=2"), {"batch": 5}, 5),
    ],
)
def test_killed_at_other_places(further, stop, step, uninterrupted, settings, data_root, tmp_path):
    reference = uninterrupted("fasterrcnn", "none", *further)
    chosen = [*settings("fasterrcnn", "none"), *further]
    with pytest.raises(Killed):
        run_to_end(tmp_path, data_root, *chosen, **stop)
    if step is None:
        assert not (tmp_path / "checkpoints" / LAST).exists()
    else:
        assert read_last(tmp_path)["global_step"] == step
    run_to_end(tmp_path, data_root, *chosen)
    assert_same_end(tmp_path, reference)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [{"batch": 2}, {"batch": 4}, {"batch": 7}, {"validation": 0}])
def test_a_signal_saves_and_ends_with_its_status(stop, uninterrupted, settings, data_root, tmp_path):
    chosen = settings("fasterrcnn", "none")
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        before = signal.getsignal(signum)
        with pytest.raises(Interrupted) as caught:
            run_to_end(tmp_path / signum.name, data_root, *chosen, signum=int(signum), **stop)
        assert caught.value.code == 128 + signum
        assert signal.getsignal(signum) == before
        done = stop.get("batch", 4) + 1
        assert read_last(tmp_path / signum.name)["global_step"] == done
    run_to_end(tmp_path / "SIGTERM", data_root, *chosen)
    assert_same_end(tmp_path / "SIGTERM", uninterrupted("fasterrcnn", "none"))


VALIDATE_OFTEN = ("trainer.val_check_interval=2",)
NO_VALIDATION = ("trainer.limit_val_batches=0",)
BY_TWO = ("trainer.accumulate_grad_batches=2",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("further", "batch", "what"),
    [
        ((), 2, "log"),
        ((), 6, "curves"),
        ((), 4, "curves"),
        ((), 1, "end"),
        ((), 4, "end"),
        ((), 3, "start"),
        (NO_VALIDATION, 4, "end"),
        (NO_VALIDATION, 4, "log"),
        (VALIDATE_OFTEN, 1, "log"),
        (VALIDATE_OFTEN, 2, "end"),
        (BY_TWO, 3, "log"),
        (BY_TWO, 4, "end"),
        ((), 1, "train"),
        ((), 2, "val"),
        (("data.num_workers=2",), 1, "."),
    ],
)
def test_failure_outside_of_a_step_loses_none(
    further, batch, what, uninterrupted, settings, data_root, tmp_path
):
    chosen = [*settings("fasterrcnn", "none"), *further]
    reference = uninterrupted("fasterrcnn", "none", *[one for one in further if "workers" not in one])
    run, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(data_root, root)
    gone = vanishing(root, what)
    config = config_of(run, root, *chosen)
    with open_dict(config):
        config.callbacks.steps = {"_target_": "interruptions.LastStep"}
        config.callbacks.fail = {
            "_target_": "interruptions.FailAt",
            "batch": batch,
            "what": str(gone or what),
        }
    with pytest.raises((OSError, LSHFMError)) as caught:
        train(config)
    line, *further_advice = error_message(caught.value).splitlines()
    assert len(further_advice) <= 1
    saved = f"the run is saved up to step {LastStep.steps}"
    assert line.endswith(f"{saved}: resume it with the same command and resume=auto")
    assert read_last(run)["global_step"] == LastStep.steps > 0
    if gone is not None:
        Path(f"{gone}.gone").rename(gone)
    run_to_end(run, root, *chosen)
    assert_same_end(run, reference)


def vanishing(root, what):
    """The part of the data that is removed: an image of a set, or all images."""
    images = next(root.rglob("JPEGImages"))
    if what in ("train", "val"):
        (ids,) = root.rglob(f"{what}.txt")
        return next(images.glob(f"{ids.read_text().split()[0 if what == 'val' else -1]}.*"))
    return images if what == "." else None


@pytest.fixture
def finished(uninterrupted):
    return uninterrupted("fasterrcnn", "none")


def test_finished_run_is_not_made_again(finished, settings, data_root, caplog):
    caplog.set_level("INFO")
    before = (finished / "checkpoints" / LAST).stat().st_mtime_ns
    results = run_to_end(finished, data_root, *settings("fasterrcnn", "none"))
    assert results == json.loads((finished / "results.json").read_text())
    assert "continuing from" not in caplog.text
    assert "is finished; give another hydra.run.dir for a new run" in caplog.text
    assert (finished / "checkpoints" / LAST).stat().st_mtime_ns == before


def test_finished_run_that_is_continued_is_not_finished_until_its_new_end(
    finished, settings, data_root, tmp_path
):
    run = shutil.copytree(finished, tmp_path / "run")
    reached = (run / "results.json").read_text()
    longer = (*settings("fasterrcnn", "none"), "schedule.epochs=3", "resume_allow_changes=true")
    with pytest.raises(Killed):
        run_to_end(run, data_root, *longer, batch=12)
    assert not (run / "results.json").exists()
    assert (run / "results-previous.json").read_text() == reached
    run_to_end(run, data_root, *longer)
    assert read_last(run)["global_step"] == 15
    assert (run / "results.json").is_file()


def test_other_settings_are_refused_by_name_and_those_without_effect_are_not(
    finished, settings, data_root, tmp_path
):
    chosen = settings("fasterrcnn", "none")
    path = finished / "checkpoints" / LAST
    config = config_of(tmp_path, data_root, *chosen, f"resume={path}", "schedule.lr=0.5", "data.batch_size=1")
    with pytest.raises(
        LSHFMError, match=r"data.batch_size: 2 → 1, schedule.lr: 0.001 → 0.5\. .*allow_changes"
    ):
        read_resumable(path, config)
    config.resume_allow_changes = True
    assert read_resumable(path, config)["global_step"] == 10
    harmless = ("data.num_workers=1", "trainer.enable_progress_bar=true", "callbacks.timer=null")
    config = config_of(tmp_path, data_root, *chosen, f"resume={path}", *harmless)
    assert read_resumable(path, config)["global_step"] == 10


def test_changed_schedule_takes_effect_on_resume(finished, settings, data_root, tmp_path):
    path = finished / "checkpoints" / LAST
    changes = ("schedule.epochs=3", "schedule.lr=0.0002", "schedule.optimizer.weight_decay=0.1")
    allowed = (f"resume={path}", "resume_allow_changes=true")
    run_to_end(tmp_path, data_root, *settings("fasterrcnn", "none"), *changes, *allowed)
    schedule = make_schedule(config_of(tmp_path, data_root, *changes))
    (group,) = read_last(tmp_path)["optimizer_states"][0]["param_groups"]
    assert group["weight_decay"] == 0.1
    assert group["initial_lr"] == schedule.scaled_lr(2) == 0.0002 * 2 / 8
    (name,) = {key for row in rows(tmp_path) for key in row if key.startswith("lr-")}
    rates = [float(row[name]) for row in rows(tmp_path) if row.get(name)]
    assert rates == pytest.approx(
        [schedule.scaled_lr(2) * schedule.factor(step, STEPS_PER_EPOCH) for step in range(10, 15)]
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("schedule.optimizer={name:sgd}", "name adamw, which an optimizer with name sgd cannot use"),
        ("+schedule.optimizer.amsgrad=true", "amsgrad None, which an optimizer with amsgrad True cannot use"),
    ],
)
def test_state_of_another_optimizer_is_refused(other, message, finished, settings, data_root, tmp_path):
    chosen = (*settings("fasterrcnn", "none"), "resume_allow_changes=true", other)
    config = config_of(tmp_path, data_root, *chosen)
    with pytest.raises(LSHFMError, match=message):
        read_resumable(finished / "checkpoints" / LAST, config)


def test_checkpoint_without_its_config_is_resumed_from_with_a_warning(
    finished, settings, data_root, tmp_path, caplog
):
    checkpoint = read_last(finished)
    del checkpoint["config"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    config = config_of(tmp_path, data_root, *settings("fasterrcnn", "none"), "schedule.lr=0.5")
    assert read_resumable(tmp_path / "old.ckpt", config)["global_step"] == 10
    assert "does not store its config" in caplog.text


@pytest.mark.parametrize("how", ["", "null", "[" * 50_000, "a: [", "- 1", "&a [*a]"])
def test_finished_run_whose_config_is_damaged_is_reported_in_one_line(
    how, finished, settings, data_root, tmp_path
):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(how)
    config = config_of(tmp_path, data_root, *settings("fasterrcnn", "none"))
    with pytest.raises(LSHFMError, match=r"config\.yaml") as told:
        resolve_resume(config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", ["", "[" * 50_000, "[]", "3"])
def test_finished_run_whose_results_are_damaged_is_reported_in_one_line(
    content, finished, settings, data_root, tmp_path
):
    shutil.copy(finished / "config.yaml", tmp_path)
    (tmp_path / "results.json").write_text(content)
    config = config_of(tmp_path, data_root, *settings("fasterrcnn", "none"))
    with pytest.raises(LSHFMError, match=r"results\.json") as told:
        resume.finished_results(config, RunData(config))
    assert "\n" not in str(told.value)


def moved(data_root, folder, *, other_boxes=False):
    """The shapes of `data_root` as a folder in VOC layout elsewhere, perhaps with other boxes in one image."""
    (source,) = data_root.glob("shapes_*")
    target = shutil.copytree(source, folder)
    if other_boxes:
        path = min((target / "Annotations").glob("train_*.xml"))
        path.write_text(re.sub(r"<xmax>(\d+)", lambda found: f"<xmax>{int(found[1]) - 1}", path.read_text()))
    return target


def on_folder(root):
    loading = ("batch_size=2", "num_workers=0", "eval_batch_size=2", "test_split=test")
    return ["data=voc_folder", f"data.root={root}", *(f"data.{item}" for item in loading)]


def test_other_data_are_refused_and_moved_ones_are_not(settings, data_root, finished, tmp_path, caplog):
    own, chosen = moved(data_root, tmp_path / "own"), settings("fasterrcnn", "none")

    def config_on(root, run, *further):
        kept = [item for item in TINY if not item.startswith("data")]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            overrides = [*kept, *chosen, *on_folder(root), f"output_dir={run}", *further]
            return compose("train", overrides=overrides)

    try:
        run = tmp_path / "run"
        train(config_on(own, run, "schedule.epochs=1", "trainer.limit_train_batches=1"))
        fixed = ("schedule.epochs=1", "trainer.limit_train_batches=1")
        # Moved data are equal, so the run is reported as finished.
        elsewhere = moved(data_root, tmp_path / "elsewhere")
        (elsewhere / "ImageSets/Main/train.txt").write_bytes(
            (elsewhere / "ImageSets/Main/train.txt").read_bytes().replace(b"\n", b"\r\n")
        )
        config = config_on(elsewhere, run, *fixed)
        assert resume.finished_results(config, RunData(config))["status"] == "done"
        path = run / "checkpoints" / LAST
        assert read_resumable(path, config, RunData(config))["global_step"] == 1
        # Other data are refused in both ways, and the run is not changed.
        other = moved(data_root, tmp_path / "other", other_boxes=True)
        before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
        for resumed in (f"resume={path}", "resume=auto"):
            config = config_on(other, run, *fixed, resumed)
            with pytest.raises(
                LSHFMError, match=r"other data .*train the same \d+ images have other annota"
            ) as told:
                train(config)
            assert str(own) in str(told.value)
            assert str(other) in str(told.value)
            assert "\n" not in str(told.value)
        assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
        config = config_on(other, run, *fixed, "resume_allow_changes=true")
        read_resumable(path, config, RunData(config))
        assert "the run continues with the new data" in caplog.text
        # A checkpoint without fingerprint: as much as possible is compared, and a line says so.
        old = read_last(run)
        del old["data_fingerprint"]
        torch.save(old, tmp_path / "old.ckpt")
        caplog.clear()
        config = config_on(other, run, *fixed)
        read_resumable(tmp_path / "old.ckpt", config, RunData(config))
        (line,) = [record.getMessage() for record in caplog.records if record.name == resumable.__name__]
        assert "only these were compared: class names" in line
        old["detector"]["class_names"] = ["a", "b", "c"]
        torch.save(old, tmp_path / "old.ckpt")
        with pytest.raises(LSHFMError, match=r"classes a, b, c \(3\) → "):
            read_resumable(tmp_path / "old.ckpt", config, RunData(config))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def broken_copy(finished, tmp_path):
    """A run folder with whole checkpoints, and what to do to one of its files."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in (LAST, PREVIOUS):
        (folder / name).write_bytes((finished / "checkpoints" / name).read_bytes())

    def spoil(name, how):
        content = bytearray((folder / name).read_bytes())
        if how == "cut off":
            content = content[: len(content) // 2]
        elif how == "altered":
            content[len(content) // 2] ^= 1
        else:
            content = bytearray()
        (folder / name).write_bytes(content)

    return folder.parent, spoil


@pytest.mark.parametrize("how", ["cut off", "altered", "empty"])
@pytest.mark.parametrize("by_path", [False, True])
def test_damaged_checkpoint_is_replaced_by_the_previous_one(
    how, by_path, broken_copy, settings, data_root, caplog
):
    run, spoil = broken_copy
    spoil(LAST, how)
    chosen = settings("fasterrcnn", "none")
    given = [f"resume={run}/checkpoints/{LAST}"] if by_path else []
    config = config_of(run, data_root, *chosen, *given)
    assert resolve_resume(config) == run / "checkpoints" / PREVIOUS
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "last.ckpt is damaged; continuing from the previous checkpoint, last-previous.ckpt" in warning
    assert "\n" not in warning
    spoil(PREVIOUS, how)
    with pytest.raises(LSHFMError, match="no intact last-previous.ckpt beside it"):
        resolve_resume(config)


@pytest.fixture
def runs_beside(finished, tmp_path, monkeypatch):
    """Makes runs (name, rate, results or None for an unfinished one), newest first, beside a default folder."""
    monkeypatch.setenv(resume.FOUND_RUN, "")
    monkeypatch.setattr(resume, "_is_folder_chosen", lambda: False)

    def make(*runs):
        for age, (name, lr, results) in enumerate(runs):
            (tmp_path / name / "checkpoints").mkdir(parents=True)
            checkpoint = tmp_path / name / "checkpoints" / LAST
            checkpoint.write_bytes((finished / "checkpoints" / LAST).read_bytes())
            text = (finished / "config.yaml").read_text()
            (tmp_path / name / "config.yaml").write_text(text.replace("lr: 0.001\n", f"lr: {lr}\n"))
            written = [checkpoint]
            if results is not None:
                written.append(tmp_path / name / "results.json")
                written[-1].write_text(json.dumps(results))
            for path in written:
                os.utime(path, (1e9 - age, 1e9 - age))
        return tmp_path

    return make


def test_auto_without_a_folder_continues_with_the_newest_run_of_the_same_settings(
    runs_beside, settings, data_root, monkeypatch
):
    chosen = settings("fasterrcnn", "none")
    folder = runs_beside(("unlike", 0.002, None), ("like", 0.001, None), ("done", 0.001, {"figures": 1}))
    config = config_of(folder / "new", data_root, *chosen)
    with monkeypatch.context() as patch:
        patch.setattr(resume, "_is_folder_chosen", lambda: True)
        assert resolved(config) is None
    assert resolved(config) == folder / "like" / "checkpoints" / LAST
    assert resume.finished_results(config, RunData(config)) is None
    assert Path(config.output_dir) == folder / "like"
    assert config.callbacks.last.dirpath == f"{folder}/like/checkpoints"
    # A process that Lightning starts beside has a folder on its command line, and is told by the first.
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(resume, "_is_folder_chosen", lambda: True)
    config = config_of(folder / "new", data_root, *chosen)
    assert resolved(config) == folder / "like" / "checkpoints" / LAST


@pytest.mark.parametrize("keeps_checkpoints", [True, False])
def test_auto_without_a_folder_does_nothing_if_the_newest_run_of_the_same_settings_is_finished(
    keeps_checkpoints, runs_beside, settings, data_root, caplog
):
    caplog.set_level("INFO")
    folder = runs_beside(
        ("unlike", 0.002, {"figures": 2}), ("done", 0.001, {"figures": 1}), ("like", 0.001, None)
    )
    if not keeps_checkpoints:
        (folder / "done" / "checkpoints" / LAST).unlink()
    config = config_of(folder / "new", data_root, *settings("fasterrcnn", "none"))
    assert train(config) == {"figures": 1}
    (line,) = [record.getMessage() for record in caplog.records if record.name == resume.__name__]
    assert f"{folder}/done is finished; give " in line
    assert "give hydra.run.dir=… or resume=null for a new run" in line
    assert not (folder / "new").exists()


def test_auto_without_a_folder_does_not_take_a_run_on_other_data_for_this_one(
    runs_beside, settings, monkeypatch
):
    own = (*settings("fasterrcnn", "none"), "data=voc_folder", "data.batch_size=2")

    def config_on(root, run):
        kept = [item for item in TINY if not item.startswith("data")]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose("train", overrides=[*kept, *own, f"data.root={root}", f"output_dir={run}"])

    folder = runs_beside(("cells", 0.001, None))
    OmegaConf.save(config_on("/data/cells", folder / "cells"), folder / "cells/config.yaml", resolve=True)
    assert resolved(config_on("/data/birds", folder / "new")) is None
    monkeypatch.chdir("/")
    assert resolved(config_on("data/cells", folder / "new")) == folder / "cells" / "checkpoints" / LAST


def test_folder_of_another_run_is_not_continued(finished, settings, data_root, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "metrics.csv").read_bytes()
    longer = (*settings("fasterrcnn", "none"), "schedule.epochs=3", "resume_allow_changes=true")
    with pytest.raises(LSHFMError, match="run holds a run already"):
        run_to_end(run, data_root, *longer, f"resume={finished}/checkpoints/{LAST}")
    assert (run / "metrics.csv").read_bytes() == before


def test_auto_without_a_folder_is_a_new_run_beside_those_of_other_settings(
    runs_beside, settings, data_root, caplog
):
    caplog.set_level("INFO")
    folder = runs_beside(("unlike", 0.002, {"figures": 2}), ("unlike_too", 0.003, None))
    config = config_of(folder / "new", data_root, *settings("fasterrcnn", "none"))
    assert resolved(config) is None
    assert resume.finished_results(config, RunData(config)) is None
    assert Path(config.output_dir) == folder / "new"
    assert "a new run" in caplog.text


def test_auto_without_a_checkpoint_is_a_new_run(settings, data_root, tmp_path, caplog):
    caplog.set_level("INFO")
    assert resolve_resume(config_of(tmp_path / "new", data_root, *settings("fasterrcnn", "none"))) is None
    assert "a new run" in caplog.text
