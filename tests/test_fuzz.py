"""Damaged files of every kind end in one or two lines, or are read: never in a traceback, a hang or all memory."""

import copy
import json
import logging
import random
import shutil

import pytest
import torch
from data_faults import write_sound_coco, write_sound_voc
from fuzzing import XML_PIECES, damage_file, mutated_bytes, mutated_json, mutated_value, outcomes, seeds
from hydra import compose, initialize_config_dir
from run_files import write_run
from test_check_data import make

from lshfm_pl.check_data import find_faults
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.errors import LSHFMError
from lshfm_pl.evaluate import load_checkpoint, load_data
from lshfm_pl.import_checkpoint import import_checkpoint
from lshfm_pl.replay import replay
from lshfm_pl.report import report
from lshfm_pl.reporting.runs import find_runs
from lshfm_pl.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.filterwarnings("ignore"),
]

SMALL = ["model.width=0.1", "model.fpn_channels=8", "model.box_head_width=8", "model.min_size=[64]"]


def check(trial, numbers):
    logging.disable(logging.WARNING)
    try:
        wrong = outcomes(trial, numbers)
    finally:
        logging.disable(logging.NOTSET)
    assert not wrong, f"{len(wrong)} of {len(numbers)} inputs:\n" + "\n".join(wrong[:5])


