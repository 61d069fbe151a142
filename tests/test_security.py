"""Untrusted files: every command that loads one refuses code in it, and no file is read in another way."""

import ast
import functools
import importlib
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from small_detectors import small_detector

import lshfm_pl
from lshfm_pl import yaml_files
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.detectors import build_detector, detector_checkpoint
from lshfm_pl.detectors.torch_files import UnsafeFileError
from lshfm_pl.errors import LSHFMError

MODEL = "fasterrcnn_resnet10fpn_tiny"
DATA = ["data=shapes", "data.root={root}/data", "data.num_train=2", "data.num_val=1", "data.num_test=1"]
RUN = [*DATA, f"model={MODEL}", "trainer.accelerator=cpu", "output_dir={root}/run"]
EVALUATE = [*DATA, "trainer.accelerator=cpu", "output_dir={root}/out"]
TEACHER = ["distill=lsh", "teacher.checkpoint={root}/sound.ckpt"]

LOADING = {
    "train: resume": ("train", [*RUN, "resume={file}"]),
    "train: teacher.checkpoint": ("train", [*RUN, "distill=l2", "teacher.checkpoint={file}"]),
    "train: published teacher": (
        "train",
        [*RUN, "distill=l2", "teacher.checkpoint={file}", "teacher.which=teacher"],
    ),
    "train: distill.hash_weights": ("train", [*RUN, *TEACHER, "distill.hash_weights={file}"]),
    "train: model.backbone_weights": ("train", [*RUN, "model.backbone_weights={file}"]),
    "evaluate: checkpoint": ("evaluate", [*EVALUATE, "checkpoint={file}"]),
    "evaluate: checkpoint of unknown data": ("evaluate", [*EVALUATE[5:], "checkpoint={file}"]),
    "evaluate: teacher.checkpoint": (
        "evaluate",
        [*EVALUATE, "checkpoint={root}/sound.ckpt", "teacher.checkpoint={file}"],
    ),
    "visualize: checkpoint": ("visualize", [*DATA, "checkpoint={file}", "output_dir={root}/out"]),
    "visualize: checkpoints": ("visualize", [*DATA, "checkpoints=[{file}]", "output_dir={root}/out"]),
    "predict: checkpoint": (
        "predict",
        ["checkpoint={file}", "images={root}/picture.png", "output_dir={root}/out"],
    ),
    "export: checkpoint": ("export", ["checkpoint={file}", "output={root}/a.onnx", "output_dir={root}/out"]),
    "benchmark: checkpoint": ("benchmark", ["what=inference", "checkpoint={file}", "output_dir={root}/out"]),
    "benchmark: models": ("benchmark", ["what=inference", "models=[{file}]", "output_dir={root}/out"]),
    "replay: weights": ("replay", ["file={root}/step.json"]),
    "import_checkpoint: src": ("import_checkpoint", ["src={file}", "dst={root}/new.ckpt"]),
}
"""Every key of every command that names a file of tensors: the command, and its overrides."""

LOAD_NO_FILE = {"check_data", "compare", "report", "selfcheck"}
"""Commands whose user names no such file."""


class RunsACommand:
    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("security")
    detector = build_detector(
        small_detector(MODEL).config, num_classes=len(SHAPE_CLASSES) + 1, class_names=SHAPE_CLASSES
    )
    torch.save(detector_checkpoint(detector), root / "sound.ckpt")
    (root / "step.json").write_text('{"weights": "evil.ckpt"}')
    Image.new("RGB", (64, 64)).save(root / "picture.png")
    return root


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "older format"])
@pytest.mark.parametrize("name", LOADING)
def test_a_payload_is_refused_and_not_run(root, tmp_path, name, zip_file):
    command, overrides = LOADING[name]
    witness = tmp_path / "witness"
    content = {"model": RunsACommand(witness), "state_dict": {}, "optimizer": {}, "args": {}, "weight": 0}
    torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=zip_file)
    shutil.copy(tmp_path / "evil.ckpt", root / "evil.ckpt")  # the weights of a skipped step lie beside it
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(command, [text.format(file=tmp_path / "evil.ckpt", root=root) for text in overrides])
    run = getattr(importlib.import_module(f"lshfm_pl.{command}"), command)
    with pytest.raises(UnsafeFileError, match=r"evil\.ckpt: holds \w+\.mkdir, expected tensors"):
        run(config)
    assert not witness.exists()


