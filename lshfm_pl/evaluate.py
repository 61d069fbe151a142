"""`python -m lshfm_pl.evaluate`: the figures of a checkpoint, from the file alone."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("evaluate")  # before the imports below, which take seconds

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lshfm_pl.cli import as_dict, changed_data, refuse_no_weights
from lshfm_pl.cost import EvaluationTimer, detector_cost
from lshfm_pl.data import DetectionDataModule, build_datamodule
from lshfm_pl.detectors import Detector, load_detector, load_torchvision_detector
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.config import EVALUATION_SETTINGS
from lshfm_pl.detectors.contents import described_class_names
from lshfm_pl.errors import LSHFMError, few, printable
from lshfm_pl.mimic import make_tap
from lshfm_pl.mimic.calibration import AGREEMENT_DESCRIPTIONS, collect_features, feature_agreement
from lshfm_pl.modules import DetectionModule
from lshfm_pl.reporting.tables import METRIC_DESCRIPTIONS
from lshfm_pl.results import (
    RECORD_FILE,
    RESULTS_FILE,
    VALIDATION_AS_TEST,
    code_version,
    refuse_folder_of_run,
    test_set_summary,
    write_json,
)
from lshfm_pl.runs.meeting import Meeting, meeting
from lshfm_pl.train import load_teacher

__all__ = ["evaluate"]

log = logging.getLogger(__name__)

LONGEST_NAME = 100
"""Characters of a class's name in a table."""


def evaluate(config: DictConfig) -> dict[str, float]:
    """Figures (0–100) of `config.checkpoint` (or `weights`) on the test set, also in `<output_dir>/results.json`.

    Raises:
        LSHFMError: a file that does not load, data that are not there, classes that differ, or a folder that holds
            a training run, whose results would be replaced.
    """
    refuse_folder_of_run(Path(config.output_dir))
    with meeting(config.trainer) as met:
        return _evaluate(config, met)


