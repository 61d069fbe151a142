"""The small detectors of the quickstart and random batches for them."""

import copy
import functools

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors import build_detector
from lshfm_pl.training.optim import Schedule

CLASS_NAMES = ("circle", "square", "star")
STUDENTS = ("fasterrcnn_resnet10fpn_tiny", "retinanet_resnet10fpn_tiny")
"""Of the two families that have published figures."""
WITH_PENULTIMATE = (*STUDENTS, "fcos_resnet10fpn_tiny")
"""One of each family that has features at `penultimate`."""
EVERY_STUDENT = (*WITH_PENULTIMATE, "ssdlite_mobilenetv3_tiny")
"""One of each family."""
TEACHER_OF = {
    name: name.replace("resnet10fpn_tiny", "resnet18fpn_small").replace("v3_tiny", "v3_small")
    for name in EVERY_STUDENT
}

FRS_WEIGHTS = {"feature_weight": 0.005, "class_weight": 0.02}
"""Published weights of FRS; with 1 its adapters diverge within a few steps."""

ALL_LABELS = {"postprocess": "published", "score_thresh": 0.0, "detections_per_img": 5}
"""Settings with which a RetinaNet of any weights reports five boxes of each label, and of label 0."""


@functools.cache
def model_file(name):
    """The content of a file of `conf/model`; composing takes longer than building a small detector."""
    with initialize_config_dir(str(CONFIG_DIR / "model"), version_base="1.3"):
        return OmegaConf.to_container(compose(name), resolve=True)


def small_detector(name, seed=0, **changes):
    config = {**copy.deepcopy(model_file(name)), **changes}
    torch.manual_seed(seed)
    return build_detector(config, num_classes=4, class_names=CLASS_NAMES)


def random_batch(seed=0, num_images=2, boxless=()):
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for index in range(num_images):
        images.append(torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8, generator=generator))
        count = 0 if index in boxless else 3
        corners = torch.rand(count, 2, generator=generator) * 80
        sizes = 20 + torch.rand(count, 2, generator=generator) * 28
        targets.append(
            {
                "boxes": torch.cat([corners, corners + sizes], dim=1),
                "labels": torch.randint(1, 4, (count,), generator=generator),
                "difficult": torch.zeros(count, dtype=torch.bool),
                "image_id": torch.tensor(seed * num_images + index),
            }
        )
    return images, targets


def as_float(images):
    return [image.float().div(255) for image in images]


class RandomData(pl.LightningDataModule):
    """The same few random batches every epoch."""

    batch_size = 2

    def __init__(self, num_batches=5):
        super().__init__()
        self.batches = [random_batch(seed) for seed in range(num_batches)]

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.batches[:2], batch_size=None)

    test_dataloader = val_dataloader

    def sample_dataloader(self, num_images):
        return DataLoader(self.batches[: max(1, num_images // 2)], batch_size=None)


def short_schedule(**changes):
    settings = {
        "epochs": 1,
        "lr": 0.01,
        "reference_batch_size": 2,
        "optimizer": {"name": "sgd", "momentum": 0.9},
    }
    return Schedule(**{**settings, **changes})


def quiet_trainer(tmp_path, **settings):
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "use_distributed_sampler": False,
            "default_root_dir": tmp_path,
            **settings,
        }
    )
