"""Messages for paths, lists and flags that are given instead of something else."""

import pytest
from distilled_students import CHOICES

from lshfm_pl.cli import Command
from lshfm_pl.cli.grammar import quote_texts
from lshfm_pl.cli.spelling import translate_arguments
from lshfm_pl.cli.values import refuse_unfit_command_line, refuse_wrong_values


def printed(monkeypatch, capsys, tmp_path, command, *arguments):
    """Status and stderr of a command that is expected to stop before it does anything."""

    def not_reached(config):
        pytest.fail("has begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [command, *arguments])
    with pytest.raises(SystemExit) as end:
        Command(not_reached, command)()
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1, text
    assert list(tmp_path.iterdir()) == []
    return end.value.code, text.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("train", ["data=/some/folder"], "did you mean data=voc_folder data.root=/some/folder?"),
        ("train", ["data=/my set"], "did you mean data=voc_folder 'data.root=/my set'?"),
        ("check_data", ["data=~/cells"], "did you mean data=voc_folder 'data.root=~/cells'?"),
        ("evaluate", ["model=a/best.ckpt"], "did you mean checkpoint=a/best.ckpt?"),
        ("train", ["model=a/b.ckpt"], "did you mean model.weights=a/b.ckpt or model.backbone_weights=a/b.ckpt?"),
        ("predict", ["holiday/"], "did you mean images=holiday/?"),
        ("report", ["outputs/mine"], "did you mean runs=outputs/mine?"),
        ("predict", ["score=0.3"], "score: no such key or group; did you mean score_thresh or score_threshold?"),
        ("train", ["--epochs", "3"], "--epochs: no such flag; arguments are written key=value: did you mean sch"),
        ("train", ["--lr=3"], "did you mean schedule.lr=…"),
        (
            "train",
            ["data.root=x,y"],
            "several values need --multirun; a text with a comma is written 'data.root=\"x,y\"'",
        ),
        (
            "report",
            ["runs=a,b"],
            "several values need --multirun; a list is written 'runs=[a,b]'",
        ),
    ],
)  # fmt: skip
def test_path_list_or_flag_in_the_wrong_place_is_answered_with_the_right_one(
    monkeypatch, capsys, tmp_path, command, arguments, told
):
    status, text = printed(monkeypatch, capsys, tmp_path, command, *arguments)
    assert status == 1
    assert told in text


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("train", ["seed=abc"], "seed: expected a whole number, found the text abc; give seed=<a whole number>"),
        ("train", ["seed=null"], "seed: expected a whole number, found null; "),
        ("train", ["schedule.epochs=1.5"], "schedule.epochs: expected a whole number, found the number 1.5; "),
        ("train", ["schedule.lr=high"], "schedule.lr: expected a number, found the text high; "),
        ("train", ["trainer.max_steps=[1]"], "trainer.max_steps: expected a whole number, found the list [1]; "),
        ("train", ["data.class_names=cat"], "a list is written 'data.class_names=[cat]'"),
        ("train", ["model.min_size=128"], "a list is written 'model.min_size=[128]'"),
        ("train", ["=3"], "=3: expected key=value, found no key"),
        ("train", ["seed="], "seed: expected a whole number, found nothing; "),
        ("train", ["+seed=3"], "+seed=3: this key exists already; omit the +: seed=3"),
        ("train", ["model.min_size=[a]"], "expected a list such as [1,2], found the list [a]; give model.min_size"),
        ("train", ["compile=maybe"], "compile: expected true or false, found the text maybe; "),
        ("train", ["teacher=a/b.ckpt"], "found the text a/b.ckpt; did you mean teacher.checkpoint=a/b.ckpt?"),
        ("train", ["data.root=[a]"], "to use these characters literally write 'data.root=\"[a]\"'"),
        ("train", ["data.on_bad_sample=skp"], "data.on_bad_sample: expected one of error, skip, found skp"),
        ("train", ["--multirun", "seed=0,x"], "seed: expected a whole number, found the text x; "),
        ("evaluate", ["which=techer"], "which: expected one of student, teacher, raw, ema, found techer"),
        ("evaluate", ["checkpoint={a: b}"], "checkpoint: expected a path or null, found the settings "),
        ("predict", ["score_threshold=0,3"], "several values need --multirun"),
        ("report", ["resamples=many"], "resamples: expected a whole number, found the text many; "),
        ("train", ["seed=${x}"], r"seed: Interpolation key 'x' not found; ${name} stands for the value of another"),
        ("predict", ["checkpoint=${a}/b", "images=c"], r"checkpoint: Interpolation key 'a' not found; ${name}"),
        ("train", ["data.root=${oc.env:NO_SUCH_VARIABLE}"], "data.root: KeyError raised while resolving"),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused_before_anything_is_written(
    monkeypatch, capsys, tmp_path, command, arguments, told
):
    status, text = printed(monkeypatch, capsys, tmp_path, command, *arguments)
    assert status == 1
    assert told in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--multirun", "distill=none,lshl2", "seed=0,1", "schedule.lr=0.1,1"],
        ["--multirun", "seed=range(0,3)", "schedule.lr=choice(0.1,0.2)"],
        ["schedule.epochs=3", "+trainer.inference_mode=false", "callbacks.images=null", "~logger.csv"],
        ["trainer.devices=[0,1]", "trainer.max_steps=-1", "trainer.limit_val_batches=0.5", "seed=4294967295"],
        ["trainer.strategy=fsdp", "teacher.which=model_ema", "+schedule.optimizer.nesterov=true", "~debug"],
        ["teacher.detector=null", "trainer.fast_dev_run=true", "trainer.limit_train_batches=2", "resume=auto"],
        ["data=voc_folder", "data.train_split=[a,b]", "data.class_names=null", "data.root=${oc.env:HOME}"],
        ["+model@teacher.detector=retinanet_vgg16fpn", "distill=lsh", "distill.bias=median", "distill.std=8"],
    ],
)  # fmt: skip
def test_values_of_the_right_kind_pass(arguments):
    refuse_wrong_values("train", arguments)


