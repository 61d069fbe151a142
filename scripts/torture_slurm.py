"""A training on two virtual nodes of a real SLURM, one of which is lost."""

import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from slurm_cluster import Cluster, slurm_cluster, why_not
from torture_bench import ROOT, SECONDS_ALLOWED, Case, Workbench, difference

__all__ = ["slurm"]

REVOKED_SECONDS = 3
"""A node refuses a job that it has just ended: what allows it to start is compared by the second."""

EXPORTS = f"export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1 PYTHONPATH={ROOT}"
"""What virtual nodes need: their names have no address."""

EPOCHS = "schedule.epochs=8"
"""Long enough to lose a node while it trains."""


def slurm(bench: Workbench) -> Iterator[Case]:
    """A node is lost: SLURM requeues the job, which goes on when the node is back, to the same end."""
    if reason := why_not():
        print(f"SLURM: skipped, {reason}")
        return
    settings = [*bench.settings("retinanet", "none", 0), "data.batch_size=1", EPOCHS]
    reference, _ = bench.reference("slurm", *settings, "trainer.devices=2")
    run = bench.folder / "slurm" / "lost_node"
    # A socket needs a short path, and munge one that others cannot write to.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with slurm_cluster(Path(folder)) as cluster:
            wrong, told = _lose_node(bench, cluster, run, settings)
    if not wrong and (differs := difference(run, reference)):
        wrong.append(f"differs in {differs}")
    outcome = "; ".join(wrong) or f"{told}; requeued and gone on, bit-identical to one node"
    yield Case("loss of node 2 of two (SLURM)", "retinanet, none", 1, int(not wrong), outcome)


def _lose_node(bench: Workbench, cluster: Cluster, run: Path, settings: list[str]) -> tuple[list[str], str]:
    """Returns what was not as expected, and what the job printed about the loss."""
    train = bench.command(run, *settings, "trainer.num_nodes=2", "trainer.devices=1")
    script = bench.folder / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1 --requeue\n"
        f"{EXPORTS}\nsrun --output={bench.folder}/rank%t.txt --open-mode=append {shlex.join(train)}\n"
    )
    printed = bench.log_of(run)
    submit = ("sbatch", "--open-mode=append", f"--output={printed}", f"--chdir={ROOT}", str(script))
    job = cluster.run(*submit).split()[-1]
    first, second = (bench.folder / f"rank{rank}.txt" for rank in (0, 1))
    if not _wait(lambda: (run / "checkpoints" / "last.ckpt").exists()):
        return [f"did not start: {cluster.state(job)} {cluster.log()[-300:]}"], ""
    _lose(cluster, run)
    # The controller notices after SlurmdTimeout that the node is gone, and puts the job back into the queue.
    if not _wait(lambda: cluster.state(job) == "PENDING"):
        return [f"not requeued: {cluster.state(job)}"], ""
    errors = [line for line in first.read_text().splitlines() if "error: " in line]
    cluster.start_node("n2")
    _wait(lambda: cluster.run("sinfo", "-h", "-o", "%T %D", check=False) == "idle 2")
    time.sleep(REVOKED_SECONDS)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM itself waits two minutes
    _wait(lambda: cluster.state(job) in ("COMPLETED", "FAILED"))
    wrong = [] if cluster.state(job) == "COMPLETED" else [f"state {cluster.state(job)}"]
    if "Traceback" in first.read_text() + second.read_text():
        wrong.append("a traceback")
    if "epoch 1/" in second.read_text():
        wrong.append("the second process prints epochs too")
    return wrong, errors[0].partition("error: ")[2][:90] if errors else "without a line"


def _lose(cluster: Cluster, run: Path) -> None:
    """Kill the daemon of the second node with its processes of this run."""
    cluster.daemons["n2"].kill()
    cluster.daemons["n2"].wait()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            is_run = f"hydra.run.dir={run}".encode() in command and command.startswith(
                sys.executable.encode()
            )
            if is_run and b"SLURM_NODEID=1" in (entry / "environ").read_bytes().split(b"\0"):
                step = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                os.kill(step, signal.SIGKILL)  # SLURM's own process of the step, which would report the end
                os.kill(int(entry.name), signal.SIGKILL)


def _wait(is_so: Callable[[], bool]) -> bool:
    """Wait for a condition; returns whether it holds."""
    deadline = time.monotonic() + SECONDS_ALLOWED / 4
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True
