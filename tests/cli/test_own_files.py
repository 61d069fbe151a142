"""Config files of one's own that are given by their path."""

import pytest
from omegaconf import OmegaConf

from lshfm_pl.cli import Command
from lshfm_pl.cli.inputs import refuse_missing_inputs
from lshfm_pl.errors import LSHFMError

FILES = {
    "night.yaml": "transforms: [{_target_: a.Night}]\nsmallest_side: 3\n",
    "below/list.yaml": "- {_target_: a.Night, p: 0.5}\n- {_target_: a.Fog}\n",
    "other.yml": "transforms: []\n",
    "with space.yaml": "transforms: []\n",
    "broken.yaml": "transforms: [\n",
    "empty.yaml": "",
    "number.yaml": "3",
}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """The node `augment` with which a command begins, or what it prints on stderr."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    def of(*arguments, command="train"):
        found = []
        monkeypatch.setattr("sys.argv", [command, "hydra.run.dir=run", "hydra.sweep.dir=sweep", *arguments])
        try:
            Command(lambda config: found.append(config.augment), command)()
        except SystemExit:
            (line,) = capsys.readouterr().err.splitlines()
            return line
        return found

    return of


@pytest.mark.parametrize("start", ["", "./", "{tmp_path}/", "../{name}/"])
def test_file_is_used_by_its_path(run, start, tmp_path):
    start = start.format(tmp_path=tmp_path, name=tmp_path.name)
    (augment,) = run("data=shapes", f"augment={start}night.yaml")
    assert augment == {"transforms": [{"_target_": "a.Night"}], "smallest_side": 3}
    (augment,) = run("data=shapes", f"augment={start}below/list.yaml", "augment.transforms.0.p=0.2")
    assert augment == {"transforms": [{"_target_": "a.Night", "p": 0.2}, {"_target_": "a.Fog"}]}


def test_a_sweep_takes_several_files_and_names(run):
    found = run("data=shapes", "augment=night.yaml,none,below/list.yaml", "--multirun")
    assert [len(augment.transforms) for augment in found] == [1, 0, 2]


@pytest.mark.parametrize("name", ["other.yml", "with space.yaml"])
def test_file_of_an_unusual_name_is_used(run, name):
    assert run("data=shapes", f"augment={name}") == [{"transforms": []}]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nihgt.yaml", "error: augment=nihgt.yaml: found no such file; expected a YAML file of your own"),
        ("strogn", "error: augment=strogn: no such file in conf/augment; expected one of none, published, strong"),
        ("broken.yaml", "error: augment=broken.yaml, line 2: "),
        ("empty.yaml", "error: augment=empty.yaml: expected transforms: [...], found no settings"),
        ("number.yaml", "error: augment=number.yaml: "),
    ],
)  # fmt: skip
def test_an_unfit_file_is_told_in_one_line(run, name, told):
    assert run("data=shapes", f"augment={name}").startswith(told)


def test_a_command_without_training_says_which_have_the_group(run):
    line = run("checkpoint=x", "augment=strong", command="evaluate")
    assert line.endswith("it is a group of compare, train or visualize, and evaluate has no use for it")


@pytest.mark.parametrize(
    ("target", "is_refused"),
    [
        ("boxes_csv.BoxesCSVDataModule", False),
        ("lshfm_pl.data.pictures.datamodule.PicturesDataModule", False),
        ("lshfm_pl.data.yolo.datamodule.YOLODataModule", True),
    ],
)
def test_data_of_a_format_of_ones_own_may_be_a_file(tmp_path, target, is_refused):
    (tmp_path / "boxes.csv").write_text("")
    data = {"root": str(tmp_path / "boxes.csv"), "_target_": target}
    config = OmegaConf.create({"data": data, "checkpoint": None, "weights": "COCO_V1"})
    if is_refused:
        with pytest.raises(LSHFMError, match="data.root: expected a folder, found a file"):
            refuse_missing_inputs("evaluate", config)
    else:
        refuse_missing_inputs("evaluate", config)
