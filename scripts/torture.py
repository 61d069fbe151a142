"""Kill, stop and starve training runs as real machines do, and check whether anything is lost.

    python scripts/torture.py [--output outputs/torture] [--kills 7] [--only nodes slurm …]

Runs are started like a user's runs and take seconds each. `torture.json` and `torture.md` in the output folder list
the faults, their number and the outcome. The status is 1 if an outcome was not as expected.
"""

import argparse
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from terminal import Terminal, descendants
from terminal_moments import MOMENTS
from torture_bench import ROOT, SECONDS_ALLOWED, Case, Workbench, difference, is_alive, wait_for
from torture_nodes import nodes, unreachable
from torture_slurm import slurm

from lshfm_pl.files import write_atomically, write_json
from lshfm_pl.runs.checkpoint_files import is_intact

ARCHITECTURES = ("fasterrcnn", "retinanet")
LOSSES = ("none", "l2", "lsh", "lshl2")


def combinations() -> Iterator[tuple[str, str, int]]:
    """Every detector with every loss, alternately with and without loader processes."""
    for number, architecture in enumerate(ARCHITECTURES):
        for position, loss in enumerate(LOSSES):
            yield architecture, loss, 2 * ((number + position) % 2)


def interrupted(bench: Workbench, signum: signal.Signals, times: int) -> Iterator[Case]:
    """Send signals at random moments, repeat the command each time, and compare each finished run."""
    for architecture, loss, workers in combinations():
        settings = bench.settings(architecture, loss, workers)
        name = f"{architecture}_{loss}_workers{workers}"
        reference, seconds = bench.reference(name, *settings)
        run = bench.folder / name / signum.name
        wrong: list[str] = []
        sent = 0
        while True:
            begin, was_there = time.monotonic(), run.exists()
            process = bench.start(run, *settings)
            if sent < times:
                try:
                    process.wait(
                        bench.random.uniform(0.25, 1.0) * seconds
                    )  # the first quarter is starting up
                except subprocess.TimeoutExpired:
                    process.send_signal(signum)
                    sent += 1
            status = process.wait(SECONDS_ALLOWED)
            if status == 0:
                if differs := difference(run, reference):
                    wrong.append(f"differs in {differs}")
                if sent >= times:
                    break
                if not was_there:  # the machine has become quicker than it was for the reference
                    seconds = min(seconds, time.monotonic() - begin)
                shutil.rmtree(run)
            elif status not in (-signum, 128 + signum):
                wrong.append(f"status {status}")
                break
        outcome = "; ".join(wrong) or "end bit-identical: weights, optimizer, curves, results"
        yield Case(
            signum.name, f"{architecture}, {loss}, {workers} workers", sent, 0 if wrong else sent, outcome
        )