def test_values_of_a_comparison_pass():
    for arguments in (
        ["seeds=[0,1]", "losses=[none,lsh]", "epochs=3", "teacher.epochs=4", "image_size=256"],
        [
            "seeds=3",
            "losses={median:{loss:lsh,bias:median}}",
            "losses=[none,{lsh:{num_hashes:8}}]",
            "jobs=null",
        ],
    ):
        refuse_wrong_values("compare", arguments)


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        (
            "train",
            ["schedule.epochs=0"],
            "expected a number of at least 1, found 0; the default in conf is sch",
        ),
        ("train", ["schedule.lr=-1"], "schedule.lr: expected a number above 0, found -1; "),
        ("train", ["schedule.lr=nan"], "schedule.lr: expected a finite number, found nan; "),
        ("train", ["schedule.lr=inf"], "schedule.lr: expected a finite number, found inf; "),
        ("train", ["data.batch_size=-2"], "data.batch_size: expected a number of at least 1, found -2; "),
        ("train", ["data.num_workers=-1"], "data.num_workers: expected a number of at least 0, found -1; "),
        ("train", ["seed=-1"], "seed: expected a number of at least 0 and at most 4294967295, found -1; "),
        ("train", ["model.min_size=[128,0]"], "model.min_size: expected a number of at least 1, found 0; "),
        (
            "train",
            ["-m", "data.batch_size=2,0"],
            "data.batch_size: expected a number of at least 1, found 0; ",
        ),
        ("train", ["trainer.devices=0"], "expected a number of at least 1, or -1 for all, found 0; "),
        ("train", ["trainer.devices=abc"], "at least 1, or -1 for all, or auto, found abc; "),
        ("train", ["trainer.accelerator=gpuu"], "found gpuu; did you mean trainer.accelerator=gpu?"),
        (
            "train",
            ["trainer.precision=bf17"],
            "expected one of 32-true, bf16-mixed, 16-mixed, 32, bf16, 16, found",
        ),
        ("train", ["trainer.strategy=dpp"], "did you mean trainer.strategy=ddp?"),
        ("train", ["trainer.limit_val_batches=1.5"], "a whole number, or a share from 0.0 to 1.0, found 1.5"),
        ("train", ["model.backbone=resnet51"], "did you mean model.backbone=resnet50"),
        ("predict", ["score_threshold=30"], "expected a number of at least 0 and at most 1, found 30; "),
        (
            "predict",
            ["device=gpu"],
            "expected one of cpu, cuda, cuda:1, found gpu; did you mean device=cuda?",
        ),
        (
            "visualize",
            ["split=valid"],
            "split: expected one of train, val, test, found valid; did you mean split=val?",
        ),
        (
            "compare",
            ["seeds=0"],
            "seeds: expected a number of at least 1, found 0; the default in conf is seeds=2",
        ),
        (
            "compare",
            ["distill=[none,lshl3]"],
            f"distill: expected one of {', '.join(CHOICES)}, found lshl3; did",
        ),
        ("compare", ["distill=none,lshl2"], "distill=none,lshl2: several values need --multirun; a list is"),
    ],
)
def test_numbers_and_names_out_of_range_are_refused_before_anything_is_written(
    monkeypatch, capsys, tmp_path, command, arguments, told
):
    assert told in printed(monkeypatch, capsys, tmp_path, command, *arguments)[1]


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("visualize", ["images=20"], "images: no such key or group; did you mean random?"),
        ("visualize", ["data=voc07", "n=20"], "did you mean random?"),
        ("visualize", [], "visualize: nothing to draw: give data=…"),
        ("evaluate", [], "evaluate: give checkpoint=<file>, or weights=COCO_V1"),
        ("train", ["epoch=4"], "did you mean schedule.epochs?"),
        ("train", ["bs=4"], "did you mean data.batch_size?"),
        ("train", ["data", "=", "voc07"], "expected key=value without spaces around the =; write data=voc07"),
        ("train", ["data=", "voc07"], "without spaces around the =; write data=voc07"),
        ("train", ["data", "=voc07"], "without spaces around the =; write data=voc07"),
        ("train", ["data:voc_folder"], "did you mean data=voc_folder?"),
        ("train", ["--hlep"], "--hlep: no such flag; did you mean --help?"),
        ("train", ["--multirun", "seed=0,1", "--cfg", "job"], "--cfg: shows the config of one job"),
        ("train", ["-multirun", "seed=0,1"], "did you mean --multirun?"),
        ("train", ["-m", "seed=0,,1"], "several values are written seed=1,2, without spaces or empty ones"),
        ("train", ["model=null"], "model=null: expected the name of a file in conf/model, found null; "),
        ("train", ["data="], "data=: expected the name of a file in conf/data, found nothing; "),
        (
            "train",
            ["logger=false"],
            "logger=false: expected the name of a file in conf/logger, found false; ",
        ),
        ("train", ["debug=true"], "debug=true: expected the name of a file in conf/debug, found true; "),
        ("train", ["distill=LSHL2"], "did you mean lshl2?"),
        ("train", ["teacher=retinanet_vgg16fpn"], "did you mean model@teacher.detector=retinanet_vgg16fpn?"),
        (
            "train",
            ["data=coco128.yaml"],
            "did you mean data=coco_json data.train_annotations=… or data=voc_folder",
        ),
        ("check_data", ["/usr/bin"], "did you mean data=voc_folder data.root=/usr/bin?"),
        (
            "benchmark",
            ["stp"],
            "or one of step, data, eval, inference, methods, compiled; did you mean step?",
        ),
        ("train", ["hydra.run.dri=x"], "did you mean hydra.run.dir?"),
        ("train", ["hydra.run.dir=null"], "hydra.run.dir: expected a path, found null; "),
        ("train", ["data.root="], "data.root: expected a path or null, found nothing; "),
        (
            "predict",
            ["images=[]", "checkpoint=a"],
            "images: expected a path or a list of them, found the list []; ",
        ),
        ("predict", ["checkpoint=null", "images=a"], "checkpoint: expected a path, found null; "),
        ("train", ["+sed=3"], "+sed=3: nothing in train reads this key; did you mean seed=3?"),
        ("train", ["+data.roott=/x"], "did you mean data.root=/x?"),
        (
            "train",
            ["++trainer.max_epocs=3"],
            "Trainer has no such argument; did you mean trainer.max_epochs=3",
        ),
        (
            "train",
            ["trainer.gradient_clip_algorithm=norm"],
            "need a +: +trainer.gradient_clip_algorithm=norm",
        ),
        ("train", ["~sed"], "~sed: removes a key, but there is no key of this name; did you mean ~seed?"),
        ("train", ["~data.root"], "removes a key that train needs; give data.root=<another value>"),
        ("train", ["seed=${data.batch_size"], "a reference to another key is written ${key}"),
    ],
)
def test_further_slips_of_newcomers_are_answered_with_what_is_right(
    monkeypatch, capsys, tmp_path, command, arguments, told
):
    assert told in printed(monkeypatch, capsys, tmp_path, command, *arguments)[1]


