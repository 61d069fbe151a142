"""Which checkpoint a run goes on from, and whether it is the same run."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli import as_dict, in_multirun
from lshfm_pl.data.fingerprint import MOST_CHANGES_LISTED, differences
from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.errors import LSHFMError, first_few, printable
from lshfm_pl.renamed import current_path
from lshfm_pl.runs.checkpoint_files import FINGERPRINT_KEY, LAST, PREVIOUS, is_whole
from lshfm_pl.runs.data_of_run import RunData, fingerprint_in, refuse_other_data
from lshfm_pl.runs.processes import started_by_lightning, started_outside
from lshfm_pl.runs.reading import read_json, read_yaml
from lshfm_pl.runs.results import RESULTS_FILE, is_known_data

__all__ = [
    "AUTO",
    "choose_folder",
    "comparable",
    "differing_keys",
    "finished_results",
    "read_resumable",
    "resolve_resume",
    "set_results_aside",
]

AUTO = "auto"
"""The value of `resume` that finds the checkpoint by itself."""

WITHOUT_EFFECT = (
    "callbacks", "data.download", "data.num_workers", "data.root", "data.start_method", "debug",
    "kd_of_architecture", "logger", "lr_of_architecture", "output_dir", "resume", "resume_allow_changes",
    "trainer.default_root_dir", "trainer.enable_model_summary", "trainer.enable_progress_bar",
    "trainer.log_every_n_steps", "trainer.max_time", "trainer.meeting_seconds", "trainer.profiler",
)  # fmt: skip
"""Keys, or groups of them, that do not change what is learned: they may differ on resume.

`…_of_architecture` are tables in the configs of older runs, whose effect is in `schedule.lr` and `distill`.
"""

MEANT_BEFORE: dict[str, tuple[Any, ...]] = {
    "data.first_pixel": (1,),
    "model.match_classes": ("by_name",),
    "model.which": ("student",),
    "distill.bias_even_median": ("mean", "lower"),
    "kernels.winograd": (True,),
    "kernels.folded_norms": (True,),
    "kernels.fused_hash_loss": (True,),
    "kernels.memory": (True,),
    "distill._target_": tuple(
        f"lshfm_pl.mimic.losses.{path}" for path in ("kd.KD", "l2.L2", "lsh.LSH", "lshl2.LSHL2")
    ),
}
"""Keys that older runs lack, with the values that change nothing for them: a bias is kept in its checkpoint, and
these losses were known by `distill.name` alone."""

RESULTS_BEFORE = "results-previous.json"
"""In the folder of a run that was finished and goes on: what it had reached."""

FOUND_RUN = "LSHFM_PL_FOUND_RUN"
"""Environment variable by which a run tells the processes that Lightning starts for it where it goes on."""

_LONGEST_REASON = 200
"""Characters of another library's message."""

STATE_OF_OPTIMIZER = ("name", "amsgrad")
"""Keys of `schedule.optimizer` that decide what it keeps for each parameter."""

log = logging.getLogger(__name__)


def choose_folder(config: DictConfig, data: RunData) -> None:
    """With `resume=auto`, make `config.output_dir` that of the newest run like this one, if there is one beside.

    Not where the user chose the folder, nor where it holds a run already. A run beside is like this one if it has
    the same settings and was on the same data, wherever they lie today.

    Raises:
        LSHFMError: there are runs to compare with, and the data cannot be read.
    """
    if config.resume != AUTO:
        return
    folder = Path(config.output_dir)
    if _is_finished(folder, config) or _newest_checkpoint(folder) is not None:
        return
    if started_by_lightning():
        found = os.environ.get(FOUND_RUN)
    else:
        os.environ.pop(FOUND_RUN, None)
        found = None if _is_folder_chosen() else _run_beside(folder, config, data)
    if found:
        config.output_dir = os.environ[FOUND_RUN] = found


