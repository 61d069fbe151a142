"""One step of a small distillation on one process or several, for comparing their gradients."""

import os

import torch
from small_detectors import FRS_WEIGHTS, TEACHER_OF, as_float, random_batch, small_detector
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.mimic import build_losses
from lshfm_pl.training import DistillationModule
from lshfm_pl.training.pseudo_labels import PseudoLabels


class TotalLoss(nn.Module):
    """A module whose forward pass is the sum of the losses, for DDP."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images, targets):
        return sum(self.module.losses(images, targets).values())


# MGD masks other positions in every process, so that it is compared without a mask.
BY_IMAGE = {
    "lshl2": {"beta": 7.0, "num_hashes": 32, "seed": 0},
    "cwd": {},
    "fgd": {"reference_size": [800, 1333]},
    "mgd": {"masked_share": 0.0, "reference_size": [800, 1333]},
}
"""Losses that are means over images or boxes → settings."""
BY_BATCH = {
    "pkd": {},
    "frs": FRS_WEIGHTS,
    "dist": {"mimic_weight": 1.0},
    "crosskd": {},
    "fbkd": {"poolings": (2, 2, 1, 1)},
}
"""Losses with statistics of the images that a process has → settings."""

OTHERS = {"l2": {}, "lsh": {"num_hashes": 32, "seed": 0}, "kd": {}}


def as_found(images, targets):
    """Stands for a teacher that detects the objects of the targets, with scores by their numbers."""
    scores = [1 / (1 + len(target["boxes"])) for target in targets]
    return PseudoLabels(targets, torch.tensor(scores, dtype=torch.float64))


def gradients(student, rank, world_size, distill="lshl2", *, is_alone=False, pictures=False):
    """Name → gradient after one backward over this rank's share of four images; alone, without the other ranks.

    Sampling takes the first boxes instead of random ones, so that it is the same however images are shared out. The
    detectors compute in float64: in float32, sums in another order can put a value on the other side of a ReLU, and
    a gradient of that location is then missing. The mimic loss itself is float32 as ever. With `pictures` the
    images have no labels but those of a teacher, which finds nothing in the first of them.
    """
    torch.manual_seed(0)
    torch.randperm = lambda number, **options: torch.arange(number, device=options.get("device"))
    teacher = small_detector(TEACHER_OF[student], seed=1)
    losses = build_losses(distill, teacher, **{**BY_IMAGE, **BY_BATCH}[distill])
    module = DistillationModule(
        small_detector(student, norm="bn_frozen_stats", min_size=[64]), teacher, losses
    )
    images, targets = random_batch(3, num_images=4, boxless=(0,) if pictures else ())
    if pictures:
        module.labeller = as_found
        targets = [{**target, UNLABELLED: torch.tensor(0)} for target in targets]
    share = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    for detector in (module.detector, module.teacher):
        detector.double()
    total = TotalLoss(module.train())
    if world_size > 1 and not is_alone:
        ignored = [f"module.{name}" for name in module._ddp_params_and_buffers_to_ignore]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(total, ignored)
        total = DistributedDataParallel(total)
    total([image.double() for image in as_float(images[share])], targets[share]).backward()
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def without_gradient(student, distill):
    """Names of the parameters that DDP waits for, but that get no gradient from a step without ground truth boxes.

    DDP would need find_unused_parameters for them.
    """
    teacher = small_detector(TEACHER_OF[student], seed=1)
    settings = {**BY_IMAGE, **BY_BATCH, **OTHERS}[distill]
    module = DistillationModule(
        small_detector(student, min_size=[64]), teacher, build_losses(distill, teacher, **settings)
    ).train()
    images, targets = random_batch(3, num_images=2)
    for target in targets:
        target["boxes"], target["labels"] = target["boxes"][:0], target["labels"][:0]
    sum(module.losses(as_float(images), targets).values()).backward()
    ignored = set(module._ddp_params_and_buffers_to_ignore)
    return [
        name
        for name, value in module.named_parameters()
        if value.requires_grad and value.grad is None and name not in ignored
    ]


def one_of_several(rank, world_size, folder, cases):
    """Write this process's gradients of each case (student, distill, pictures) to `<folder>/<case>_<rank>.pt`."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size
    )
    for index, (student, distill, pictures) in enumerate(cases):
        found = gradients(student, rank, world_size, distill, pictures=pictures)
        torch.save(found, f"{folder}/{index}_{rank}.pt")
    distributed.destroy_process_group()