def file_too_large(bench: Workbench) -> Iterator[Case]:
    """The system refuses files as large as a checkpoint after a good one was written."""
    settings = bench.settings("retinanet", "l2", 0)
    reference, _ = bench.reference("retinanet_l2_workers0", *settings)
    run = bench.folder / "file_limit"
    last = run / "checkpoints" / "last.ckpt"
    process = bench.start(run, *settings)
    wait_for(last, process)
    process.kill()
    process.wait()
    before = last.read_bytes()
    limit = (1_000_000, 1_000_000)
    status = bench.finish(run, *settings, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    has_message = "could not be written" in bench.last_line(run)
    kept = last.read_bytes() == before
    ended = bench.finish(run, *settings) == 0 and difference(run, reference) is None
    good = status == 1 and has_message and kept and ended
    outcome = (
        f"status {status}, message: {has_message}, last checkpoint unchanged: {kept}, "
        f"then bit-identical: {ended}"
    )
    yield Case("no room for a checkpoint (RLIMIT_FSIZE)", "retinanet, l2", 1, int(good), outcome)


def full_disk(bench: Workbench) -> Iterator[Case]:
    """A small file system, which is too small from the start, or is filled by another program during the run."""
    disk = bench.folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=170m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        print("full disk: skipped, mounting a tmpfs takes root")
        return
    try:
        settings = bench.settings("retinanet", "none", 0)
        reference, _ = bench.reference("retinanet_none_workers2", *bench.settings("retinanet", "none", 2))
        filler = disk / "filler"
        filler.write_bytes(bytes(130_000_000))
        status = bench.finish(disk / "small", *settings)
        has_message = "of free space for the checkpoints" in bench.last_line(disk / "small")
        good = status == 1 and has_message and not (disk / "small" / "checkpoints" / "last.ckpt").exists()
        outcome = f"status {status} before training, message: {has_message}"
        yield Case("disk too small (tmpfs)", "retinanet, none", 1, int(good), outcome)
        filler.unlink()
        run = disk / "filled"
        process = bench.start(run, *settings)
        wait_for(run / "checkpoints" / "last-previous.ckpt", process)
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(100_000)):
                pass
        status = process.wait(SECONDS_ALLOWED)
        has_message = "could not be written (No space left on device)" in bench.last_line(run)
        whole = is_intact(run / "checkpoints" / "last.ckpt")
        filler.unlink()
        ended = bench.finish(run, *settings) == 0 and difference(run, reference) is None
        good = status == 1 and has_message and whole and ended
        outcome = (
            f"status {status}, message: {has_message}, last checkpoint complete: {whole}, "
            f"then bit-identical: {ended}"
        )
        yield Case("disk filled during the run (tmpfs)", "retinanet, none", 1, int(good), outcome)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def processes(bench: Workbench) -> Iterator[Case]:
    """Kill one of two processes, or ask the run to stop: both processes end, and the run can be resumed exactly."""
    for loss in ("none", "lshl2"):
        settings = [*bench.settings("retinanet", loss, 0), "trainer.devices=2", "data.batch_size=1"]
        reference, _ = bench.reference(f"two_processes_{loss}", *settings)
        for fault, victim, signum in (
            ("SIGKILL of the first process", 0, signal.SIGKILL),
            ("SIGKILL of the second process", 1, signal.SIGKILL),
            ("SIGTERM", 0, signal.SIGTERM),
        ):
            run = bench.folder / f"two_processes_{loss}" / f"{signum.name}_{victim}"
            process = bench.start(run, *settings)
            wait_for(run / "checkpoints" / "last.ckpt", process)
            pids = [process.pid, *children(process.pid)]
            os.kill(pids[victim], signum)
            begin = time.monotonic()
            process.wait(SECONDS_ALLOWED)
            while any(is_alive(pid) for pid in pids[1:]) and time.monotonic() - begin < SECONDS_ALLOWED:
                time.sleep(0.2)
            seconds = time.monotonic() - begin
            status_fits = process.returncode == 143 if signum == signal.SIGTERM else process.returncode != 0
            ended = bench.finish(run, *settings) == 0
            differs = difference(run, reference) if ended else "no end"
            good = seconds < 60 and differs is None and status_fits
            outcome = (
                f"all ended after {seconds:.0f} s, status {process.returncode}; then "
                f"{'bit-identical' if differs is None else differs}"
            )
            yield Case(f"{fault} of two", f"retinanet, {loss}", 1, int(good), outcome)


GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
WORKERS = ((0, "null"), *((count, method) for count in (2, 4) for method in ("fork", "spawn", "forkserver")))
WORKERS_END_SECONDS = 10


def group(bench: Workbench) -> Iterator[Case]:
    """Send signals to the run and its loader workers, like a terminal, at chosen moments; then resume it."""
    plain = bench.settings("retinanet", "none", 0)
    reference, _ = bench.reference("group", *plain)
    signums = itertools.cycle(GROUP_SIGNALS)  # 5 signals, 5 moments, 7 ways of loading: all pairs occur
    for workers, method in WORKERS:
        for moment in MOMENTS:
            signum = next(signums)
            run = bench.folder / "group" / f"{workers}_{method}_{moment}"
            settings = [*plain, f"data.num_workers={workers}", f"data.start_method={method}"]
            wrong = stopped(bench, run, signum, moment, *settings)
            if not wrong and bench.finish(run, *settings):
                wrong = [f"not gone on with: {bench.last_line(run)}"]
            if not wrong and (differs := difference(run, reference)):
                wrong = [f"differs in {differs}"]
            outcome = "; ".join(wrong) or "one line, workers gone, then bit-identical"
            to = f"{moment.replace('_', ' ')}, {workers} workers ({method})"
            yield Case(f"{signum.name} to the group", to, 1, int(not wrong), outcome)
        next(signums)  # so that each moment gets another signal for the next way of loading


