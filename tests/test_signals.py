"""Signals to the process group, like those of a terminal: one line, the right status, no lost step."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from terminal import Terminal, descendants
from torch.utils.data import DataLoader, Dataset

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.workers import START_METHODS, worker_arguments
from lshfm_pl.errors import LSHFMError
from lshfm_pl.signals import STOP_SIGNALS

ROOT = CONFIG_DIR.parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}
TRAIN = (
    sys.executable, "-m", "lshfm_pl.train", "data=shapes", "data.num_train=18", "data.num_val=4",
    "data.num_test=3", "data.batch_size=2", "data.num_workers=2", "schedule=quickstart", "schedule.epochs=2",
    "model=retinanet_resnet10fpn_tiny", "model.min_size=[48]", "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
)  # fmt: skip


class Numbers(Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, ())


def rows_as_they_are(rows):
    return rows


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


@pytest.mark.parametrize("method", [None, "fork"])
def test_workers_live_through_every_stop_signal_and_end_with_their_loader(method):
    loader = DataLoader(
        Numbers(), persistent_workers=True, collate_fn=rows_as_they_are, **worker_arguments(1, method)
    )
    iterator = iter(loader)
    ((pid, blocked),) = next(iterator)
    assert blocked >= set(STOP_SIGNALS)
    for signum in STOP_SIGNALS:
        os.kill(pid, signum)
    assert next(iterator)[0][0] == pid
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOP_SIGNALS)
    del iterator, loader
    assert wait_until_gone([pid])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_new_interpreters_do_too(method):
    test_workers_live_through_every_stop_signal_and_end_with_their_loader(method)


def test_workers_of_a_server_that_something_else_started_do_too():
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
    test_workers_live_through_every_stop_signal_and_end_with_their_loader("forkserver")


def test_start_method_that_is_none_is_answered_with_those_that_are():
    with pytest.raises(LSHFMError, match=r"data.start_method: expected null or one of .*fork"):
        worker_arguments(2, "thread")
    assert set(START_METHODS) == {"fork", "forkserver", "spawn"}


END_SLOWLY = """
import atexit, sys, time
from lshfm_pl.signals import exit_on_signals, exit_without_shutdown
class Slow:
    def __del__(self): time.sleep(5)
slow = Slow()  # as all that torch takes down
exit_on_signals()
atexit.register(lambda: (print("at exit", flush=True), time.sleep(float(sys.argv[1]))))
exit_without_shutdown(3)
sys.exit(3)
"""


@pytest.mark.parametrize("signum", [None, signal.SIGINT, signal.SIGTERM])
def test_exit_of_a_command_is_quick_and_a_signal_during_it_is_reported_as_before(signum):
    seconds = "0" if signum is None else "5"
    terminal = Terminal([sys.executable, "-c", END_SLOWLY, seconds], ROOT, ENVIRONMENT)
    assert terminal.wait_for("at exit\n")
    if signum is not None:
        terminal.send(signum)
    begin = time.monotonic()
    assert terminal.wait() == (3 if signum is None else 128 + signum)
    assert time.monotonic() - begin < 4
    told = terminal.printed.partition("at exit\n")[2].removeprefix("^C")
    assert told == ("" if signum is None else f"{signum.name}: stopped\n")


READ_FOR_EVER = """
import time
from torch.utils.data import DataLoader
from lshfm_pl.data.workers import worker_arguments
class Slow:
    def __len__(self): return 8
    def __getitem__(self, index):
        time.sleep(0 if index == 0 else 1000)
        return index
for _ in DataLoader(Slow(), **worker_arguments(2, "fork")):
    print("read", flush=True)