def test_the_payload_would_run_if_it_were_not_refused(tmp_path):
    torch.save(RunsACommand(tmp_path / "witness"), tmp_path / "evil.ckpt")
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "witness").is_dir()


def test_every_command_is_in_the_table():
    commands = {path.stem for path in CONFIG_DIR.glob("*.yaml")}
    assert {command for command, _ in LOADING.values()} | LOAD_NO_FILE == commands


# The source: one loader, no shell, and no function that executes what it reads.


@functools.cache
def calls():
    """(file and line, name of what is called, its keyword arguments) of the whole package and the scripts."""
    found = []
    package = Path(lshfm_pl.__file__).parent
    for path in [*package.rglob("*.py"), *(package.parent / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                found.append((f"{path.name}:{node.lineno}", ast.unparse(node.func), keywords))
    return found


WRITERS = ("save_checkpoint", "dump_checkpoint")
"""Calls by which Lightning makes a checkpoint: their `weights_only` is about what is written."""


def test_there_is_one_loader_of_tensors_and_it_loads_weights_only():
    found = [(place.split(":")[0], words) for place, name, words in calls() if name == "torch.load"]
    assert [place for place, _ in found] == ["torch_files.py"]
    assert found[0][1]["weights_only"] == "True"
    for place, name, words in calls():
        assert words.get("weights_only", "True") == "True" or name.endswith(WRITERS), place
        assert words.get("allow_pickle", "False") == "False", place


@pytest.mark.parametrize(
    "name",
    [
        "pickle.load", "pickle.loads", "torch.jit.load", "torch.hub.load", "joblib.load", "eval",
        "exec", "torch.hub.load_state_dict_from_url", "load_state_dict_from_url", "shutil.unpack_archive",
    ],
)  # fmt: skip
def test_nothing_that_could_run_a_file_is_called(name):
    found = [place.split(":")[0] for place, called, _ in calls() if called == name]
    # The check of `export` runs the file that this command has just written.
    assert found == (["torchscript.py"] if name == "torch.jit.load" else [])


def test_a_recorded_program_is_run_by_the_command_that_wrote_it_alone(root, tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.rand(1, 2)).save(str(tmp_path / "a.torchscript"))
    for command, more in (
        ("evaluate", EVALUATE),
        ("predict", ["images={root}/picture.png", "output_dir={root}/out"]),
    ):
        given = [f"checkpoint={tmp_path}/a.torchscript", *(text.format(root=root) for text in more)]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = compose(command, given)
        with pytest.raises(LSHFMError, match="TorchScript"):
            getattr(importlib.import_module(f"lshfm_pl.{command}"), command)(config)


def test_yaml_is_read_without_tags():
    loaders = {words.get("Loader") for _, name, words in calls() if name == "yaml.load"}
    assert loaders <= {"yaml.CSafeLoader", "_Loader"}
    assert issubclass(yaml_files._Loader, yaml.CSafeLoader)
    assert set(yaml_files._Loader.yaml_constructors) == set(yaml.CSafeLoader.yaml_constructors)


def test_no_shell_runs():
    for place, name, words in calls():
        assert words.get("shell", "False") == "False", place
        assert name not in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), (
            place
        )


def test_archives_are_unpacked_inside_their_folder():
    found = [(place, words) for place, name, words in calls() if name.split(".")[-1].startswith("extract")]
    assert found
    assert all(words.get("filter") == "'data'" for _, words in found), found
