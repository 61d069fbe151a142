"""`python -m lshfm_pl.selfcheck`: check this machine (with or without a GPU) and measure its speed."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("selfcheck")  # before the imports below, which take seconds

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig

from lshfm_pl.benchmarking.machine import machine_facts
from lshfm_pl.cli import as_dict
from lshfm_pl.errors import LSHFMError, short_reason
from lshfm_pl.inference.detect import choose_device
from lshfm_pl.selfchecks.comparisons import check_detectors, check_losses
from lshfm_pl.selfchecks.findings import Findings, Line
from lshfm_pl.selfchecks.hash_kernels import check_hash
from lshfm_pl.selfchecks.machine import check_machine
from lshfm_pl.selfchecks.speed import check_loader, check_nms, check_step
from lshfm_pl.selfchecks.training_runs import check_runs
from lshfm_pl.selfchecks.waits import check_waits
from lshfm_pl.signals import call_before_exit

__all__ = ["PARTS", "selfcheck"]

Part = Callable[[DictConfig, torch.device], Iterator[Line]]

PARTS: dict[str, Part] = {
    "machine": check_machine,
    "detectors": check_detectors,
    "losses": check_losses,
    "waits": check_waits,
    "hash": check_hash,
    "runs": check_runs,
    "nms": check_nms,
    "loader": check_loader,
    "step": check_step,
}
"""Name of a part → a function that yields its findings."""


def selfcheck(config: DictConfig) -> Findings:
    """Run the parts that `config.parts` names, print what they find, and write it to two files.

    A part that fails is a finding, and the next part follows. A signal ends the command with what was done.

    Raises:
        LSHFMError: a setting is wrong, or the files cannot be written.
    """
    unknown = [name for name in config.parts if name not in PARTS]
    if unknown:
        raise LSHFMError(f"parts: expected some of {', '.join(PARTS)}, found {unknown[0]}")
    if isinstance(config.minutes, bool) or not isinstance(config.minutes, int | float) or config.minutes <= 0:
        raise LSHFMError(f"minutes: expected a number above 0, found {config.minutes}")
    device = choose_device(config.device)
    folder = Path(config.output or config.output_dir)
    findings = Findings(folder, as_dict(config))
    findings.machine = machine_facts(device)
    until = time.monotonic() + 60 * config.minutes
    is_done = False
    call_before_exit(lambda: None if is_done else _announce(findings, "interrupted"))
    for name in config.parts:
        start = time.perf_counter()
        try:
            _run(name, config, device, findings, until)
        except Exception as error:  # whatever it is, the other parts are of use
            findings.add(name, Line("the whole part", "failed", short_reason(error)))
        findings.seconds[name] = time.perf_counter() - start
    is_done = True
    try:
        _announce(findings, "complete")
    except OSError as error:
        raise LSHFMError(f"output: {folder} cannot be written ({error})") from error
    return findings


def _run(name: str, config: DictConfig, device: torch.device, findings: Findings, until: float) -> None:
    """Add the findings of a part, until the time is over."""
    lines = PARTS[name](config, device)
    while True:
        if time.monotonic() > until:
            reason = f"the {config.minutes:g} minutes are over; minutes=… allows more"
            findings.add(name, Line("the rest of the part", "not checked", reason))
            return
        line = next(lines, None)
        if line is None:
            return
        findings.add(name, line)


def _announce(findings: Findings, ended: str) -> None:
    paths = findings.write(ended)
    print(f"\n{ended}: {findings.counts() or 'nothing checked'}")
    for name in findings.failed:
        print(f"failed: {name}")
    print(f"written to {paths[0]} and {paths[1]}", flush=True)


@cli.main("selfcheck")
def main(config: DictConfig) -> None:
    """Check this machine; exit with status 1 if something failed."""
    if selfcheck(config).failed:
        sys.exit(1)
