"""Reference implementation of a distillation step and of the loader, for comparing cost and numbers.

It follows the description of the published code without optimisations: the teacher runs completely, RetinaNet's 3×3
neighbourhoods and all hash logits are computed at once, and everything is float32 and contiguous. Only
`lshfm_pl.benchmark` uses it in the package.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import Matcher
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.transforms.functional import hflip, pil_to_tensor

from lshfm_pl.mimic import LSH


def as_published(detector: nn.Module) -> nn.Module:
    """The same detector with torch's and torchvision's own layers and contiguous weights, changed in place."""
    for module in detector.modules():
        for layer in (BasicBlock, Bottleneck, nn.Conv2d):
            if isinstance(module, layer):
                module.__class__ = layer
    return detector.to(memory_format=torch.contiguous_format)


def published_step(
    student: Any,
    teacher: Any,
    mimic_losses: Sequence[nn.Module],
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> Tensor:
    """The sum of the student's losses and of β times each mimic loss for one batch, a scalar.

    Args:
        student: Faster R-CNN or RetinaNet in training mode.
        teacher: another, in evaluation mode.
        mimic_losses: L2 and LSH of `lshfm_pl.mimic`, used only for their settings and hash.
        images: float [3, H, W] in 0..1.
        targets: `boxes` and `labels` of each image.
    """
    term = _faster_rcnn_term if isinstance(student, FasterRCNN) else _retinanet_term
    losses, mimic = term(student, teacher, mimic_losses, images, targets)
    return torch.stack(list(losses.values())).sum() + mimic


def _feature_loss(mimic_losses: Sequence[Any], student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    return torch.stack([loss.beta * _unweighted(loss, student_ND, teacher_ND) for loss in mimic_losses]).sum()


def _unweighted(loss: Any, student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    if not isinstance(loss, LSH):
        return F.mse_loss(student_ND, teacher_ND)
    student_NH = F.linear(student_ND, loss.weight, loss.bias)
    teacher_NH = F.linear(teacher_ND, loss.weight, loss.bias)
    if loss.hash_loss == "bce":
        return F.binary_cross_entropy_with_logits(student_NH, (teacher_NH > 0).float())
    return (F.l1_loss if loss.hash_loss == "l1" else F.mse_loss)(student_NH, teacher_NH)


def _faster_rcnn_term(
    student: Any, teacher: Any, mimic: Any, images: Any, targets: Any
) -> tuple[Any, Tensor]:
    record: dict[str, Any] = {}

    def keep_boxes(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        record["boxes"], record["sizes"] = inputs[1:]

    def keep_features(module: nn.Module, inputs: Any, output: Tensor) -> None:
        record["features"] = output

    def keep_maps(module: nn.Module, inputs: Any, output: Any) -> None:
        record["maps"] = output if isinstance(output, dict) else {"0": output}

    handles = [
        student.roi_heads.box_roi_pool.register_forward_pre_hook(keep_boxes),
        student.roi_heads.box_head.register_forward_hook(keep_features),
        teacher.backbone.register_forward_hook(keep_maps),
    ]
    losses = student(images, targets)
    with torch.no_grad():
        boxes, features = record["boxes"], record["features"]
        teacher(images)
        pooled = teacher.roi_heads.box_roi_pool(record["maps"], boxes, record["sizes"])
        teacher_ND = teacher.roi_heads.box_head(pooled)
    for handle in handles:
        handle.remove()
    return losses, _feature_loss(mimic, features, teacher_ND)


def _retinanet_term(student: Any, teacher: Any, mimic: Any, images: Any, targets: Any) -> tuple[Any, Tensor]:
    record: dict[str, Any] = {"student": [], "teacher": []}
    compute_loss = student.head.compute_loss

    def keep_matches(targets: Any, outputs: Any, anchors: Any, matches: list[Tensor]) -> Any:
        record["matches"] = matches
        return compute_loss(targets, outputs, anchors, matches)

    handles = [
        network.head.classification_head.cls_logits.register_forward_pre_hook(
            lambda module, inputs, name=name: record[name].append(inputs[0])
        )
        for name, network in (("student", student), ("teacher", teacher))
    ]
    student.head.compute_loss = keep_matches
    losses = student(images, targets)
    with torch.no_grad():
        teacher(images)
    del student.head.compute_loss
    for handle in handles:
        handle.remove()
    student_BLD, teacher_BLD = (
        torch.cat([F.unfold(level, 3, padding=1).transpose(1, 2) for level in record[name]], dim=1)
        for name in ("student", "teacher")
    )
    terms = []
    for index, matches_A in enumerate(record["matches"]):
        anchors = student.anchor_generator.num_anchors_per_location()[0]
        keep_L = (matches_A.view(-1, anchors) != Matcher.BETWEEN_THRESHOLDS).any(dim=1)
        if len(targets[index]["boxes"]) and keep_L.any():
            terms.append(_feature_loss(mimic, student_BLD[index][keep_L], teacher_BLD[index][keep_L]))
    return losses, torch.stack(terms).mean() if terms else 0 * student_BLD.sum()


class PublishedVOC(torch.utils.data.Dataset[Any]):
    """VOC images as float32 tensors, read by Pillow in the worker; the annotation is parsed at every access.

    Args:
        root: folder with `Annotations`, `JPEGImages` and `ImageSets/Main`.
        split: name of the list of images.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        self.ids = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image_id = self.ids[index]
        with Image.open(self.root / "JPEGImages" / f"{image_id}.jpg") as image:
            tensor = pil_to_tensor(image.convert("RGB")).float() / 255
        annotation = ElementTree.parse(self.root / "Annotations" / f"{image_id}.xml").getroot()
        boxes = [
            [float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax")]
            for box in annotation.iter("bndbox")
        ]
        target = torch.tensor(boxes)
        if torch.rand(()) < 0.5:
            tensor = hflip(tensor)
            target[:, [0, 2]] = tensor.shape[2] - target[:, [2, 0]]
        return tensor, {"boxes": target, "labels": torch.ones(len(target), dtype=torch.int64)}
