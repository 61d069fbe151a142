"""A detector family in one file outside of the package: each cell of one map predicts a class and a box."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from lshfm_pl.detectors.architecture import Architecture
from lshfm_pl.detectors.schema import DetectorConfig, Fraction

STRIDE = 16


class CentreConfig(DetectorConfig):
    channels: Annotated[int, Field(ge=1, le=256)] = 8
    score_thresh: Fraction
    detections_per_img: Annotated[int, Field(ge=1, le=1000)]


class CentreDetector(nn.Module):
    def __init__(self, config, num_classes):
        super().__init__()
        self.score_thresh, self.most = config["score_thresh"], config["detections_per_img"]
        self.body = nn.Sequential(nn.Conv2d(3, config["channels"], STRIDE, STRIDE), nn.ReLU())
        self.scores = nn.Conv2d(config["channels"], num_classes, 1)
        self.sides = nn.Conv2d(config["channels"], 2, 1)

    def forward(self, images, targets=None):
        losses, detections = [], []
        for index, image in enumerate(images):
            features = self.body(image[None])
            logits_LK, sides_L2 = (head(features)[0].flatten(1).T for head in (self.scores, self.sides))
            sides_L2 = F.softplus(sides_L2) * STRIDE
            height, width = features.shape[-2:]
            if targets is None:
                detections.append(self.detect(logits_LK, sides_L2, width))
                continue
            boxes, wanted = targets[index]["boxes"], torch.zeros(height * width, dtype=torch.long)
            column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long().unbind(dim=1)
            places = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
            wanted[places] = targets[index]["labels"]
            losses.append(
                (F.cross_entropy(logits_LK, wanted), F.l1_loss(sides_L2[places], boxes[:, 2:] - boxes[:, :2]))
            )
        if targets is None:
            return detections
        classes, sides = (torch.stack(of_images).mean() for of_images in zip(*losses, strict=True))
        return {"loss_classes": classes, "loss_sides": sides}

    def detect(self, logits_LK, sides_L2, width):
        scores_LK = logits_LK.softmax(dim=1)
        scores_LK[:, 0] = 0
        scores, labels = scores_LK.max(dim=1)
        best = scores.topk(min(self.most, len(scores))).indices
        best = best[scores[best] > self.score_thresh]
        centres = (torch.stack([best % width, best // width], dim=1) + 0.5) * STRIDE
        half = sides_L2[best] / 2
        return {
            "boxes": torch.cat([centres - half, centres + half], dim=1),
            "labels": labels[best],
            "scores": scores[best],
        }


CENTRE = Architecture(
    name="centre",
    title="centre detector",
    build=CentreDetector,
    schema=CentreConfig,
    is_built=lambda detector: isinstance(detector, CentreDetector),
    evaluation={"score_thresh": "score_thresh", "detections_per_img": "detections_per_img"},
    count_classes=lambda weights: len(weights["scores.bias"]) if "scores.bias" in weights else None,
    body_modules=("body",),
    learning_rate=0.004,
)