def composed(command, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(command, overrides=list(overrides))


# check_data


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_sound_voc(folder / "voc")
    write_sound_coco(folder / "coco")
    return folder


def try_data(sound, tmp_path, kind, names, mutate):
    """A trial: files of a sound set damaged, checked, and read as in training."""

    def trial(seed):
        dice = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(sound / kind, folder)
        try:
            damage_file(folder / dice.choice(names), dice, mutate)
            settings = dice.choice(({}, {"class_names": None})) if kind == "voc" else {}
            find_faults(make(folder, **settings))
            datamodule = make(folder, on_bad_sample=dice.choice(("error", "skip")), **settings)
            datamodule.setup("fit")
            for dataset in (datamodule.train_set, datamodule.val_set):
                for index in range(len(dataset)):
                    dataset[index]
        finally:
            shutil.rmtree(folder)

    return trial


def test_annotations_in_xml(sound, tmp_path):
    names = [f"Annotations/{name}.xml" for name in "abcd"]

    def mutate(data, dice):
        return mutated_bytes(data, dice, XML_PIECES)

    check(try_data(sound, tmp_path, "voc", names, mutate), seeds(1500))


def test_splits(sound, tmp_path):
    names = [f"ImageSets/Main/{split}.txt" for split in ("train", "val")]
    check(try_data(sound, tmp_path, "voc", names, mutated_bytes), seeds(500))


def test_images(sound, tmp_path):
    names = [f"JPEGImages/{name}.jpg" for name in "abcd"]
    check(try_data(sound, tmp_path, "voc", names, mutated_bytes), seeds(600))


def test_annotations_in_json(sound, tmp_path):
    names = [f"annotations/instances_{split}.json" for split in ("train", "val")]
    check(try_data(sound, tmp_path, "coco", names, mutated_json), seeds(2000))


# report


def test_run_folders(tmp_path):
    sound_run = write_run(tmp_path / "sound" / "run")
    files = sorted(path.relative_to(sound_run) for path in sound_run.rglob("*") if path.is_file())

    def trial(seed):
        """Some damaged runs beside a sound one, which is in the report whatever they are."""
        dice = random.Random(seed)
        top = tmp_path / str(seed)
        try:
            for number in range(10):
                folder = top / f"run{number}"
                shutil.copytree(sound_run, folder)
                name = dice.choice(files)
                mutate = mutated_json if name.suffix == ".json" else mutated_bytes
                damage_file(folder / name, dice, mutate)
            shutil.copytree(sound_run, top / "sound")
            assert any(run.folder.name == "sound" for run in find_runs([top]).runs)
            page = report(top, tmp_path / "report", picture_images=0, resamples=10)
            assert "sound" in (page.parent / "results.csv").read_text(encoding="utf-8", errors="replace")
        finally:
            shutil.rmtree(top)

    check(trial, seeds(8))


# Checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one epoch of a very small detector, with all that it leaves."""
    folder = tmp_path_factory.mktemp("run")
    config = composed("train", *overrides_of(folder))
    config.output_dir = str(folder / "run")
    (folder / "run").mkdir()
    train(config)
    return folder


def overrides_of(folder):
    return [
        "model=fasterrcnn_resnet10fpn_tiny", *SMALL, "schedule=quickstart", "schedule.epochs=1", "data=shapes",
        f"data.root={folder}/data", "data.num_train=2", "data.num_val=1", "data.num_test=1", "data.image_size=64",
        "data.num_workers=0", "data.batch_size=1", "trainer.accelerator=cpu", "trainer.devices=1",
        "trainer.enable_progress_bar=false", "output_dir=x",
    ]  # fmt: skip


def test_bytes_of_checkpoints(run, tmp_path):
    small = {"state_dict": {"a": torch.ones(9)}, "config": {"x": [1, 2.5, "a", None]}, "epoch": 3}
    torch.save(small, tmp_path / "zip.ckpt")
    torch.save(small, tmp_path / "older.ckpt", _use_new_zipfile_serialization=False)
    files = [(tmp_path / name).read_bytes() for name in ("zip.ckpt", "older.ckpt")]
    files += [(run / "run/checkpoints/best.ckpt").read_bytes()]

    def trial(seed):
        dice = random.Random(seed)
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(mutated_bytes(dice.choice(files[: 2 + (seed % 5 == 0)]), dice))
        read_torch_file(path)

    check(trial, seeds(2000))


def test_values_of_checkpoints_in_evaluate_and_import(run, tmp_path):
    content = torch.load(run / "run/checkpoints/last.ckpt", weights_only=True)
    kept = {key: content[key] for key in ("state_dict", "detector", "data", "config")}

    def trial(seed):
        dice = random.Random(seed)
        path, target = tmp_path / "damaged.ckpt", tmp_path / "new.ckpt"
        changed = dict(kept)
        for key in dice.sample(sorted(kept), k=dice.choice((1, 1, 2))):
            changed[key] = mutated_value(kept[key], dice)
        torch.save(changed, path)
        config = composed_once("evaluate")
        config.checkpoint, config.output_dir = str(path), str(tmp_path / "out")
        try:
            datamodule, _ = load_data(config)
            datamodule.test_set[0]
        except LSHFMError:
            pass
        load_checkpoint(config, ())
        target.unlink(missing_ok=True)
        settings = composed_once("import_checkpoint")
        settings.src, settings.dst = str(path), str(target)
        import_checkpoint(settings)

    check(trial, seeds(120))


COMPOSED = {}


def composed_once(command, *overrides):
    if command not in COMPOSED:
        COMPOSED[command] = composed(command, *overrides)
    return copy.deepcopy(COMPOSED[command])


def test_run_folders_that_go_on(run, tmp_path):
    content = torch.load(run / "run/checkpoints/last.ckpt", weights_only=True)
    last = (run / "run/checkpoints/last.ckpt").read_bytes()
    results = (run / "run/results.json").read_bytes()
    config_text = (run / "run/config.yaml").read_bytes()
    event_files = sorted((run / "run/tensorboard").iterdir())
    config = composed("train", *overrides_of(run), "resume=auto")

    def trial(seed):
        dice = random.Random(seed)
        folder = tmp_path / str(seed)
        (folder / "checkpoints").mkdir(parents=True)
        path = folder / "checkpoints" / "last.ckpt"
        try:
            path.write_bytes(last)
            (folder / "config.yaml").write_bytes(config_text)
            if dice.random() < 0.3:
                (folder / "results.json").write_bytes(results)
            for name in ("metrics.csv", *(f"tensorboard/{events.name}" for events in event_files)):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes((run / "run" / name).read_bytes())
            match dice.randrange(6):
                case 0:
                    damage_file(path, dice, mutated_bytes)
                case 1:
                    damage_file(folder / "config.yaml", dice, mutated_bytes)
                case 4:
                    damage_file(folder / "metrics.csv", dice, mutated_bytes)
                case 5:
                    damage_file(folder / "tensorboard" / event_files[0].name, dice, mutated_bytes)
                case 2 if (folder / "results.json").exists():
                    damage_file(folder / "results.json", dice, mutated_json)
                case _:
                    others = {key: value for key, value in content.items() if key != "state_dict"}
                    changed = mutated_value(others, dice)
                    torch.save({**content, **changed} if isinstance(changed, dict) else changed, path)
            own = copy.deepcopy(config)
            own.output_dir = str(folder)
            if dice.random() < 0.5:
                own.resume = str(path)
            train(own)
        finally:
            shutil.rmtree(folder)

    check(trial, seeds(40))


def test_skipped_steps(run, tmp_path):
    last = torch.load(run / "run/checkpoints/last.ckpt", weights_only=True)
    weights = {"state_dict": last["state_dict"], "config": last["config"]}
    place = {"step": 0, "epoch": 0, "batch_idx": 0, "rank": 0}
    batch = {"place": place, "images": [{"index": 0, "id": "x"}], "losses": {"loss_classifier": "nan"}}
    step = {"weights": "step.ckpt", "world_size": 1, "gradient_norm": "inf", "batches": [batch]}
    config = composed("replay", f"file={tmp_path}/step.json")

    def trial(seed):
        dice = random.Random(seed)
        in_step = dice.random() < 0.5
        content = mutated_value(step, dice) if in_step else step
        (tmp_path / "step.json").write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
        torch.save(weights if in_step else mutated_value(weights, dice), tmp_path / "step.ckpt")
        replay(config)

    check(trial, seeds(40))