"""


def test_workers_that_are_reading_end_when_their_parent_is_killed():
    process = subprocess.Popen([sys.executable, "-c", READ_FOR_EVER], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"read\n"
    workers = descendants(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(workers) >= 2  # and the process that tracks shared memory
    assert wait_until_gone(workers)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_command_that_is_still_importing_ends_in_one_line(signum, tmp_path):
    command = [sys.executable, "-X", "importtime", *TRAIN[1:], f"hydra.run.dir={tmp_path}/run"]
    terminal = Terminal(command, ROOT, ENVIRONMENT)
    assert terminal.wait_for("torch._utils")
    begin = len(terminal.printed)
    terminal.send(signum)
    assert terminal.wait() == 128 + signum
    told = [line for line in terminal.printed[begin:].splitlines() if not line.startswith("import time:")]
    assert next(line for line in told if "stopped" in line).endswith(f"{signum.name}: stopped")
    assert "Traceback" not in terminal.printed


def pausing(tmp_path, moment):
    marker = tmp_path / "marker"
    return marker, [
        f"data.root={tmp_path}/data",
        f"hydra.run.dir={tmp_path}/run",
        "+callbacks.pause._target_=terminal_moments.PauseAt",
        f"+callbacks.pause.moment={moment}",
        f"+callbacks.pause.marker={marker}",
    ]


def started_until(terminal, marker):
    while not marker.exists() and not terminal.has_ended():
        terminal.read(0.05)
    return descendants(terminal.pid), len(terminal.printed)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "step"), [("mid_epoch", 5), ("first_batch", 1)])
def test_ctrl_c_saves_the_step_and_ends_with_130_and_one_line(moment, step, tmp_path):
    marker, overrides = pausing(tmp_path, moment)
    terminal = Terminal([*TRAIN, *overrides], ROOT, ENVIRONMENT)
    started, begin = started_until(terminal, marker)
    terminal.press_ctrl_c()
    assert terminal.wait() == 130
    (told,) = [line for line in terminal.printed[begin:].splitlines() if line.strip()]
    assert "SIGINT: saving after this batch, then stopping; Ctrl+C again stops at once; resume with: " in told
    resume_hint = shlex.split(told.rpartition("resume with: ")[2])
    assert resume_hint == [*TRAIN, *overrides, "resume=auto"]
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert wait_until_gone(started)


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once_and_leaves_no_half_written_file(tmp_path):
    marker, overrides = pausing(tmp_path, "writing")
    terminal = Terminal([*TRAIN, *overrides], ROOT, ENVIRONMENT)
    started, _ = started_until(terminal, marker)
    terminal.press_ctrl_c()
    terminal.read(0.5)
    terminal.press_ctrl_c()
    assert terminal.wait(seconds=5) == 130
    assert "Traceback" not in terminal.printed
    assert "SIGINT: stopped\n" in terminal.printed  # no checkpoint was saved before
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert wait_until_gone(started)


@pytest.mark.slow
def test_lost_worker_saves_the_last_whole_step_and_says_what_to_do(tmp_path):
    marker, overrides = pausing(tmp_path, "mid_epoch")
    terminal = Terminal([*TRAIN, *overrides, "data.num_train=200"], ROOT, ENVIRONMENT)
    workers, begin = started_until(terminal, marker)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert terminal.wait() == 1
    (told,) = [line for line in terminal.printed[begin:].splitlines() if line.strip()]
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] >= 5
    assert "a process that reads images was ended from outside" in told
    assert told.endswith(
        f"the run is saved up to step {saved['global_step']}: resume it with the same command and resume=auto"
    )


@pytest.mark.slow
def test_disk_that_is_full_for_the_curves_is_one_line_that_says_what_is_saved(tmp_path):
    command = [
        *TRAIN, f"data.root={tmp_path}/data", f"hydra.run.dir={tmp_path}/run", "callbacks.last.every_n_steps=3",
        "trainer.log_every_n_steps=1", "+callbacks.full._target_=interruptions.FullDisk", "+callbacks.full.batch=5",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path}/run: File too large; the file system or a limit (ulimit -f) does not allow a file of "
        "this size; the run is saved up to step 3: resume it with the same command and resume=auto\n"
    )
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.slow
def test_ctrl_c_in_the_final_test_says_that_all_steps_are_saved(tmp_path):
    command = [
        *TRAIN, f"data.root={tmp_path}/data", f"hydra.run.dir={tmp_path}/run", "schedule.epochs=1",
        "data.eval_batch_size=1", "+callbacks.slow._target_=interruptions.SlowTest",
    ]  # fmt: skip
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    terminal = Terminal(command, ROOT, environment)
    assert terminal.wait_for("slow test")
    started, begin = descendants(terminal.pid), len(terminal.printed)
    terminal.press_ctrl_c()
    assert terminal.wait() == 130
    (told,) = [line for line in terminal.printed[begin:].splitlines() if "SIGINT" in line]
    assert "SIGINT: stopped; the run is saved up to step 9; resume with: " in told
    assert told.endswith("resume=auto")
    assert "Traceback" not in terminal.printed
    assert wait_until_gone(started)
