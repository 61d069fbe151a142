"""Damaged files are read or refused in one or two lines, without a traceback, a hang or excessive memory."""

import contextlib
import copy
import importlib
import io
import json
import logging
import random
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from data_faults import write_sound_coco, write_sound_voc, write_sound_yolo
from data_modules import make
from fuzzing import (
    XML_PIECES,
    damage_file,
    is_readable,
    mutated_bytes,
    mutated_coco,
    mutated_json,
    mutated_value,
    mutated_yolo,
    outcomes,
    seeds,
)
from hydra import compose, initialize_config_dir
from PIL import ExifTags, Image
from run_files import write_run
from safetensors.torch import save_file

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.check import find_faults
from lshfm_pl.data.images import decode_image, has_end_mark, image_size, inspect_image
from lshfm_pl.detectors import build_detector, load_detector
from lshfm_pl.detectors.checkpoint import load_start
from lshfm_pl.detectors.start import Start
from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.errors import LSHFMError
from lshfm_pl.import_checkpoint import import_checkpoint
from lshfm_pl.inference.loading import load_checkpoint, load_data
from lshfm_pl.replay import replay
from lshfm_pl.reporting.finding import find_runs
from lshfm_pl.reporting.report import report
from lshfm_pl.runs.logs import log_position, rewind_logs
from lshfm_pl.runs.resumable import read_resumable
from lshfm_pl.training.build import refuse_other_tensors
from lshfm_pl.training.callbacks.restoration import Restoration, refuse_damaged_state
from lshfm_pl.training.run import train

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
    write_sound_yolo(folder / "yolo")
    return folder


def try_data(sound, tmp_path, kind, names, mutate):
    """A trial: damages files of a sound data set, checks it, and reads it as in training."""

    def trial(seed):
        dice = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(sound / kind, folder)
        try:
            damage_file(folder / dice.choice(names), dice, mutate)
            settings = dice.choice(({}, {"class_names": None})) if kind == "voc" else {}
            for _, fault in find_faults(make(folder, **settings)).faults:
                assert is_readable(str(fault)), fault
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
    check(try_data(sound, tmp_path, "voc", names, mutated_bytes), seeds(1500))


def pictures():
    """Bytes of small pictures of every format that is read, and of some kinds that cameras and programs write."""
    pixels = np.random.RandomState(0).randint(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    kinds = (
        ("JPEG", "RGB", {"exif": exif}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "CMYK", {}),
        ("JPEG", "L", {}), ("PNG", "RGB", {"exif": exif}), ("PNG", "P", {"transparency": 0}), ("PNG", "RGBA", {}),
        ("PNG", "1", {}), ("PNG", "I;16", {}), ("BMP", "RGB", {}), ("BMP", "P", {}), ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {}), ("TIFF", "RGB", {}), ("PPM", "RGB", {}),
    )  # fmt: skip
    for image_format, mode, options in kinds:
        stream = io.BytesIO()
        image.convert("L" if mode == "I;16" else mode).convert(mode).save(stream, image_format, **options)
        yield stream.getvalue()


def test_pictures_of_every_format(tmp_path):
    files = list(pictures())
    path = tmp_path / "x.png"

    def trial(seed):
        dice = random.Random(seed)
        path.unlink(missing_ok=True)
        path.write_bytes(dice.choice(files))
        damage_file(path, dice, mutated_picture)
        try:
            has_end_mark(path)
            image_size(path)
            assert all(is_readable(str(fault)) for fault in inspect_image(path))
            decode_image(path, upright=True)
        finally:
            if path.is_dir():
                path.rmdir()

    check(trial, seeds(3000))


def mutated_picture(data, dice):
    """Bytes, or two or four of the first ones, where sizes stand, as large as they can be."""
    if dice.random() < 0.7:
        return mutated_bytes(data, dice)
    place, size = dice.randrange(min(len(data), 200)), dice.choice((2, 4))
    return data[:place] + dice.choice((b"\xff", b"\x7f", b"\x00")) * size + data[place + size :]


def test_images(sound, tmp_path):
    names = [f"JPEGImages/{name}.jpg" for name in "abcd"]
    check(try_data(sound, tmp_path, "voc", names, mutated_bytes), seeds(1500))


def test_annotations_in_json(sound, tmp_path):
    names = [f"annotations/instances_{split}.json" for split in ("train", "val")]
    check(try_data(sound, tmp_path, "coco", names, mutated_coco), seeds(2000))


def test_descriptions_and_labels_of_yolo(sound, tmp_path):
    names = ["data.yaml", *(f"labels/{name}.txt" for name in ("train/a", "train/b", "train/c", "val/d"))]
    check(try_data(sound, tmp_path, "yolo", names, mutated_yolo), seeds(1500))


