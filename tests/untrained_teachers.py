"""Files of untrained teachers."""

import torch
from small_detectors import model_file

from lshfm_pl.detectors import build_detector
from lshfm_pl.detectors.checkpoint import detector_description


def write_teacher(path, names, model="retinanet_resnet18fpn_small"):
    """An untrained RetinaNet of these classes that reports many detections, with scores about 0.5."""
    torch.manual_seed(1)
    teacher = build_detector(model_file(model), num_classes=len(names) + 1, class_names=names)
    torch.nn.init.zeros_(teacher.head.classification_head.cls_logits.bias)
    state = {f"detector.{key}": value for key, value in teacher.state_dict().items()}
    torch.save({"state_dict": state, "detector": detector_description(teacher)}, path)
    return path
