"""Error messages, and the output of `--help`."""

import re
import subprocess
import sys

import pytest
from distilled_students import CHOICES
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import ListConfig, OmegaConf, open_dict

from lshfm_pl.cli import CONFIG_DIR, error_message, refuse_missing_values, refuse_named_teacher
from lshfm_pl.cli.closest import config_error
from lshfm_pl.cli.spelling import translate_arguments
from lshfm_pl.errors import LSHFMError


def failure_of(target, **arguments):
    with pytest.raises(Exception, match="Error in call") as caught:
        instantiate(OmegaConf.create({"part": {"_target_": target, **arguments}}).part)
    return caught.value


def test_own_failures_inside_instantiated_objects_are_reported_as_they_are():
    error = failure_of("lshfm_pl.data.VOCDataModule", root="x", train_split="a", val_split="b", batch_size=0)
    assert error_message(error) == "data.batch_size must be a whole number of at least 1, found 0."
    assert error_message(LSHFMError("so it is")) == "so it is"


def test_other_failures_inside_instantiated_objects_name_key_and_reason():
    assert error_message(failure_of("builtins.len")).startswith("part: TypeError: ")


def test_values_that_must_be_given_are_named():
    refuse_missing_values(OmegaConf.create({"a": 1}))
    with pytest.raises(LSHFMError, match="no value for data.root: give data.root="):
        refuse_missing_values(OmegaConf.create({"data": {"root": "???"}}))


def test_name_of_a_model_as_the_teachers_settings_is_answered_with_how_to_choose_it():
    for fine in (
        {},
        {"teacher": "b"},
        {"teacher": {"detector": None}},
        {"teacher": {"detector": {"name": "x"}}},
    ):
        refuse_named_teacher(OmegaConf.create(fine))
    with pytest.raises(
        LSHFMError, match=r"give model@teacher.detector=\w+vgg16, .* \(with a \+ in front for evaluate"
    ):
        refuse_named_teacher(OmegaConf.create({"teacher": {"detector": "vgg16"}}))
    process = run_command("train", "teacher.detector=retinanet_vgg16fpn", "data.root=/nowhere")
    assert (process.returncode, len(process.stderr.splitlines())) == (1, 1)
    assert "give model@teacher.detector=retinanet_vgg16fpn" in process.stderr


