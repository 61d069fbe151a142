"""Several processes train like a single one, and if one ends, all end."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from process_settings import ROOT, SRUN_SETS, TINY, TORCHRUN_SETS
from rank_gradients import BY_BATCH, BY_IMAGE, OTHERS, gradients, one_of_several, without_gradient
from small_detectors import STUDENTS
from torch import distributed, multiprocessing
from untrained_teachers import write_teacher
from voc_files import write_image

from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.processes import launched_externally, report_lost_processes, started_by_lightning

OF_THE_WHOLE = [
    *((student, "lshl2", pictures) for student in STUDENTS for pictures in (False, True)),
    *((STUDENTS[1], name, False) for name in ("cwd", "fgd", "mgd")),
]
"""Student, loss, and whether there are pictures without labels: two processes have the gradients of one."""

MEANS = [(STUDENTS[1], name, False) for name in BY_BATCH]
"""The same, where two processes have the mean of the gradients that each has alone."""


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """Case → the gradients of each of two processes, which start once for all cases, as a start takes long."""
    folder, cases = tmp_path_factory.mktemp("gradients"), [*OF_THE_WHOLE, *MEANS]
    multiprocessing.spawn(one_of_several, (2, str(folder), cases), nprocs=2)
    return {
        case: [torch.load(folder / f"{index}_{rank}.pt") for rank in (0, 1)]
        for index, case in enumerate(cases)
    }


@pytest.fixture
def _permutations_stay(monkeypatch):
    monkeypatch.setattr(torch, "randperm", torch.randperm)  # restored after `gradients` has replaced it


@pytest.mark.slow
@pytest.mark.usefixtures("_permutations_stay")
@pytest.mark.parametrize(("student", "distill", "pictures"), OF_THE_WHOLE)
def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(
    student, distill, pictures, of_two_processes
):
    first, second = of_two_processes[student, distill, pictures]
    whole = gradients(student, 0, 1, distill, pictures=pictures)
    assert first.keys() == second.keys() == whole.keys()
    for name, gradient in whole.items():
        assert torch.equal(first[name], second[name])
        # The mimic loss is float32, whose rounding depends on the order of summation; all else is float64.
        assert (first[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max() + 1e-12, name


@pytest.mark.slow
@pytest.mark.usefixtures("_permutations_stay")
@pytest.mark.parametrize(("student", "distill", "pictures"), MEANS)
def test_gradients_of_a_loss_with_statistics_are_the_mean_over_the_processes(
    student, distill, pictures, of_two_processes
):
    first, second = of_two_processes[student, distill, pictures]
    alone = [gradients(student, rank, 2, distill, is_alone=True) for rank in (0, 1)]
    assert first.keys() == second.keys() == alone[0].keys()
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
        mean = (alone[0][name] + alone[1][name]) / 2
        assert (gradient - mean).abs().max() <= 1e-6 * mean.abs().max(), name


@pytest.mark.slow
@pytest.mark.parametrize("distill", [*BY_IMAGE, *BY_BATCH, *OTHERS])
def test_every_trained_parameter_gets_a_gradient_so_that_ddp_never_looks_for_unused_ones(distill):
    assert without_gradient(STUDENTS[1], distill) == []


TRAIN = (sys.executable, "-m", "lshfm_pl.train")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def start(tmp_path, *overrides, launcher=TRAIN, times=1, **environment):
    """Run to the end, so many times beside each other; `environment` may hold a list of values, one a time."""
    command = [*launcher, *TINY, *overrides, f"data.root={tmp_path}/data", f"hydra.run.dir={tmp_path}/run"]
    python_path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    started = []
    for index in range(times):
        own = {
            name: value[index] if isinstance(value, list) else value for name, value in environment.items()
        }
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path, **own},
            )
        )
    done = []
    try:
        for process in started:
            printed, errors = process.communicate(timeout=280)
            done.append(subprocess.CompletedProcess(command, process.returncode, printed, errors))
    finally:
        for process in started:
            process.kill()
    return done[0] if times == 1 else done


AUGMENTED = (
    "data.num_train=8", "schedule.epochs=2", "augment=strong", "augment.transforms.1.p=0.5",
    "augment.transforms.2.p=0.5", "schedule.ema_decay=0.9", "distill=l2", "distill.pseudo_labels.score=0.4",
    "callbacks.last.every_n_steps=1", "trainer.deterministic=true", "+callbacks.batches._target_="
    "rank_files.SaveBatchesOfEachRank",
)  # fmt: skip
"""Every source of random pictures, and averaged weights."""

TWO_DEVICES = ("trainer.devices=2", "data.batch_size=2")


def start_augmented(folder, name, *overrides):
    """A run of `AUGMENTED` in `folder/name/run`, which writes its batches to `folder/name/batches`."""
    files = f"data.unlabelled={folder}/pool", f"teacher.checkpoint={folder}/teacher.ckpt"
    own = f"+callbacks.batches.folder={folder}/{name}/batches"
    (folder / name).mkdir(exist_ok=True)
    return start(folder / name, *AUGMENTED, *files, own, *overrides)


def batches_in(folder, rank=0):
    text = (folder / "batches" / f"batches_{rank}.txt").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def augmented(tmp_path_factory):
    """A folder with a teacher, `pool/` of pictures, and the finished run `two/` of two processes."""
    folder = tmp_path_factory.mktemp("augmented")
    (folder / "pool").mkdir()
    for index in range(8):
        write_image(folder / "pool" / f"{index}.png", size=(64 + 8 * index, 72), seed=index)
    write_teacher(folder / "teacher.ckpt", SHAPE_CLASSES)
    done = start_augmented(folder, "two", *TWO_DEVICES)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_augmented_batches_of_two_processes_are_halves_of_those_of_one(augmented):
    done = start_augmented(augmented, "one", "trainer.devices=1", "data.batch_size=4")
    assert done.returncode == 0, done.stderr[-3000:]
    whole, *halves = batches_in(augmented / "one"), *(batches_in(augmented / "two", rank) for rank in (0, 1))
    assert len(whole) == 8
    assert len({image for batch in whole for kind in batch for image in kind}) == 32  # all differ
    for batch, first, second in zip(whole, *halves, strict=True):
        assert [first[kind] + second[kind] for kind in (0, 1)] == batch


@pytest.mark.slow
def test_augmented_run_of_two_processes_is_resumed_bit_identically(augmented):
    kill = (
        "+callbacks.fail._target_=rank_files.FailOnRank",
        "+callbacks.fail.rank=1",
        "+callbacks.fail.how=kill",
    )
    assert start_augmented(augmented, "cut", *TWO_DEVICES, *kill).returncode != 0
    last = augmented / "cut" / "run" / "checkpoints" / "last.ckpt"
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 4
    done = start_augmented(augmented, "cut", *TWO_DEVICES, f"resume={last}", "data.num_workers=2")
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        whole, cut = (batches_in(augmented / name, rank) for name in ("two", "cut"))
        assert cut[-5:] == whole[-5:]
    states = [
        torch.load(augmented / name / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("two", "cut")
    ]
    assert [state["global_step"] for state in states] == [8, 8]
    for whole, cut in (states, [state["ema"] for state in states]):
        assert whole["state_dict"].keys() == cut["state_dict"].keys()
        assert all(torch.equal(value, cut["state_dict"][key]) for key, value in whole["state_dict"].items())


FAIL = ("trainer.devices=2", "+callbacks.fail._target_=rank_files.FailOnRank")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_process_ends_the_others_within_a_minute_and_it_is_reported(tmp_path, rank):
    begin = time.monotonic()
    done = start(tmp_path, *FAIL, f"+callbacks.fail.rank={rank}", "+callbacks.fail.how=kill")
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert any(
        line in told
        for line in (
            "another process of this run has ended",
            "the first process of this run has ended",
            "terminated with code -9",
        )
    )
    assert time.monotonic() - begin < 200  # the start-up and one minute
    time.sleep(3)
    left = subprocess.run(["pgrep", "-f", f"hydra.run.dir={tmp_path}/run"], capture_output=True, text=True)
    assert left.stdout == ""


@pytest.mark.slow
def test_nan_on_one_process_skips_the_step_on_all(tmp_path):
    done = start(tmp_path, *FAIL, "+callbacks.fail.rank=1", "+callbacks.fail.how=nan")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(1 skipped so far)" in done.stdout + done.stderr
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    steps = [json.loads(path.read_text()) for path in sorted((tmp_path / "run/nonfinite").glob("*.json"))]
    assert [step["batches"][0]["place"]["rank"] for step in steps] == [0, 1]
    losses = [list(map(float, step["batches"][0]["losses"].values())) for step in steps]
    assert all(loss == loss for loss in losses[0])
    assert any(loss != loss for loss in losses[1])


@pytest.mark.slow
def test_parts_of_a_body_that_no_map_depends_on_do_not_hold_up_several_processes(tmp_path):
    body = (
        "model.backbone=timm/hrnet_w18_small",
        "model.width=1",
        "model.norm=bn",
        "model.trainable_stages=5",
    )
    short = ("data.num_train=8", "trainer.devices=2")
    done = start(tmp_path, *short, *body)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line for line in (done.stdout + done.stderr).splitlines() if "no map depends on them" in line]
    assert len(told) == 1
    assert "parameters of the backbone, such as detector.backbone.body.net.stage4.0.fuse_layers" in told[0]


@pytest.mark.slow
def test_torchrun_starts_the_processes(tmp_path):
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node=2", "-m", "lshfm_pl.train")
    done = start(tmp_path, "trainer.devices=2", launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


TWO_NODES = ("trainer.num_nodes=2", "trainer.devices=1")


@pytest.mark.slow
def test_two_nodes_by_torchrun_train_together(tmp_path, free_port):
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port}", "--rdzv-id=test")
    launcher = (*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", *rendezvous, "-m", "lshfm_pl.train")
    for done in start(tmp_path, *TWO_NODES, launcher=launcher, times=2, GLOO_SOCKET_IFNAME="lo"):
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2


@pytest.mark.slow
def test_two_nodes_as_slurm_starts_them_train_together(tmp_path, free_port):
    """With the variables that `srun` gives its tasks; there is no SLURM itself."""
    job = {
        "JOB_ID": "4242",
        "STEP_ID": "0",
        "JOB_NAME": "train",
        "NTASKS": "2",
        "NTASKS_PER_NODE": "1",
        "NNODES": "2",
    }
    task = {"PROCID": ["0", "1"], "NODEID": ["0", "1"], "LOCALID": "0", "NODELIST": "localhost"}
    variables = {f"SLURM_{name}": value for name, value in {**job, **task}.items()}
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port, "GLOO_SOCKET_IFNAME": "lo"}
    for done in start(tmp_path, *TWO_NODES, times=2, **variables, **meeting):
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2


@pytest.mark.slow
def test_one_command_a_node_by_hand_trains_together_in_one_folder(tmp_path, free_port):
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port, "GLOO_SOCKET_IFNAME": "lo"}
    for done in start(tmp_path, *TWO_NODES, times=2, NODE_RANK=["0", "1"], **meeting):
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2


@pytest.mark.slow
def test_submitit_runs_the_jobs_of_a_sweep(tmp_path):
    pytest.importorskip("submitit")
    done = start(
        tmp_path,
        "--multirun",
        "hydra/launcher=submitit_local",
        f"hydra.sweep.dir={tmp_path}/sweep",
        "seed=0,1",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").rglob("results.json"))]
    assert [result["seed"] for result in results] == [0, 1]


def test_only_a_backends_failure_to_reach_others_is_reworded(monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    with (
        pytest.raises(LSHFMError, match="another process of this run has ended .*Connection closed by peer"),
        report_lost_processes(),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shapes"), report_lost_processes():
        raise RuntimeError("shapes differ")
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match="Connection closed"), report_lost_processes():
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("environment", "outside", "by_lightning"),
    [
        ({}, False, False),
        ({"LOCAL_RANK": "0"}, False, False),
        ({"LOCAL_RANK": "1"}, False, True),
        (TORCHRUN_SETS, True, False),
        (SRUN_SETS, True, False),
        ({"SLURM_NTASKS": "4"}, False, False),
        ({**SRUN_SETS, "SLURM_NTASKS": "1"}, False, False),
    ],
)
def test_environment_says_who_started_a_process(environment, outside, by_lightning, monkeypatch):
    for name in (*TORCHRUN_SETS, *SRUN_SETS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (launched_externally(), started_by_lightning()) == (outside, by_lightning)
