"""What is printed of paths, lists and flags in the place of something else."""

import pytest

from lshfm_pl.cli import Command
from lshfm_pl.cli.values import refuse_wrong_values


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
        ("train", ["model=a/best.ckpt"], "did you mean model.backbone_weights=a/best.ckpt?"),
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
        ("train", ["+seed=3"], "+seed=3: there is such a key already; leave the + out: seed=3"),
        ("train", ["model.min_size=[a]"], "expected a list such as [1,2], found the list [a]; give model.min_size"),
        ("train", ["compile=maybe"], "compile: expected true or false, found the text maybe; "),
        ("train", ["teacher=a/b.ckpt"], "found the text a/b.ckpt; did you mean teacher.checkpoint=a/b.ckpt?"),
        ("train", ["data.root=[a]"], "to mean these characters themselves write 'data.root=\"[a]\"'"),
        ("train", ["data.on_bad_sample=skp"], "data.on_bad_sample: expected one of error, skip, found skp"),
        ("train", ["--multirun", "seed=0,x"], "seed: expected a whole number, found the text x; "),
        ("evaluate", ["which=techer"], "which: expected one of student, teacher, found techer"),
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
        ["schedule.epochs=3", "+trainer.foo=x", "callbacks.images=null", "~logger.csv", "trainer.devices=[0,1]"],
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
