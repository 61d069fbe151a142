"""A training run: from its config to `results.json`."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lshfm_pl.cli import (
    as_dict,
    is_main_process,
    needs_teacher,
    refuse_missing_teacher,
    refuse_unlabelled_alone,
)
from lshfm_pl.data.train_labels import TEACHER
from lshfm_pl.detectors.checkpoint import take_over_norm_eps
from lshfm_pl.detectors.cost import detector_cost
from lshfm_pl.detectors.relabelled import relabelled
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_atomically, write_json
from lshfm_pl.kernels.switches import set_switches
from lshfm_pl.runs.data_of_run import RunData
from lshfm_pl.runs.folder import refuse_full_disk, refuse_unwritable, training_state_bytes
from lshfm_pl.runs.lock import lock_folder
from lshfm_pl.runs.logs import START, rewind_logs
from lshfm_pl.runs.meeting import Meeting, meeting
from lshfm_pl.runs.processes import end_with_parent, report_lost_processes, started_by_lightning
from lshfm_pl.runs.result_files import LAST, RECORD_FILE, RESULTS_FILE
from lshfm_pl.runs.results import VALIDATION_AS_TEST, run_results
from lshfm_pl.runs.resumable import read_resumable
from lshfm_pl.runs.resume import AUTO, choose_folder, finished_results, resolve_resume, set_results_aside
from lshfm_pl.seeding import seed_everything
from lshfm_pl.signals import StopSignals
from lshfm_pl.training import DetectionModule, DistillationModule
from lshfm_pl.training.batch_size import set_batch_size
from lshfm_pl.training.build import (
    build_module,
    inherit_report,
    inherited_from,
    make_schedule,
    refuse_other_tensors,
    report_load,
    report_unlabelled,
    start_report,
    stored_data_config,
)
from lshfm_pl.training.callbacks.early_stopping import StopEarly
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint, RunRecord
from lshfm_pl.training.callbacks.restoration import Restoration, refuse_damaged_state
from lshfm_pl.training.callbacks.timing import EvaluationTimer, StepTimer
from lshfm_pl.training.faster import make_faster, refuse_unfit_graphs
from lshfm_pl.training.loggers import build_loggers, close_loggers
from lshfm_pl.training.optim import build_optimizer
from lshfm_pl.training.precision import PRECISIONS
from lshfm_pl.training.teacher_check import (
    compare_with_start,
    measure_teacher,
    report_labels,
    report_other_data,
)
from lshfm_pl.training.without_validation import refuse_early_stopping, usable_callbacks

__all__ = ["refuse_unfit_settings", "train"]

INHERITED_FILE = "inherited_weights.csv"
"""File in the folder of a run with `student.inherit`: it says for each tensor whether it was taken, or why not."""

LOADED_FILE = "loaded_weights.csv"
"""File in the folder of a run that started from `model.weights`: a row for each tensor says how it was loaded."""

log = logging.getLogger(__name__)


def train(config: DictConfig) -> dict[str, Any]:
    """Do one run in the folder `config.output_dir`; returns the content of its `results.json`.

    Raises:
        LSHFMError: there is an error in the config, the data or a checkpoint.
    """
    with meeting(config.trainer) as met:
        return _train_together(config, met)


def _train_together(config: DictConfig, met: Meeting) -> dict[str, Any]:
    if not is_main_process():  # the first process logs the same; only warnings and errors may differ
        logging.getLogger("lshfm_pl").setLevel(logging.WARNING)
    set_switches(as_dict(config.get("kernels")))
    seed_everything(config.seed)
    data = RunData(config)
    choose_folder(config, data)
    with contextlib.ExitStack() as stack:
        output_dir = Path(config.output_dir)
        if is_main_process():
            refuse_unwritable(output_dir)
            stack.enter_context(lock_folder(output_dir))
        # Decided while the lock is held: before that another process may have started or finished this run.
        checkpoint = resolve_resume(config)
        if config.resume == AUTO and (finished := finished_results(config, data)) is not None:
            return finished
        refuse_unfit_settings(config, checkpoint)
        return _train(config, data, checkpoint, met)


def _train(config: DictConfig, data: RunData, checkpoint: Path | None, met: Meeting) -> dict[str, Any]:
    """Do the run, from the start or from a checkpoint, in a folder that is locked by this process."""
    datamodule = data.datamodule
    refuse_early_stopping(config, datamodule)
    if config.get("auto_batch_size"):
        set_batch_size(config, datamodule, checkpoint)
    module = build_module(config, datamodule, is_resumed=checkpoint is not None)
    has_validation = module.has_validation = datamodule.has_set("val")
    teacher = module.teacher if isinstance(module, DistillationModule) else None
    report_load(module.detector, teacher, role=config.role, checkpoint=checkpoint)
    report_unlabelled(datamodule, role=config.role)
    if teacher is not None and checkpoint is None:
        report_other_data(teacher, stored_data_config(config, datamodule))
    record = RunRecord(as_dict(config), data.fingerprint)
    record.teacher = teacher.config["name"] if teacher is not None else inherited_from(module.detector)
    log_position: dict[str, Any] | None = START
    restoration: Restoration | None = None
    if checkpoint is not None:
        saved = read_resumable(checkpoint, config, data)
        refuse_damaged_state(checkpoint, saved)
        restoration = Restoration(checkpoint, saved)
        refuse_other_tensors(module, saved, checkpoint)
        if config.model.get("weights") is not None:
            take_over_norm_eps(module.detector, saved.get("detector"))
        record.teacher, record.teacher_metrics = saved.get("teacher"), saved.get("teacher_metrics")
        log_position = saved.get("logs")
        del saved

    with contextlib.ExitStack() as stack:
        if is_main_process():
            _prepare_folder(config, data, module)
            rewind_logs(Path(config.output_dir), log_position)
        callbacks = usable_callbacks(
            [instantiate(callback) for callback in config.callbacks.values() if callback is not None],
            datamodule,
        )
        loggers = build_loggers(config.logger)
        stack.callback(close_loggers, loggers)
        evaluation_timer = EvaluationTimer()
        if restoration is not None:
            callbacks.append(restoration)
        trainer: pl.Trainer = instantiate(
            config.trainer,
            callbacks=[*callbacks, record, evaluation_timer],
            logger=loggers,
            **({} if has_validation else {"limit_val_batches": 0}),
        )
        make_faster(config, module.detector, teacher, trainer.strategy.root_device)
        last = next((callback for callback in callbacks if isinstance(callback, LastCheckpoint)), None)
        signals = StopSignals() if last is None else last.signals
        stack.enter_context(signals)
        if last is not None:
            stack.enter_context(last.add_resume_note())
        if started_by_lightning():
            end_with_parent(signals)
        met.ready()
        stack.enter_context(report_lost_processes(signals))
        if (
            teacher is not None
            and has_validation
            and config.distill.get("check_teacher", True)
            and record.teacher_metrics is None
            and (measured := relabelled(teacher, datamodule.class_names)) is not None
        ):
            record.teacher_metrics = measure_teacher(trainer, measured, datamodule)
            if start_report(module.detector) is not None:
                compare_with_start(trainer, module.detector, record.teacher_metrics, datamodule)
        if (
            isinstance(module, DistillationModule)
            and module.labeller is not None
            and datamodule.train_labels == TEACHER
            and config.distill.get("check_teacher", True)
            and restoration is None
        ):
            report_labels(trainer, module.labeller, datamodule)
        with contextlib.nullcontext() if restoration is None else restoration.watching():
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
        if has_test := datamodule.has_set("test"):
            trainer.test(module, datamodule=datamodule, verbose=False)
            assert module.record is not None
        timer = next((callback for callback in callbacks if isinstance(callback, StepTimer)), None)
        seen = datamodule.test_set if has_test else datamodule.train_set.without_transforms()
        cost = detector_cost(module.detector, seen[0][0])
        results = run_results(
            config,
            metrics=module.results if has_test else {},
            teacher=record.teacher if teacher is None else teacher.config["name"],
            teacher_metrics=record.teacher_metrics,
            timing=timer.summary() if timer else {},
            world_size=trainer.world_size,
            record=module.record,
            also_validation=datamodule.test_is_validation,
            found_data=datamodule.derived_settings(),
            fingerprint=data.fingerprint,
            cost={**cost, "ms_per_image": evaluation_timer.ms_per_image()},
            stopped_early=next(
                (callback.summary() for callback in callbacks if isinstance(callback, StopEarly)), None
            ),
            weights=None if module.averaged is None else module.averaged.summary(),
        )
        if trainer.is_global_zero:
            _write_results(Path(config.output_dir), module, results)
    return results


def _prepare_folder(config: DictConfig, data: RunData, module: DetectionModule) -> None:
    """Check that the folder has room, and write what is known before the training.

    Raises:
        LSHFMError: the folder cannot be written, or has too little space.
    """
    output_dir = Path(config.output_dir)
    refuse_full_disk(
        output_dir,
        training_state_bytes(
            module, config.schedule.optimizer.name, is_averaged=config.schedule.get("ema_decay") is not None
        ),
    )
    set_results_aside(output_dir)
    write_atomically(output_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode("utf-8"))
    data.write(output_dir)
    if (report := start_report(module.detector)) is not None:
        write_atomically(output_dir / LOADED_FILE, report.table().encode("utf-8"))
    if (report := inherit_report(module.detector)) is not None:
        write_atomically(output_dir / INHERITED_FILE, report.table().encode("utf-8"))


def _write_results(output_dir: Path, module: DetectionModule, results: dict[str, Any]) -> None:
    """Write the evaluation record and `results.json`, and log the most important metrics."""
    if module.record is not None:
        module.record.save(output_dir / RECORD_FILE)
    write_json(results, output_dir / RESULTS_FILE)
    if module.record is None:
        log.info(
            "done: there is no test set, so there are no figures. Labelled pictures give some: "
            "python -m lshfm_pl.evaluate checkpoint=%s data=auto data.root=<folder>",
            output_dir / "checkpoints" / LAST,
        )
        return
    figures = ", ".join(f"{name} {module.results[name]:.1f}" for name in ("AP", "AP50", "voc07_mAP"))
    if module.averaged is not None:
        log.info("tested: the weights %s", module.averaged.told())
    tested_on = f"on {VALIDATION_AS_TEST}, " if results["test_set"]["also_validation"] else ""
    log.info("done: %s%s; results in %s", tested_on, figures, output_dir / RESULTS_FILE)


def refuse_unfit_settings(config: DictConfig, checkpoint: Path | None) -> None:
    """Check settings before anything is built or written.

    Raises:
        LSHFMError: the folder holds a run already, the teacher's file does not exist, precision or norm are not
            supported, or the optimizer does not take its arguments.
    """
    last = Path(config.output_dir) / "checkpoints" / LAST
    is_of_another = checkpoint is None or checkpoint.resolve().parent != last.resolve().parent
    if is_of_another and last.exists() and is_main_process():
        raise LSHFMError(
            f"{config.output_dir} holds a run already: resume it with resume=auto "
            f"hydra.run.dir={config.output_dir}, or give another hydra.run.dir"
        )
    if config.trainer.sync_batchnorm and config.model.get("norm") == "bn_frozen_stats":
        raise LSHFMError(
            "trainer.sync_batchnorm: expected false with model.norm=bn_frozen_stats, found true, which would train "
            "the frozen statistics. There is nothing to synchronise"
        )
    schedule = make_schedule(config)
    build_optimizer([torch.nn.Parameter(torch.zeros(1, 1))], schedule, schedule.reference_batch_size)
    if config.trainer.precision is not None and str(config.trainer.precision) not in PRECISIONS:
        raise LSHFMError(
            f"trainer.precision: expected 32-true, bf16-mixed or 16-mixed, found {config.trainer.precision}: "
            "the mimic loss and the boxes need float32 weights"
        )
    refuse_unlabelled_alone(config)
    refuse_unfit_graphs(config)
    # A plain student that is resumed has what it inherited.
    if config.distill.name != "none" or (needs_teacher(config) and checkpoint is None):
        refuse_missing_teacher(config)
