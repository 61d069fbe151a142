"""`python -m lshfm_pl.evaluate`: evaluate a checkpoint on a test set."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("evaluate")  # before the imports below, which take seconds

import logging
from dataclasses import asdict
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lshfm_pl.data import DetectionDataModule
from lshfm_pl.detectors import Detector
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import write_json
from lshfm_pl.inference.exported import cost_of, is_exported
from lshfm_pl.inference.loading import is_validation_of_checkpoint, load_checkpoint, load_data
from lshfm_pl.kernels.switches import set_switches, switches
from lshfm_pl.mimic import make_tap
from lshfm_pl.mimic.calibration import AGREEMENT_DESCRIPTIONS, collect_features, feature_agreement
from lshfm_pl.reporting.metric_table import metrics_table
from lshfm_pl.runs.meeting import Meeting, meeting
from lshfm_pl.runs.result_files import RECORD_FILE, RESULTS_FILE, refuse_folder_of_run
from lshfm_pl.runs.results import VALIDATION_AS_TEST, code_version, test_set_summary
from lshfm_pl.seeding import seed_everything
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.build import load_teacher
from lshfm_pl.training.callbacks.timing import EvaluationTimer

__all__ = ["evaluate"]

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluate `config.checkpoint` (or `weights`) on the test set, and write `<output_dir>/results.json`.

    Returns:
        The metrics, 0–100.

    Raises:
        LSHFMError: a file does not load, the data do not exist, classes differ, or the output folder holds a
            training run, whose results would be overwritten.
    """
    refuse_folder_of_run(Path(config.output_dir))
    with meeting(config.trainer) as met:
        return _evaluate(config, met)


def _evaluate(config: DictConfig, met: Meeting) -> dict[str, float]:
    set_switches(cli.as_dict(config.get("kernels")))
    seed_everything(config.seed)
    datamodule, data_settings = load_data(config)
    class_names = datamodule.class_names
    detector = load_checkpoint(config, class_names)
    log.info("%s: %s", detector.config["name"], detector.load_report)
    if class_names != detector.class_names:
        raise LSHFMError(
            f"data: expected the checkpoint's classes {first_few(detector.class_names, 20)}; "
            f"found {first_few(class_names, 20)}"
        )
    agreement = measure_agreement(config, detector, datamodule)
    module = DetectionModule(detector)
    timer = EvaluationTimer()
    trainer: pl.Trainer = instantiate(
        config.trainer, logger=False, enable_checkpointing=False, callbacks=[timer]
    )
    met.ready()
    trainer.test(module, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        assert module.record is not None
        cost = cost_of(detector, datamodule.test_set[0][0])
        also_validation = is_validation_of_checkpoint(config, datamodule)
        results = {
            "status": "done",
            "checkpoint": str(config.checkpoint or config.weights),
            "model": detector.config["name"],
            "data": data_settings,
            "kernels": asdict(switches()),
            "test_set": test_set_summary(module.record, also_validation=also_validation),
            "metrics": module.results,
            "agreement": agreement,
            "cost": {**cost, "ms_per_image": timer.ms_per_image()},
            **code_version(),
        }
        module.record.save(Path(config.output_dir) / RECORD_FILE)
        write_json(results, Path(config.output_dir) / RESULTS_FILE)
        print(metrics_table(module.results))
        if also_validation:
            print(f"\nMeasured on {VALIDATION_AS_TEST}.")
        if agreement is not None:
            print(f"\n{agreement_table(agreement)}")
        log.info("results in %s", Path(config.output_dir) / RESULTS_FILE)
    return module.results


def measure_agreement(
    config: DictConfig, detector: Detector, datamodule: DetectionDataModule
) -> dict[str, float] | None:
    """Measure how similar the features of `config.teacher` and the detector are on test images.

    Returns:
        The measures of `feature_agreement`; None without a teacher.

    Raises:
        LSHFMError: the teacher does not load, or has features of another length.
    """
    if config.teacher.checkpoint is None and config.teacher.weights is None:
        return None
    if is_exported(config.checkpoint):
        raise LSHFMError(
            f"teacher: {config.checkpoint} is an exported file, whose features cannot be compared with those of a "
            "teacher. Leave the teacher out, or give the checkpoint"
        )
    teacher = load_teacher(config, datamodule.class_names)
    make_tap(detector, teacher)  # raises an error if the two cannot be compared
    device = "cuda" if torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu") else "cpu"
    sample = datamodule.sample_dataloader(config.teacher.num_images, "test")
    return feature_agreement(*collect_features([detector.to(device), teacher.to(device)], sample))


def agreement_table(agreement: dict[str, float]) -> str:
    """The result of `feature_agreement` as a Markdown table."""
    lines = ["| student and teacher features | | |", "|---|---:|---|"]
    for name, description in AGREEMENT_DESCRIPTIONS.items():
        lines.append(f"| {name} | {agreement[name]:.4g} | {description} |")
    return "\n".join(lines)


@cli.main("evaluate")
def main(config: DictConfig) -> None:
    """Evaluate one checkpoint."""
    OmegaConf.resolve(config)
    evaluate(config)