def _evaluate(config: DictConfig, met: Meeting) -> dict[str, float]:
    pl.seed_everything(config.seed, workers=True, verbose=False)
    datamodule, data_settings = load_data(config)
    class_names = datamodule.class_names
    detector = load_checkpoint(config, class_names)
    log.info("%s: %s", detector.config["name"], detector.load_report)
    if class_names != detector.class_names:
        raise LSHFMError(
            f"data: expected the checkpoint's classes {few(detector.class_names, 20)}; "
            f"found {few(class_names, 20)}"
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
        cost = detector_cost(detector, datamodule.test_set[0][0])
        also_validation = is_validation_of_checkpoint(config, datamodule)
        results = {
            "status": "done",
            "checkpoint": str(config.checkpoint or config.weights),
            "model": detector.config["name"],
            "data": data_settings,
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
            print(f"\nThese are figures of {VALIDATION_AS_TEST}.")
        if agreement is not None:
            print(f"\n{agreement_table(agreement)}")
        log.info("results in %s", Path(config.output_dir) / RESULTS_FILE)
    return module.results


def load_checkpoint(config: DictConfig, class_names: Sequence[str]) -> Detector:
    """The detector to evaluate, with the evaluation settings that the command line changes.

    Raises:
        LSHFMError: not one of `checkpoint` and `weights` is given, or it does not load.
    """
    model = as_dict(config.get("model"))
    evaluation = {key: config[key] for key in EVALUATION_SETTINGS}
    refuse_no_weights(config)
    if config.weights is not None:
        return load_torchvision_detector(config.weights, model, evaluation=evaluation)
    return load_detector(
        config.checkpoint, config=model, class_names=class_names, which=config.which, evaluation=evaluation
    )


def measure_agreement(
    config: DictConfig, detector: Detector, datamodule: DetectionDataModule
) -> dict[str, float] | None:
    """How alike the features of `config.teacher` and the detector are on test images; None without a teacher.

    Raises:
        LSHFMError: the teacher does not load, has other classes or features of another length.
    """
    if config.teacher.checkpoint is None and config.teacher.weights is None:
        return None
    teacher = load_teacher(config, datamodule.class_names)
    make_tap(detector, teacher)  # refuses what cannot be compared
    device = "cuda" if torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu") else "cpu"
    sample = datamodule.sample_dataloader(config.teacher.num_images, "test")
    return feature_agreement(*collect_features([detector.to(device), teacher.to(device)], sample))


def load_data(config: DictConfig) -> tuple[DetectionDataModule, dict[str, Any]]:
    """The data of `data=…`, or of what the checkpoint was trained with, ready for testing; and their config.

    Without `data=…` single keys, such as `data.root`, change those of the checkpoint. The classes are the
    checkpoint's, where it says them: new data may name fewer, or in another order.

    Raises:
        LSHFMError: nothing says what data, or they are not there.
    """
    refuse_no_weights(config)
    data = as_dict(config.get("data"))
    stored: Any = None if config.checkpoint is None else read_checkpoint(config.checkpoint)
    if "_target_" in data:
        datamodule: DetectionDataModule = instantiate(config.data)
    else:
        if not isinstance(stored, dict) or not isinstance(stored.get("data"), dict):
            raise LSHFMError(
                f"{config.checkpoint or config.weights} does not say what data it was trained with: "
                "give data=… as in training, such as data=voc_folder data.root=<folder>"
            )
        data = changed_data(stored["data"], data)
        datamodule = build_datamodule(data, drawn_below=config.output_dir)
    if (class_names := described_class_names(stored)) is not None:
        datamodule.use_class_names(class_names)
    datamodule.prepare_data()
    datamodule.setup("test")
    return datamodule, data


def is_validation_of_checkpoint(config: DictConfig, datamodule: DetectionDataModule) -> bool:
    """Whether the test images are those by which the checkpoint may have been chosen."""
    if "_target_" not in as_dict(config.get("data")):
        return datamodule.test_is_validation
    stored: Any = None if config.checkpoint is None else read_checkpoint(config.checkpoint)
    if not isinstance(stored, dict) or not isinstance(stored.get("data"), dict):
        return False
    try:
        return datamodule.tests_on_validation_of(build_datamodule(stored["data"]))
    except LSHFMError:  # its own data are gone
        return False


def metrics_table(metrics: dict[str, float]) -> str:
    """The figures as Markdown: one table of the means and what they mean, one with a line a class.

    Classes without ground truth are named below the second.
    """
    lines = ["| all classes | | |", "|---|---:|---|"]
    for name, description in METRIC_DESCRIPTIONS.items():
        lines.append(f"| {name} | {_cell(metrics[name])} | {description} |")
    columns = ("AP", "AP50", "voc07_AP", "voc_AP")
    lines += ["", "| class | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    classes = [key.removeprefix("AP/") for key in metrics if key.startswith("AP/")]
    absent = [name for name in classes if math.isnan(metrics[f"AP/{name}"])]
    for name in classes:
        if name not in absent:
            cells = [_cell(metrics[f"{column}/{name}"]) for column in columns]
            lines.append(f"| {_name(name)} | {' | '.join(cells)} |")
    if absent:
        lines += ["", f"Without ground truth: {', '.join(map(_name, absent))}"]
    return "\n".join(lines)


def agreement_table(agreement: dict[str, float]) -> str:
    """What `feature_agreement` returns as Markdown."""
    lines = ["| student and teacher features | | |", "|---|---:|---|"]
    for name, description in AGREEMENT_DESCRIPTIONS.items():
        lines.append(f"| {name} | {agreement[name]:.4g} | {description} |")
    return "\n".join(lines)


def _name(class_name: str) -> str:
    """The name of a class as a cell of the table."""
    name = printable(class_name)
    return (name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…").replace("|", "\\|")


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


@cli.main("evaluate")
def main(config: DictConfig) -> None:
    """Evaluate one checkpoint."""
    OmegaConf.resolve(config)
    evaluate(config)
