"""Each family of detectors over a small backbone of timm, with random weights."""

import copy

import torch
from distilled_students import AT_PYRAMID, composed_command
from small_detectors import model_file

from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.detectors import build_detector, detector_checkpoint
from lshfm_pl.detectors.architecture import architecture
from lshfm_pl.mimic import build_losses
from lshfm_pl.training import DistillationModule

BODY, TEACHERS_BODY = "timm/mobilenetv2_035", "timm/test_efficientnet"

_FILE_OF = {
    "fasterrcnn": "fasterrcnn_resnet10fpn_tiny",
    "retinanet": "retinanet_resnet10fpn_tiny",
    "fcos": "fcos_resnet10fpn_tiny",
    "ssd": "ssdlite_mobilenetv3_tiny",
    "ssdlite": "ssdlite_mobilenetv3_tiny",
}
"""Family → the file of `conf/model` whose backbone is replaced. `ssd` is an SSD with the head of SSD300."""

FAMILIES_OVER_TIMM = tuple(_FILE_OF)
WITH_PENULTIMATE_OVER_TIMM = tuple(
    family
    for family, file in _FILE_OF.items()
    if "penultimate" in architecture(model_file(file)["architecture"]).points
)


def changes_of(family, body=BODY):
    """What a detector of a family over `body` has other than the file of `conf/model`."""
    of_head = {} if family in WITH_PENULTIMATE_OVER_TIMM else {"reduced_tail": False, "head": family}
    return {"name": f"{family}_{body.partition('/')[2]}", "backbone": body, "width": 1.0, **of_head}


def overrides_of(family, body=BODY, key="model"):
    """The overrides of a command that make `model` (or another key) a detector of a family over `body`."""
    changes = [f"{key}.{name}={value}" for name, value in changes_of(family, body).items()]
    return [f"{'' if key == 'model' else 'model@'}{key}={_FILE_OF[family]}", *changes]


def detector_over_timm(family, body=BODY, seed=0):
    """A detector with the classes of the shapes."""
    torch.manual_seed(seed)
    config = {**model_file(_FILE_OF[family]), **changes_of(family, body)}
    return build_detector(config, num_classes=len(SHAPE_CLASSES) + 1, class_names=SHAPE_CLASSES)


def write_teacher(folder, family):
    """The file of an untrained teacher."""
    path = folder / f"{family}.ckpt"
    torch.save(detector_checkpoint(detector_over_timm(family, TEACHERS_BODY, seed=1)), path)
    return path


def settings_of(family):
    """Loss → its overrides, for a teacher and a student of the family."""
    at_pyramid = [] if family in WITH_PENULTIMATE_OVER_TIMM else [AT_PYRAMID]
    return {"l2": at_pyramid, "lshl2": at_pyramid, "kd": []}


def mimicking(student, teacher, **terms):
    """The module that trains `student` by several losses, given with their settings."""
    losses = build_losses("sum", teacher, student=student, terms=terms)
    return DistillationModule(student, copy.deepcopy(teacher), losses)


def benchmark_of(family, *overrides):
    """The config of a benchmark of a student and a teacher of the family, on two images of 128 × 128 pixels."""
    return composed_command(
        "benchmark",
        *overrides_of(family),
        *overrides_of(family, TEACHERS_BODY, "teacher.detector"),
        *["height=128", "width=128", "num_classes=4", "num_boxes=2"],
        *["repeats=1", "warmup=0", "memory=false", "published=false"],
        *overrides,
    )