def run_command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"lshfm_pl.{module}", *arguments],
        cwd=CONFIG_DIR.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def error_of(overrides, command="train"):
    """The message for a config that does not compose."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose(command, overrides=overrides)
    return config_error(caught.value, command, overrides)


@pytest.mark.parametrize("command", sorted(path.stem for path in CONFIG_DIR.glob("*.yaml")))
def test_help_of_every_command_tells_its_groups_what_to_change_and_examples(command, capsys):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(command, return_hydra_config=True)
    with open_dict(config):
        config.hydra.job.config_name = command
    text = config.hydra.help.template
    assert text.count(f"python -m lshfm_pl.{command}") >= 2
    assert "What people change:" in text
    assert "$" not in text  # Hydra would treat it as a variable of its template
    groups = [
        line.split(":")[0].strip() for line in text.splitlines() if line.startswith("  ") and ": " in line
    ]
    defaults = OmegaConf.load(CONFIG_DIR / f"{command}.yaml").get("defaults", [])
    names = {str(name) for entry in OmegaConf.to_container(ListConfig(defaults)) if isinstance(entry, dict)
             for name in entry if " " not in name}  # fmt: skip
    assert {name.rpartition("@")[2] for name in names} <= set(groups)
    assert max(len(line) for line in text.splitlines()) <= 116


def test_help_is_printed_with_the_default_marked():
    process = run_command("train", "--help")
    assert process.returncode == 0, process.stderr
    assert "fasterrcnn_resnet50fpn*" in process.stdout
    listed = ", ".join(f"{name}*" if name == "none" else name for name in CHOICES)
    assert f"  distill: {listed}" in process.stdout
    assert "_base" not in process.stdout


@pytest.mark.parametrize(
    ("overrides", "told_text"),
    [
        (
            ["model=retinanet_vg11fpn"],
            "model=retinanet_vg11fpn: no such file .* did you mean retinanet_vgg11fpn",
        ),
        (
            ["distill=l3"],
            "distill=l3: no such file in conf/distill; expected one of .*--help lists them",
        ),
        (["experiment=quickstat"], "did you mean quickstart or quickstart_student"),
        (["distil=l2"], r"distil: no such key or group; did you mean distill\?"),
        (["schedule.epoch=3"], r"schedule.epoch: no such key or group; did you mean schedule.epochs\?"),
        (["distill=lsh", "distill.num_hash=3"], r"did you mean distill.num_hashes\?"),
        (["distill=lshl2", "beta=3"], "did you mean distill.beta"),
        (["model@teacher.detectr=x"], r"did you mean model@teacher.detector\?"),
        (
            ["trainer.precison=3"],
            r"Lightning's Trainer has no such argument; did you mean trainer.precision\?$",
        ),
        (["xyzzy=3"], "xyzzy: no such key or group; --help lists the groups"),
        (["a=[1"], r"a=\[1: cannot be read .* a list is written 'key=\[1,2\]'; .* write 'a=\"\[1\"'$"),
        (
            ["model=resnet50"],
            "did you mean fasterrcnn_resnet50c4, fasterrcnn_resnet50fpn or fasterrcnn_resnet50fpn_v2",
        ),
        (["model=voc07"], r"model=voc07: no such file in conf/model; did you mean data=voc07\?"),
        (["score=0.3"], r"did you mean .*score_thresh"),
        (["xyzzy=lshl2"], r"did you mean distill=lshl2\?"),
        (["threshold=0.3"], r"did you mean callbacks.images.score_threshold\?"),
        (["model.num_classes=3"], "the number of classes follows from the data"),
        (["max_epochs=3"], r"did you mean schedule.epochs\?"),
        (["gpus=3"], r"did you mean trainer.devices\?"),
        (["num_workers=3"], r"did you mean data.num_workers\?"),
        (["lr=3"], r"did you mean schedule.lr\b"),
        (["runs=x"], "it is a key of report"),
        (["lshl2"], r"lshl2: expected key=value; did you mean distill=lshl2\?"),
        (["some/best.ckpt"], r"found a path; did you mean resume=some/best.ckpt\?"),
        (
            ["distill.beta=4"],
            "distill.beta: a key of distill=.*; give for instance distill=pkd distill.beta=4$",
        ),
        (
            ["data=voc07", "data.train_annotations=a.json"],
            ".*data=coco2017 or coco_json, but data=voc07 is chosen; give for instance data=coco_json data.train_",
        ),
        (
            ["model=retinanet_resnet18fpn", "model@teacher.detector=retinanet_resnet34fpn"],
            r"model@teacher.detector=\S+: .* add one with a \+: \+model@teacher.detector=retinanet_resnet34fpn$",
        ),
        (
            ["model=retinanet_vgg11fpn", "+model@teacher.detector=retinanet_resnet34fpn"],
            r"\+model@.*: a file is already chosen .* omit the \+: model@teacher.detector=retinanet_resnet34fpn$",
        ),
    ],
)
def test_wrong_names_are_answered_with_the_closest_valid_ones(overrides, told_text):
    text = error_of(overrides)
    assert re.match(f".*{told_text}", text)
    assert len(text.splitlines()) == 1


def test_teacher_for_evaluation_needs_a_plus():
    text = error_of(["checkpoint=x", "model@teacher.detector=retinanet_vgg16fpn"], "evaluate")
    assert text.endswith("add one with a +: +model@teacher.detector=retinanet_vgg16fpn")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("evaluate", overrides=["+model@teacher.detector=retinanet_vgg16fpn"])
    assert config.teacher.detector.name == "retinanet_vgg16fpn"


@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_folder_of_moved_data_needs_no_choice_of_data(command):
    overrides = translate_arguments(command, ["checkpoint=a.ckpt", "data.root=/moved"])
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        assert compose(command, overrides=overrides).data == {"root": "/moved"}


def test_examples_of_compare_help_compose():
    footer = OmegaConf.load(CONFIG_DIR / "compare.yaml").hydra.help.footer.replace("\\\n", " ")
    examples = [line.split() for line in footer.splitlines() if "lshfm_pl.compare" in line]
    assert len(examples) == 4
    for words in examples:
        overrides = translate_arguments("compare", words[3:])
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            compose("compare", overrides=overrides)


def test_wrong_name_ends_the_command_with_status_1_and_one_line():
    for arguments in (["schedule.epoch=3"], ["--multirun", "distill=none,l3"]):
        process = run_command("train", *arguments)
        assert process.returncode == 1
        assert len(process.stderr.splitlines()) == 1
        assert process.stderr.startswith("error: ")