def resolve_resume(config: DictConfig) -> Path | None:
    """The checkpoint that `config.resume` means, None for a run from the start and for one that is finished.

    A path is that file, or the whole one before it if it is broken. `auto` is the newest whole checkpoint in
    `config.output_dir`, which `choose_folder` has chosen; `finished_results` tells whether it is finished.

    Raises:
        LSHFMError: there is no such file, or only broken ones.
    """
    if config.resume is None:
        return None
    if config.resume != AUTO:
        path = Path(str(config.resume)).expanduser()
        if not path.is_file():
            raise LSHFMError(f"resume: expected auto or the last.ckpt of a run, found no file {path}")
        return _whole_or_before(path) if path.name == LAST else path
    folder = Path(config.output_dir)
    if _is_finished(folder, config):
        return None
    checkpoint = _newest_checkpoint(folder)
    if checkpoint is None:
        log.info("resume=auto: no checkpoint in %s, and no run like it beside: a new run", folder)
    else:
        log.info("resume=auto: going on from %s", checkpoint)
    return checkpoint


def _newest_checkpoint(folder: Path) -> Path | None:
    paths = [folder / "checkpoints" / name for name in (LAST, PREVIOUS)]
    there = [path for path in paths if path.is_file()]
    return _whole_or_before(there[0]) if there else None


def _whole_or_before(path: Path) -> Path:
    if is_whole(path):
        return path
    before = path.with_name(PREVIOUS)
    if before == path or not is_whole(before):
        raise LSHFMError(
            f"resume: {path} is cut off or altered, and there is no whole {PREVIOUS} beside it: "
            "start the run anew in another hydra.run.dir"
        )
    log.warning("resume: %s is cut off or altered; going on from %s, the one before", path, before.name)
    return before


def _is_folder_chosen() -> bool:
    """Whether the run's folder was given on the command line, or by a sweep."""
    if not HydraConfig.initialized():
        return True
    overrides = HydraConfig.get().overrides.hydra
    return in_multirun() or any(override.startswith("hydra.run.dir=") for override in overrides)


def _run_beside(folder: Path, config: DictConfig, data: RunData) -> str | None:
    """Folder of the newest run beside `folder` like this one that has a checkpoint or results."""
    touched: dict[Path, float] = {}
    for name in (f"checkpoints/{LAST}", RESULTS_FILE):
        for path in folder.parent.glob(f"*/{name}"):
            run = folder.parent / path.relative_to(folder.parent).parts[0]
            touched[run] = max(path.stat().st_mtime, touched.get(run, 0))
    touched.pop(folder, None)
    newest_first = sorted(touched, key=lambda run: touched[run], reverse=True)
    return next((str(run) for run in newest_first if _is_like(run, config, data)), None)


def _is_like(folder: Path, config: DictConfig, data: RunData) -> bool:
    """Whether the run in `folder` has the settings of `config` and was on the same data.

    One that does not say what its data were must name the same folder for them, unless they are well known.
    """
    try:
        saved = _saved_config(folder)
    except LSHFMError as error:
        log.warning("resume=auto: %s is passed over: %s", folder, error)
        return False
    if saved is None or differing_keys(comparable(saved), comparable(as_dict(config))):
        return False
    before = fingerprint_in(folder)
    if before is not None:
        told = differences(before, data.fingerprint)
        if told:
            log.info("resume=auto: %s is on other data: %s", folder, first_few(told, MOST_CHANGES_LISTED))
        return not told
    if is_known_data(as_dict(config)["data"]):
        return True
    root, other = (Path(found or "").expanduser() for found in (_root_in(saved), config.data.get("root")))
    return root.resolve() == other.resolve()