@pytest.fixture
def outputs(tmp_path_factory):
    """A folder that contains the folder of a run and a folder of data."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "last.ckpt").touch()
    (folder / "cells").mkdir()
    return folder


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        (
            "evaluate",
            ["checkpoint={}/run"],
            "expected a file, found a folder at {}/run; did you mean checkpoint={}/run/ch",
        ),
        (
            "evaluate",
            ["checkpoint={}/run/checkpoints/lats.ckpt"],
            "did you mean checkpoint={}/run/checkpoints/last.ckpt?",
        ),
        (
            "evaluate",
            ["checkpoint={}/rnu/checkpoints/last.ckpt"],
            "did you mean checkpoint={}/run/checkpoints/last.ckpt?",
        ),
        (
            "visualize",
            ["checkpoints={{teacher: {}/no.pth}}"],
            "checkpoints: expected a file, found nothing at {}/no.pth; ",
        ),
        ("replay", ["file={}"], "file: expected a file, found a folder at {}; give file=<file>"),
        (
            "report",
            ["runs={}/rum"],
            "expected a file, a folder or a pattern of some, found nothing at {}/rum; did you mean",
        ),
        (
            "predict",
            ["images={}/x*.png", "checkpoint={}/run/checkpoints/last.ckpt"],
            "found nothing at {}/x*.png; ",
        ),
        (
            "train",
            ["data=voc_folder", "data.root={}/cell"],
            "found nothing at {}/cell; did you mean data.root={}/cells?",
        ),
        (
            "compare",
            ["data=voc_folder", "data.root={}/run/checkpoints/last.ckpt"],
            "expected a folder, found a file at",
        ),
        (
            "train",
            ["data.root={}/no"],
            "there is no no in {}: check the path; data.download=true downloads VOC to it",
        ),
        ("train", ["data=voc_folder", "data.root=C:\\\\cells"], "separated by / here, not by a backslash"),
        ("train", ["data.root={}", "resume={}/run"], "did you mean resume={}/run/checkpoints/last.ckpt?"),
        (
            "train",
            ["data.root={}", "resume=yes"],
            "resume: expected a file, found nothing at yes; there is no yes in . (relative to",
        ),
        (
            "train",
            ["data.root={}", "distill=l2", "teacher.checkpoint=no.ckpt"],
            "expected a file of weights, found nothing",
        ),
        (
            "import_checkpoint",
            ["src={}/no.pth", "dst={}/a.ckpt"],
            "src: expected a file, found nothing at {}/no.pth; ",
        ),
    ],
)
def test_files_that_are_not_there_are_answered_with_the_nearest_that_is(
    monkeypatch, capsys, tmp_path, outputs, command, arguments, told
):
    typed = [argument.format(outputs, outputs) for argument in arguments]
    assert told.format(outputs, outputs) in printed(monkeypatch, capsys, tmp_path, command, *typed)[1]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("evaluate", ["checkpoint={}/run/checkpoints/last.ckpt", "data.root={}/cells"]),
        ("visualize", ["checkpoint={}/run/checkpoints/last.ckpt", "data.root={}/cells", "which=model_ema"]),
        ("report", ["runs={}/r*"]),
        ("train", ["data.root={}/cells", "experiment=null", "resume=auto"]),
        ("train", ["data=shapes", "data.root={}/drawn", "distill=none", "teacher.checkpoint=no.ckpt"]),
        ("train", ["data.root={}/fetched", "data.download=true"]),
        ("compare", ["fit=null"]),
    ],
)
def test_what_is_right_passes(monkeypatch, tmp_path, outputs, command, arguments):
    monkeypatch.chdir(tmp_path)
    typed = quote_texts(translate_arguments(command, [argument.format(outputs) for argument in arguments]))
    refuse_wrong_values(command, typed)
    refuse_unfit_command_line(command, typed)
