"""`python -m lshfm_pl.train`: train a detector, plainly or mimicking a teacher."""

import logging
import subprocess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lshfm_pl import cli
from lshfm_pl.callbacks import StepTimer
from lshfm_pl.data import VOCDataModule
from lshfm_pl.detectors import Detector, build_detector, load_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import build_mimic_head, mimic_size
from lshfm_pl.modules import DetectionModule, DistillationModule, count_parameters
from lshfm_pl.optim import Schedule
from lshfm_pl.results import run_results, write_json

__all__ = ["train"]

log = logging.getLogger(__name__)


def train(config: DictConfig) -> dict[str, Any]:
    """One run: its folder is `config.output_dir`; returns what it writes to `results.json` there.

    Raises:
        LSHFMError: anything that the config, the data or a checkpoint got wrong.
    """
    pl.seed_everything(config.seed, workers=True, verbose=False)
    output_dir = Path(config.output_dir)
    data_config = as_dict(config.data)
    datamodule: VOCDataModule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    student = build_detector(
        as_dict(config.model),
        num_classes=len(datamodule.class_names) + 1,
        class_names=datamodule.class_names,
    )
    schedule = Schedule(**as_dict(config.schedule))
    module = DetectionModule(student, schedule, data_config=data_config)
    teacher: Detector | None = None
    if config.distill.name != "none":
        teacher = load_teacher(config, datamodule.class_names)
        settings = as_dict(config.distill)
        check_teacher = settings.pop("check_teacher")
        head = build_mimic_head(settings.pop("name"), mimic_size(teacher), **settings)
        module = DistillationModule(student, teacher, head, schedule, data_config=data_config)
    report_load(student, teacher, datamodule)

    callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback is not None]
    loggers = [instantiate(logger) for logger in config.logger.values() if logger is not None]
    trainer: pl.Trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
    teacher_metrics: dict[str, float] | None = None
    if teacher is not None and check_teacher:
        teacher_metrics = measure_teacher(trainer, teacher, datamodule)
    # Anew, so that the run does not depend on what was built and measured before it.
    pl.seed_everything(config.seed, workers=True, verbose=False)
    trainer.fit(module, datamodule=datamodule, ckpt_path=config.resume)
    trainer.test(module, datamodule=datamodule, verbose=False)

    timer = next((callback for callback in callbacks if isinstance(callback, StepTimer)), None)
    results = run_results(
        config,
        metrics=module.results,
        teacher_metrics=teacher_metrics,
        timing=timer.summary() if timer else {},
        world_size=trainer.world_size,
    )
    if trainer.is_global_zero:
        write_json(results, output_dir / "results.json")
        figures = ", ".join(f"{name} {module.results[name]:.1f}" for name in ("AP", "AP50", "voc07_mAP"))
        log.info("done: %s; results in %s", figures, output_dir / "results.json")
    return results


def load_teacher(config: DictConfig, class_names: tuple[str, ...]) -> Detector:
    """The detector in `teacher.checkpoint`; `teacher.detector` is its config where the file does not say it.

    Raises:
        LSHFMError: no checkpoint given, a file that does not load, or other classes than the data's.
    """
    path = config.teacher.checkpoint
    if path is None:
        raise LSHFMError(
            f"distill={config.distill.name} needs a teacher: give teacher.checkpoint=<file> "
            "(best.ckpt or last.ckpt of a run, or a published file)"
        )
    teacher = load_detector(path, config=as_dict(config.teacher.detector), class_names=class_names)
    if tuple(teacher.class_names) != tuple(class_names):
        raise LSHFMError(
            f"teacher.checkpoint: expected a teacher of the data's classes {', '.join(class_names)}; "
            f"{path} has {', '.join(teacher.class_names)}"
        )
    return teacher


def report_load(student: Detector, teacher: Detector | None, datamodule: VOCDataModule) -> None:
    """Log which weights went where, what is trainable, and how much data there is."""
    trainable, frozen = count_parameters([student])
    log.info(
        "student: %s, backbone weights: %s; %s parameters trainable, %s frozen",
        student.config["name"],
        student.backbone_report,
        f"{trainable:,}",
        f"{frozen:,}",
    )
    if teacher is not None:
        frozen = count_parameters([teacher])[1]
        log.info(
            "teacher: %s, %s; %s parameters, all frozen",
            teacher.config["name"],
            teacher.load_report,
            f"{frozen:,}",
        )
    for split, counts in datamodule.describe().items():
        log.info("data, %s: %s", split, counts)


def measure_teacher(trainer: pl.Trainer, teacher: Detector, datamodule: VOCDataModule) -> dict[str, float]:
    """The teacher's own figures on the validation set, so that one that was not loaded shows at once."""
    measured = DetectionModule(teacher, name="teacher")
    trainer.validate(measured, datamodule=datamodule, verbose=False)
    log.info(
        "teacher on the validation set: AP %.1f, AP50 %.1f", measured.results["AP"], measured.results["AP50"]
    )
    if measured.results["AP50"] < 1:
        log.warning(
            "the teacher detects nothing (AP50 below 1): was it trained on these classes and this data?"
        )
    return measured.results


def as_dict(config: DictConfig | None) -> dict[str, Any]:
    """A config node as plain Python, interpolations resolved; {} for none."""
    return {} if config is None else dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


@cli.main("train")
def main(config: DictConfig) -> None:
    """One run, or one job of a sweep."""
    if cli.in_multirun() and config.trainer.devices not in (1, "1", "auto"):
        # Lightning starts its other processes by repeating the command line, which here is the whole sweep.
        command = cli.job_command(Path(config.output_dir))
        if subprocess.run(command, check=False).returncode != 0:
            raise LSHFMError(f"the job in {config.output_dir} failed; see its output above")
        return
    train(config)


if __name__ == "__main__":
    main()
