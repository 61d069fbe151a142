"""The smallest student of each family with an untrained teacher, built from the configs of training."""

from types import SimpleNamespace

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from small_detectors import TEACHER_OF, model_file

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.detectors import build_detector
from lshfm_pl.detectors.architecture import architecture
from lshfm_pl.detectors.checkpoint import detector_description
from lshfm_pl.training.build import build_module

_TINY = sorted((path.stem for path in (CONFIG_DIR / "model").glob("[!_]*_tiny.yaml")), reverse=True)
STUDENT_OF = {name.partition("_")[0]: name for name in _TINY}
"""Family → the first of its smallest detectors."""
EVERY_FAMILY = sorted(STUDENT_OF)
FAMILIES = [
    name
    for name in EVERY_FAMILY
    if "penultimate" in architecture(model_file(STUDENT_OF[name])["architecture"]).points
]
"""Those with features at `penultimate`."""
CHOICES = sorted(path.stem for path in (CONFIG_DIR / "distill").glob("[!_]*.yaml"))
"""What `distill` may be."""
LOSSES = [name for name in CHOICES if name != "none"]
AT_PYRAMID = "distill.point=pyramid"
"""Setting of the losses that are at `penultimate` by default."""
POINTS = {"frs": "class_maps", "crosskd": "dense_head"}
"""Points of losses that not every family has."""
WITHOUT_TOWERS = {"fasterrcnn"}
"""Families with a dense head that is no pair of towers."""
LOSSES_OF = {
    name: [
        loss
        for loss in LOSSES
        if POINTS.get(loss, "logits") in architecture(model_file(STUDENT_OF[name])["architecture"]).points
        and not (loss == "crosskd" and name in WITHOUT_TOWERS)
    ]
    for name in EVERY_FAMILY
}


def write_teachers(folder):
    """The checkpoint of an untrained teacher of each family."""
    files = {}
    for family in EVERY_FAMILY:
        name = TEACHER_OF.get(STUDENT_OF[family], STUDENT_OF[family])
        torch.manual_seed(1)
        teacher = build_detector(
            model_file(name), num_classes=len(SHAPE_CLASSES) + 1, class_names=SHAPE_CLASSES
        )
        files[family] = folder / f"{family}.ckpt"
        state = {f"detector.{key}": value for key, value in teacher.state_dict().items()}
        torch.save({"state_dict": state, "detector": detector_description(teacher)}, files[family])
    return files


def composed_command(command, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(command, list(overrides))


def composed(*overrides):
    config = composed_command("train", "data=shapes", "schedule=quickstart", *overrides)
    _with_few_hashes(config)
    return config


def _with_few_hashes(node):
    """64 hashes for every loss that has hashes."""
    for key in node:
        if key == "num_hashes":
            node[key] = 64
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _with_few_hashes(node[key])


def settings_of(family, distill):
    """What a loss needs to be learned from by a family that has no `penultimate`, and the coarsest maps."""
    if family in FAMILIES:
        return []
    if distill == "fbkd":
        return ["distill.poolings=[2,2,1,1]"]
    return [AT_PYRAMID] if distill in ("l2", "lsh", "lshl2") else []


def built(family, distill, teacher_files, *overrides):
    config = composed(
        f"model={STUDENT_OF[family]}",
        f"distill={distill}",
        f"teacher.checkpoint={teacher_files[family]}",
        "output_dir=unused",
        *settings_of(family, distill),
        *overrides,
    )
    data = SimpleNamespace(
        class_names=SHAPE_CLASSES, derived_settings=dict, unlabelled=[], train_labels="annotations"
    )
    return build_module(config, data)
