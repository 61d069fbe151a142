"""Distil a detector of your own on data of your own, in a plain loop of torch (docs/as_a_library.md)."""

import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from lshfm_pl.mimic import build_losses
from lshfm_pl.training import DetectionModule, DistillationModule, Place, Schedule


class Squares(torch.utils.data.Dataset):
    def __getitem__(self, index):
        image, x = torch.zeros(3, 64, 64, dtype=torch.uint8), 2 * index
        image[:, 20:44, x : x + 24] = 255
        boxes, labels = torch.tensor([[x, 20.0, x + 24, 44]]), torch.tensor([1])
        return image, {"boxes": boxes, "labels": labels, "image_id": torch.tensor(index)}


class Detector(RetinaNet):
    def __init__(self, width):
        body = nn.Sequential(nn.Conv2d(3, width, 7, 4, 3), nn.ReLU(), nn.Conv2d(width, 32, 3, 2, 1))
        body.out_channels = 32
        anchors = AnchorGenerator(sizes=((16, 32),), aspect_ratios=((1.0,),))
        super().__init__(body, num_classes=2, min_size=64, max_size=64, anchor_generator=anchors)
        self.class_names = ("square",)


def train(module, steps=60):
    optimizer = torch.optim.Adam(module.trained_parameters(), lr=1e-3)
    for step in range(steps):
        images, targets = zip(*(Squares()[(4 * step + index) % 20] for index in range(4)), strict=True)
        losses = module.losses_at((images, targets), Place(step, epoch=0, batch_idx=step, rank=0))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    print({name: round(loss.item(), 3) for name, loss in losses.items()})
    return module.detector.eval()


teacher, student = train(DetectionModule(Detector(width=64))), Detector(width=8)
mimicry = build_losses("l2", teacher, student=student, point="pyramid", beta=1.0)
schedule = Schedule(epochs=1, lr=1e-3, optimizer={"name": "adamw"})
student = train(DistillationModule(student, teacher, mimicry, schedule))
print(student([Squares()[3][0] / 255])[0]["boxes"][:1])