# report


def test_run_folders(tmp_path, monkeypatch):
    sound_run = write_run(tmp_path / "sound" / "run")
    events = sound_run / "tensorboard" / "events.out.tfevents.1"
    events.parent.mkdir()
    events.write_bytes(bytes(range(200)))
    files = sorted(path.relative_to(sound_run) for path in sound_run.rglob("*") if path.is_file())
    # Drawing takes most of the time, so only some of the damaged runs are drawn.
    draw = importlib.import_module("lshfm_pl.reporting.report")._pictures
    monkeypatch.setattr(
        "lshfm_pl.reporting.report._pictures", lambda *args, **kwargs: draw(*args, **kwargs) if drawn else []
    )
    drawn = False

    def trial(seed):
        """Some damaged runs beside a sound one, which is in the report whatever they are."""
        nonlocal drawn
        dice = random.Random(seed)
        drawn = seed % 20 == 0
        top = tmp_path / str(seed)
        try:
            for number in range(50):
                folder = top / f"run{number}"
                shutil.copytree(sound_run, folder)
                name = dice.choice(files)
                mutate = mutated_json if name.suffix == ".json" else mutated_bytes
                damage_file(folder / name, dice, mutate)
            shutil.copytree(sound_run, top / "sound")
            found = find_runs([top])
            assert any(run.folder.name == "sound" for run in found.runs)
            assert all(is_readable(item.reason) for item in found.aside), found.aside
            page = report(top, tmp_path / "report", picture_images=0, resamples=10)
            assert "sound" in (page.parent / "results.csv").read_text(encoding="utf-8", errors="replace")
        finally:
            shutil.rmtree(top)

    check(trial, seeds(50))


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


def test_safetensors(tmp_path):
    names = {
        "backbone.body.conv1.weight": torch.ones(2, 3),
        "a": torch.ones(4, dtype=torch.int64),
        "b": torch.ones(()),
    }
    save_file(names, tmp_path / "sound.safetensors", metadata={"format": "pt"})
    sound = (tmp_path / "sound.safetensors").read_bytes()
    length = int.from_bytes(sound[:8], "little")
    header, data = json.loads(sound[8 : 8 + length]), sound[8 + length :]
    path = tmp_path / "damaged.safetensors"

    def trial(seed):
        """The bytes of a file, or the values of its header with their right length, or with a wrong one."""
        dice = random.Random(seed)
        if dice.random() < 0.3:
            path.write_bytes(mutated_bytes(sound, dice))
        else:
            text = json.dumps(mutated_value(header, dice)).encode("utf-8", "surrogatepass")
            size = (
                len(text)
                if dice.random() < 0.8
                else dice.choice((0, 1, length, 2**31, 2**40, 2**63, 2**64 - 1))
            )
            path.write_bytes(size.to_bytes(8, "little") + text + data)
        read_torch_file(path)

    check(trial, seeds(1500))


def test_files_that_training_starts_from(run, tmp_path):
    """Of one's own, and what other tools wrote: prefixes, entries, a model with its average."""
    own = torch.load(run / "run/checkpoints/best.ckpt", weights_only=True)
    weights = {key.removeprefix("detector."): value for key, value in own["state_dict"].items()}
    averaged = {key: value * 0.5 for key, value in weights.items()}
    contents = [
        {key: own[key] for key in ("state_dict", "detector")},
        {"model": weights, "model_ema": averaged, "epoch": 3},
        {f"module.{key}": value for key, value in weights.items()},
    ]
    config, path = load_detector(run / "run/checkpoints/best.ckpt").config, tmp_path / "damaged.ckpt"
    passed = 0

    def trial(seed):
        nonlocal passed
        dice = random.Random(seed)
        torch.save(mutated_value(dice.choice(contents), dice), path)
        detector = build_detector(config, num_classes=3, class_names=("circle", "gnat"))
        load_start(detector, Start(weights=str(path), match_classes=dice.choice(("by_name", "none"))))
        assert all(value.isfinite().all() for value in detector.state_dict().values())
        passed += 1

    check(trial, seeds(150))
    assert passed > 0 or len(seeds(150)) < 100


def test_values_of_checkpoints_in_evaluate_and_import(run, tmp_path):
    """Each through the file, as the commands read it."""
    content = torch.load(run / "run/checkpoints/last.ckpt", weights_only=True)

    def trial(seed):
        dice = random.Random(seed)
        path, target = tmp_path / "damaged.ckpt", tmp_path / "new.ckpt"
        torch.save(mutated_checkpoint(content, dice), path)
        evaluated(path, tmp_path)
        target.unlink(missing_ok=True)
        settings = composed_once("import_checkpoint")
        settings.src, settings.dst = str(path), str(target)
        import_checkpoint(settings)

    check(trial, seeds(60))