def stopped(bench: Workbench, run: Path, signum: signal.Signals, moment: str, *settings: str) -> list[str]:
    """Stop a run in a pseudo-terminal at a moment; returns what was not as expected."""
    marker = bench.folder / "markers" / f"{run.name}_{signum.name}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    pause = ["+callbacks.pause._target_=terminal_moments.PauseAt", f"+callbacks.pause.moment={moment}"]
    terminal = Terminal(
        bench.command(run, *settings, *pause, f"+callbacks.pause.marker={marker}"),
        ROOT,
        {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"},
    )
    while not marker.exists() and not terminal.has_ended():
        terminal.read(0.05)
    started = descendants(terminal.pid)
    before = len(terminal.printed)
    terminal.send(signum)
    status = terminal.wait(SECONDS_ALLOWED)
    lines = [line for line in terminal.printed[before:].splitlines() if line.strip()]
    wrong = [] if status == 128 + signum else [f"status {status}"]
    if "Traceback" in terminal.printed:
        wrong.append("a traceback")
    if len(lines) != 1:
        wrong.append(f"{len(lines)} lines: {lines[-1:]}")
    if left := list(run.rglob("*.tmp")):
        wrong.append(f"half-written {left[0].name}")
    end = time.monotonic() + WORKERS_END_SECONDS
    while any(is_alive(pid) for pid in started) and time.monotonic() < end:
        time.sleep(0.1)
    if any(is_alive(pid) for pid in started):
        wrong.append("a process is left over")
    return wrong


def children(pid: int) -> list[int]:
    """The processes of the same command that `pid` has started."""
    listed = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "lshfm_pl.train"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in listed.stdout.split()]


def table(cases: list[Case]) -> str:
    """Markdown."""
    rows = ["| fault | to | times | as expected | what happened |", "|---|---|---|---|---|"]
    rows += [f"| {c.fault} | {c.to} | {c.times} | {c.as_expected} | {c.outcome} |" for c in cases]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run the requested kinds of faults, and write the table after each case."""
    kinds: dict[str, Callable[[Workbench], Iterator[Case]]] = {
        "kill": lambda bench: interrupted(bench, signal.SIGKILL, arguments.kills),
        "term": lambda bench: interrupted(bench, signal.SIGTERM, arguments.terms),
        "limit": file_too_large,
        "disk": full_disk,
        "processes": processes,
        "group": group,
        "nodes": lambda bench: nodes(bench, on_loopback=arguments.loopback),
        "unreachable": lambda bench: unreachable(bench, on_loopback=arguments.loopback),
        "slurm": slurm,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/torture"))
    parser.add_argument(
        "--kills", type=int, default=7, help="number of SIGKILLs for each of the 8 combinations"
    )
    parser.add_argument(
        "--terms", type=int, default=2, help="number of SIGTERMs for each of the 8 combinations"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument(
        "--loopback", action="store_true", help="two addresses of the loopback instead of network namespaces"
    )
    parser.add_argument("--only", nargs="+", choices=list(kinds), default=list(kinds))
    arguments = parser.parse_args()
    if arguments.output.is_dir() and any(arguments.output.iterdir()):
        parser.error(
            f"--output: expected a new folder, found {arguments.output} from an earlier call: delete it"
        )
    bench = Workbench(arguments.output.resolve(), arguments.seed)
    cases: list[Case] = []
    for kind in arguments.only:
        for case in kinds[kind](bench):
            cases.append(case)
            print(case, flush=True)
            bench.folder.mkdir(parents=True, exist_ok=True)
            write_json([asdict(c) for c in cases], bench.folder / "torture.json")
            write_atomically(bench.folder / "torture.md", table(cases).encode())
    sys.exit(any(case.as_expected < case.times for case in cases))


if __name__ == "__main__":
    main()
