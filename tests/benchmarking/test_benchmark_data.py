"""The two loaders of the benchmark read the same data set."""

import pytest
import torch
from omegaconf import OmegaConf

from lshfm_pl.benchmarking.data import draw_voc, measure_loaders
from lshfm_pl.benchmarking.step import load_published
from lshfm_pl.data import VOCDataModule


def test_both_loaders_see_the_same_pixels_and_boxes(tmp_path):
    root = tmp_path / "voc"
    draw_voc(root, 2, seed=0)
    datamodule = VOCDataModule(
        root=str(root), train_split="train", val_split="train", flip_probability=0, num_workers=0
    )
    datamodule.setup("fit")
    images, targets = next(iter(datamodule.train_dataloader()))
    published = load_published().PublishedVOC(root, "train")
    for image, target in zip(images, targets, strict=True):
        index = int(target["image_id"])
        torch.manual_seed(1)  # its first number is above one half, so the image is not flipped
        other, other_target = published[index]
        assert (image.float() / 255 - other).abs().max() < 4 / 255  # two JPEG decoders may differ slightly
        # VOC's first pixel is 1, which the reference implementation subtracts later
        torch.testing.assert_close(target["boxes"][:, 2:], other_target["boxes"][:, 2:])


@pytest.mark.parametrize("published", [True, False])
def test_speeds_are_of_all_images(published, caplog):
    config = OmegaConf.create(
        {"num_images": 4, "seed": 0, "num_workers": 0, "repeats": 1, "warmup": 0, "published": published}
    )
    measured = measure_loaders(config)
    assert measured["images_per_second"]["ours"] == 4 / measured["seconds"]["ours"]
    assert set(measured["seconds"]) == {"ours"} | ({"published"} if published else set())
    assert set(measured["ratios"]) == ({"ours_over_published"} if published else set())
    assert not caplog.messages  # the drawn images have no faults