def test_contents_of_checkpoints_in_evaluate(run, tmp_path, monkeypatch):
    """Many, handed over in memory: of the reading of files there are tests above."""
    content = torch.load(run / "run/checkpoints/last.ckpt", weights_only=True)
    damaged = content
    monkeypatch.setattr("lshfm_pl.detectors.contents.read_torch_file", lambda path, **_: damaged)

    def trial(seed):
        nonlocal damaged
        damaged = mutated_checkpoint(content, random.Random(seed))
        evaluated("damaged.ckpt", tmp_path)

    check(trial, seeds(2000))


def mutated_checkpoint(content, dice):
    kept = {key: content[key] for key in ("state_dict", "detector", "data", "config")}
    changed = dict(kept)
    for key in dice.sample(sorted(kept), k=dice.choice((1, 1, 2))):
        changed[key] = mutated_value(kept[key], dice)
    return changed


def evaluated(path, tmp_path):
    """What `evaluate` reads of a checkpoint: its data, its detector."""
    config = composed_once("evaluate")
    config.checkpoint, config.output_dir = str(path), str(tmp_path / "out")
    with contextlib.suppress(LSHFMError):
        datamodule, _ = load_data(config)
        datamodule.test_set[0]
    load_checkpoint(config, ())


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

    check(trial, seeds(100))


def test_states_that_training_goes_on_from(run, tmp_path, monkeypatch):
    """Every checkpoint that passes the check can be loaded by a trainer; one trainer for all."""
    content = torch.load(run / "run/checkpoints/last.ckpt", weights_only=True)
    config = composed("train", *overrides_of(run), "resume=auto", "resume_allow_changes=true")
    trainers = []
    fit = pl.Trainer.fit

    def noted(trainer, module, **settings):
        trainers.append((trainer, module))
        fit(trainer, module, **settings)

    monkeypatch.setattr(pl.Trainer, "fit", noted)
    first = copy.deepcopy(config)
    first.output_dir, first.resume = str(tmp_path / "run"), None
    (tmp_path / "run").mkdir()
    train(first)
    ((trainer, module),) = trainers
    saved = content
    monkeypatch.setattr("lshfm_pl.runs.resumable.read_torch_file", lambda path: saved)
    others = {key: value for key, value in content.items() if key != "state_dict"}
    passed = 0

    def trial(seed):
        nonlocal saved, passed
        dice = random.Random(seed)
        if dice.random() < 0.9:
            changed = mutated_value(others, dice)
            saved = {**content, **changed} if isinstance(changed, dict) else changed
        else:
            saved = {**content, "state_dict": mutated_value(content["state_dict"], dice)}
        path = tmp_path / "last.ckpt"
        checkpoint = read_resumable(path, config)
        refuse_damaged_state(path, checkpoint)
        restoration = Restoration(path, checkpoint)
        refuse_other_tensors(module, checkpoint, path)
        rewind_logs(tmp_path / "run", checkpoint.get("logs"))
        with restoration.watching():
            restoration.setup(trainer, module, "fit")
            restoration.on_fit_start(trainer, module)
            take_over(trainer, module, copy.deepcopy(checkpoint))
        passed += 1

    check(trial, seeds(2000))
    # Otherwise the tests above would prove nothing.
    assert passed > 0.02 * len(seeds(2000)) or len(seeds(2000)) < 100


def take_over(trainer, module, checkpoint):
    """As Lightning does, and then a step of each."""
    module.load_state_dict(checkpoint["state_dict"])
    trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])
    for callback in trainer.callbacks:
        if (state := checkpoint["callbacks"].get(callback.state_key)) is not None:
            callback.load_state_dict(state)
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        optimizer.load_state_dict(state)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    for config, state in zip(trainer.lr_scheduler_configs, checkpoint["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(state)
        config.scheduler.step()


def test_logs_of_a_run_that_goes_on(run, tmp_path):
    folder = tmp_path / "run"
    names = ["metrics.csv", *(f"tensorboard/{path.name}" for path in (run / "run/tensorboard").iterdir())]
    position = {**log_position(run / "run"), "steps": 1}

    def trial(seed):
        dice = random.Random(seed)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tensorboard").mkdir(parents=True)
        for name in names:
            shutil.copy(run / "run" / name, folder / name)
        damage_file(folder / dice.choice(names), dice, mutated_bytes)
        rewind_logs(folder, position)
        log_position(folder)

    check(trial, seeds(2000))


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