def _saved_config(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in `folder`, None where it has no config.yaml.

    Raises:
        LSHFMError: the file is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    return _read_config(path)


def _root_in(saved: Mapping[str, Any]) -> str | None:
    data = saved.get("data")
    return str(data["root"]) if isinstance(data, Mapping) and data.get("root") else None


def _read_config(path: Path) -> dict[str, Any]:
    """The settings that a run left in its folder."""
    try:
        read_yaml(path, path.parent)  # has limits, which OmegaConf has not
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (LSHFMError, OmegaConfBaseException, OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = printable(str(error).removeprefix(f"{path}: "))[:_LONGEST_REASON]
        raise LSHFMError(f"resume: {path} can't be read ({reason}); give another hydra.run.dir") from error
    if not isinstance(content, dict) or not content:
        raise LSHFMError(f"resume: {path} holds no settings; give another hydra.run.dir")
    return {str(key): value for key, value in content.items()}


def _is_finished(folder: Path, config: DictConfig) -> bool:
    if not (folder / RESULTS_FILE).is_file():
        return False
    saved = _saved_config(folder)
    return saved is not None and not differing_keys(comparable(saved), comparable(as_dict(config)))


def finished_results(config: DictConfig, data: RunData) -> dict[str, Any] | None:
    """`results.json` of the finished run of these settings in `config.output_dir`; None if there is none.

    Raises:
        LSHFMError: the run was on other data, or one of its files is damaged.
    """
    folder = Path(config.output_dir)
    if not _is_finished(folder, config):
        return None
    results = read_json(folder / RESULTS_FILE, folder)
    if not isinstance(results, dict):
        raise LSHFMError(
            f"resume=auto: {folder}/{RESULTS_FILE}: expected the results of a run. Give another hydra.run.dir"
        )
    way = "another hydra.sweep.dir" if in_multirun() else "another hydra.run.dir"
    unknown = _compare_finished(folder, data, way)
    ways = way if in_multirun() or _is_folder_chosen() else "hydra.run.dir=… or resume=null"
    log.info(
        "resume=auto: %s is finished, nothing to go on with; %s starts a new run%s", folder, ways, unknown
    )
    return results


def _compare_finished(folder: Path, data: RunData, way: str) -> str:
    """Stop if a finished run was on other data; returns what to tell where that is not known."""
    before = fingerprint_in(folder)
    if before is None:
        return " (it does not say what its data were, so they were not compared)"
    try:
        data.fingerprint  # noqa: B018 (read here, so that data that are gone are told apart from other ones)
    except (LSHFMError, OSError) as error:
        return f" (its data were not compared: {str(error).splitlines()[0]})"
    refuse_other_data(
        f"resume=auto: {folder}",
        before,
        data,
        root=_root_in(_saved_config(folder) or {}),
        allow=False,
        way_out=f"It is finished: give {way} for a run on these, or the data it was on",
    )
    return ""


def set_results_aside(folder: Path) -> None:
    """Keep the results of a finished run that goes on under another name: until its new end it is not finished."""
    results = folder / RESULTS_FILE
    if results.is_file():
        results.replace(folder / RESULTS_BEFORE)
        log.info("%s was finished and goes on: what it had reached is in %s", folder, RESULTS_BEFORE)


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what is learned, flat: `{"schedule.lr": 0.01, …}`."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if prefix in WITHOUT_EFFECT:
            return
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = current_path(value) if prefix.endswith("_target_") else value

    walk("", config)
    return flat


def differing_keys(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """`key: saved → wanted` for each that differs, between configs made `comparable`.

    A key that one of them lacks is of another version of this project: where it is null, false or empty it asks for
    nothing, and so do the values in `MEANT_BEFORE`.
    """
    absent = "absent"

    def asks_for_nothing(key: str) -> bool:
        if key in saved and key in wanted:
            return False
        value = saved[key] if key in saved else wanted[key]
        return value in MEANT_BEFORE[key] if key in MEANT_BEFORE else not value

    return [
        f"{key}: {saved.get(key, absent)} → {wanted.get(key, absent)}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key, absent) != wanted.get(key, absent) and not asks_for_nothing(key)
    ]


def read_resumable(path: Path, config: DictConfig, data: RunData | None = None) -> dict[str, Any]:
    """The checkpoint at `path`, if the run of `config` can go on from it.

    Args:
        path: of the checkpoint.
        config: of the run that is to go on.
        data: of that run; None does not compare them.

    Raises:
        LSHFMError: it holds weights alone, is of a run with other settings or other data and `resume_allow_changes`
            is false, or of one with an optimizer that keeps other things.
    """
    checkpoint = read_torch_file(path)
    if not isinstance(checkpoint, dict) or not {"optimizer_states", "state_dict"} <= checkpoint.keys():
        raise LSHFMError(
            f"resume: {path} holds weights alone (as best.ckpt does); give the last.ckpt of a run"
        )
    saved = checkpoint.get("config")
    if not isinstance(saved, Mapping):
        log.warning("resume: %s does not say its config, so it cannot be compared with this one", path)
    elif not config.resume_allow_changes:
        differing = differing_keys(comparable(saved), comparable(as_dict(config)))
        if differing:
            raise LSHFMError(
                f"resume: {path} is of a run with other settings: {first_few(differing, 8)}. "
                "Resume with the same ones, or give resume_allow_changes=true"
            )
    else:
        _refuse_other_optimizer(saved, config, path)
    if data is not None:
        _refuse_other_data(checkpoint, path, config, data)
    return checkpoint


def _refuse_other_data(checkpoint: Mapping[str, Any], path: Path, config: DictConfig, data: RunData) -> None:
    before = checkpoint.get(FINGERPRINT_KEY)
    if not isinstance(before, Mapping):
        # A checkpoint of before there were fingerprints says its classes alone.
        detector = checkpoint.get("detector")
        classes = detector.get("class_names") if isinstance(detector, Mapping) else None
        before = {"classes": list(classes)} if isinstance(classes, list | tuple) else {}
        batches = _batches_per_epoch(checkpoint)
        if batches is not None and _has_all_batches(config):
            before["batches"] = batches
        compared = first_few({"classes": "class names", "batches": "batches an epoch"}[key] for key in before)
        log.warning(
            "resume: %s does not say what its data were; compared of them: %s", path, compared or "nothing"
        )
    stored = checkpoint.get("data")
    refuse_other_data(
        f"resume: {path}",
        before,
        data,
        root=stored.get("root") if isinstance(stored, Mapping) else None,
        allow=config.resume_allow_changes,
        way_out="Resume with the data it was on, or give resume_allow_changes=true",
    )


def _batches_per_epoch(checkpoint: Mapping[str, Any]) -> int | None:
    """How many batches an epoch had, None where a checkpoint does not tell or was not written at the end of one."""
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if not progress["is_last_batch"]:
            return None
        return int(progress["current"]["completed"])
    except (KeyError, TypeError, ValueError):
        return None


def _has_all_batches(config: DictConfig) -> bool:
    """Whether an epoch of this one process is the whole training set."""
    trainer = config.trainer
    limit = trainer.limit_train_batches
    # To Lightning 1 is one batch, and 1.0 all of them.
    is_whole_set = (
        limit is None or (isinstance(limit, float) and limit == 1)
    ) and not trainer.overfit_batches
    return is_whole_set and str(trainer.devices) == "1" and trainer.num_nodes == 1 and not started_outside()


def _refuse_other_optimizer(saved: Mapping[str, Any], config: DictConfig, path: Path) -> None:
    """Stop where torch would load the optimizer's state, and miss some of it in the first step."""
    schedule, now = saved.get("schedule"), config.schedule.optimizer
    before = schedule.get("optimizer") if isinstance(schedule, Mapping) else None
    if not isinstance(before, Mapping):
        return
    for key in STATE_OF_OPTIMIZER:
        if (before.get(key) or False) != (now.get(key) or False):
            raise LSHFMError(
                f"resume: {path} has the state of an optimizer with {key} {before.get(key)}, which one with {key} "
                f"{now.get(key)} cannot go on with. Keep schedule.optimizer.{key}, or start a new run"
            )
