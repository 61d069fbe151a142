"""`python -m lshfm_pl.selfcheck`: parts are independent of each other, and whatever happens is written down."""

import json
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir

from lshfm_pl import selfcheck as command
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels import hash_loss
from lshfm_pl.selfchecks.comparisons import check_detectors, check_losses
from lshfm_pl.selfchecks.findings import Line
from lshfm_pl.selfchecks.hash_kernels import check_hash
from lshfm_pl.selfchecks.subjects import draws_of_cpu

CPU = torch.device("cpu")
PAIR = "~pairs", "+pairs={retinanet_resnet10fpn_tiny: retinanet_resnet18fpn_small}"
SMALL = (
    *PAIR, "image_size=64", "precisions.cpu=[32-true]", "hash.cpu.rows=[9,20,64]", "hash.cpu.maps=[1,4,6,7,64]",
    "hash.cpu.repeats=1",
)  # fmt: skip


def config_of(*overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("selfcheck", ["device=cpu", "output_dir=unused", *overrides])


@pytest.fixture
def parts(monkeypatch):
    """Parts that pass, raise, and pass, in place of the real ones."""

    def good(config, device):
        yield Line("one", "passed")
        yield Line("two", "measured")

    def bad(config, device):
        yield Line("one", "passed")
        raise RuntimeError("no kernel image")

    chosen = {"first": good, "second": bad, "third": good}
    monkeypatch.setattr(command, "PARTS", chosen)
    monkeypatch.setattr(command, "machine_facts", lambda device: {"device": "CPU"})
    return chosen


def read(folder):
    content = json.loads((folder / "selfcheck.json").read_text())
    return content, [(line["part"], line["status"]) for line in content["lines"]]


def test_part_that_raises_is_a_failed_line_and_the_next_part_follows(parts, tmp_path, capsys):
    findings = command.selfcheck(config_of("parts=[first,second,third]", f"output={tmp_path}"))
    assert findings.failed == ["second: the whole part"]
    content, lines = read(tmp_path)
    assert content["ended"] == "complete"
    assert lines == [
        ("first", "passed"), ("first", "measured"), ("second", "passed"), ("second", "failed"), ("third", "passed"),
        ("third", "measured"),
    ]  # fmt: skip
    assert "RuntimeError: no kernel image" in capsys.readouterr().out


def test_what_begins_after_the_time_limit_is_not_checked(parts, tmp_path):
    command.selfcheck(config_of("parts=[first,third]", "minutes=1.0e-9", f"output={tmp_path}"))
    assert read(tmp_path)[1] == [("first", "not checked"), ("third", "not checked")]


def test_signal_writes_what_was_done(parts, tmp_path, monkeypatch):
    at_signal = []
    monkeypatch.setattr(command, "call_before_exit", at_signal.append)

    def interrupted(config, device):
        yield Line("one", "passed")
        at_signal[0]()
        assert read(tmp_path)[0]["ended"] == "interrupted"
        assert read(tmp_path)[1] == [("first", "passed")]

    parts["first"] = interrupted
    assert not command.selfcheck(config_of("parts=[first]", f"output={tmp_path}")).failed
    assert read(tmp_path)[0]["ended"] == "complete"


def test_wrong_settings_are_told(parts, tmp_path):
    with pytest.raises(LSHFMError, match="parts: expected some of first, second, third, found machine"):
        command.selfcheck(config_of("parts=[machine]", f"output={tmp_path}"))
    with pytest.raises(LSHFMError, match="minutes: expected a number above 0, found 0"):
        command.selfcheck(config_of("parts=[first]", "minutes=0", f"output={tmp_path}"))


def test_hash_that_is_wrong_fails_and_one_that_is_right_passes(monkeypatch):
    config = config_of(*SMALL)
    judged = [line for line in check_hash(config, CPU) if line.status in ("passed", "failed")]
    assert [line.status for line in judged] == ["passed"] * 3
    right = hash_loss.RowHashLoss

    class Wrong(right):
        @staticmethod
        def forward(ctx, student, *others):
            return right.forward(ctx, 1.01 * student, *others)

    monkeypatch.setattr(hash_loss, "RowHashLoss", Wrong)
    assert [line.name for line in check_hash(config, CPU) if line.status == "failed"] == [
        "rows, float32, fused"
    ]


def test_hash_that_raises_is_a_failed_line(monkeypatch):
    def stop(*arguments):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(hash_loss, "RowHashLoss", type("Broken", (), {"apply": stop}))
    failed = [line for line in check_hash(config_of(*SMALL), CPU) if line.status == "failed"]
    assert [(line.name, line.text) for line in failed] == [
        ("rows, float32, fused", "RuntimeError: no kernel image")
    ]


@pytest.mark.slow
def test_detectors_and_losses_are_within_their_limits_and_not_within_smaller_ones():
    config = config_of(*SMALL)
    (line,) = check_detectors(config, CPU)
    assert line.status == "passed"
    assert line.figures["gradient"] > 0
    losses = list(check_losses(config, CPU))
    # Only hash losses have fast implementations on the CPU.
    assert {line.status for line in losses} == {"passed", "not checked"}
    assert all("lsh" in line.name for line in losses if line.status == "passed")
    assert {"l2 at penultimate", "lsh at pyramid", "pkd"} <= {line.name.split(", ")[1] for line in losses}
    config.tolerances.losses["32-true"] = {"loss": -1, "gradient": -1}
    assert "failed" in {line.status for line in check_losses(config, CPU)}


def test_permutations_are_drawn_on_the_cpu_and_only_within_the_context():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with draws_of_cpu(0):
        first = torch.randperm(20, device=CPU)
    with draws_of_cpu(0):
        assert torch.equal(torch.randperm(20), first)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.slow
def test_command_writes_its_files_and_ends_with_status_0(tmp_path):
    arguments = ["parts=[machine,hash]", *SMALL[2:], "device=cpu", f"output={tmp_path}", "hydra.run.dir=ran"]
    ran = subprocess.run(
        [sys.executable, "-m", "lshfm_pl.selfcheck", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert f"written to {tmp_path}/selfcheck.json" in ran.stdout
    assert read(tmp_path)[0]["failed"] == []
