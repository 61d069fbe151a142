"""Config files of the user's own, `--config-dir`: wrong values and names are told as for those of `conf/`."""

import pytest

from lshfm_pl.cli import Command

FILES = {
    "experiment/night.yaml": "# @package _global_\ndefaults: [override /distill: edges]\n",
    "data/beads.yaml": "_target_: beads.Beads\nroot: ???\nshade: 0.5\nbatch_size: 2\n",
    "distill/edges.yaml": "name: edges\n_target_: edges.Edges\nbeta: 1.0\n",
    "schedule/brief.yaml": "defaults: [quickstart, _self_]\nepochs: 1\n",
    "model/dots.yaml": "name: dots\narchitecture: dots.DOTS\nscore_thresh: 0.1\n",
    "model/_part.yaml": "name: part\n",
    "schedule/broken.yaml": "epochs: 1\n lr: [2\n",
}


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """What a command with these files in its `--config-dir` prints of its arguments; "" where it begins."""
    for name, text in FILES.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    def begin(config):
        raise SystemExit(0)

    def run(command, *arguments, folder="own"):
        monkeypatch.setattr("sys.argv", [command, "--config-dir", folder, "hydra.run.dir=run", *arguments])
        with pytest.raises(SystemExit) as end:
            Command(begin, command)()
        text = capsys.readouterr().err
        assert bool(end.value.code) == bool(text), text
        assert len(text.splitlines()) <= 1, text
        return text

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["data=beads", "data.root=."],
        ["data=beads", "data.root=.", "data.shade=1", "+data.further=3"],
        ["data=beads", "data.root=.", "experiment=night", "+distill.until=3", "teacher.checkpoint=file"],
        ["data=beads", "data.root=.", "distill=edges", "distill.beta=2", "teacher.checkpoint=file"],
        ["data=beads", "data.root=.", "schedule=brief", "schedule.lr=1", "model=dots", "+model.channels=8"],
    ],
)
def test_files_of_ones_own_are_chosen_like_those_of_conf(told, arguments, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert told("train", *arguments) == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data=beads"], "no value for data.root: give data.root=…"),
        (["data=baeds"], "data=baeds: no such file in conf/data and "),
        (["data=baeds"], "did you mean beads?"),
        (["distill=edgse"], "did you mean edges?"),
        (["schedule=breif"], "did you mean brief?"),
        (["model=dost"], "did you mean dots?"),
        (["distill=[edges,kdd]"], "distill=kdd: no such file in conf/distill and "),
        (["beads"], "did you mean data=beads?"),
        (["data=own/data/beads.yaml"], "did you mean data=beads?"),
        (["data=beads", "data.root=.", "data.shaed=1"], "no such key or group; did you mean data.shade?"),
        (["distill=edges", "distill.bta=1"], "did you mean distill.beta?"),
        (["distill=[edges,kd]", "distill.terms.edges.bta=1"], "did you mean distill.terms.edges.beta"),
        (["data=beads", "data.root=.", "data.shade=dark"], "data.shade: expected a number, found the text dark"),
        (["data=beads", "data.root=.", "data.batch_size=0"], "data.batch_size: expected a number of at least 1"),
        (["schedule=brief", "schedule.epochs=-1"], "schedule.epochs: expected a number of at least 1, found -1"),
        (["model=dots", "model.score_thresh=7"], "the default in conf is model.score_thresh=0.1"),
        (["schedule=broken"], "schedule/broken.yaml, line 2: mapping values are not allowed here; expected"),
    ],
)  # fmt: skip
def test_wrong_names_and_values_are_reported_with_the_closest_of_both_folders(told, arguments, expected):
    assert expected in told("train", *arguments)


def test_folder_that_there_is_not_is_named(told, tmp_path):
    expected = f"--config-dir: expected a folder of config files, found none at {tmp_path}/other"
    assert expected in told("train", folder="other")


def test_losses_of_a_comparison_may_be_ones_own(told):
    assert told("compare", "distill=[none,edges]") == ""
    assert "did you mean edges?" in told("compare", "distill=[none,edgse]")


def test_help_lists_files_of_ones_own(monkeypatch, capsys, tmp_path):
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/beads.yaml").write_text(FILES["data/beads.yaml"])
    monkeypatch.setattr("sys.argv", ["train", "--config-dir", str(tmp_path / "own"), "--help"])
    with pytest.raises(SystemExit):
        Command(lambda config: None, "train")()
        raise SystemExit
    assert "beads" in capsys.readouterr().out
