"""Gradient accumulation: each step has the gradient of the mean over its images."""

import pytest
import torch
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.training import DetectionModule
from lshfm_pl.training.detection import Place

RATE = 1e-3


def module():
    schedule = short_schedule(lr=RATE, reference_batch_size=4, optimizer={"name": "sgd"})
    return DetectionModule(small_detector(STUDENTS[1]), schedule, data_config={})


@pytest.mark.parametrize("batches", [4, 3])
def test_each_step_is_that_of_the_mean_also_the_last_and_shorter_one(batches, tmp_path):
    data, trained = RandomData(batches), module()
    trainer = quiet_trainer(tmp_path, accumulate_grad_batches=2)
    trainer.fit(trained, datamodule=data)
    assert trainer.global_step == 2
    assert trained.images_per_step() == 4  # 2 images × 2 batches: the rate is that of 4 images

    by_hand = module().train()
    parameters = [one for one in by_hand.parameters() if one.requires_grad]
    for step, group in enumerate(([0, 1], list(range(2, batches)))):
        losses = [
            sum(by_hand.losses_at(data.batches[index], Place(step, 0, index, 0, 2)).values())
            for index in group
        ]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= RATE * gradient
    for (name, own), (_, expected) in zip(
        trained.named_parameters(), by_hand.named_parameters(), strict=True
    ):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-7, msg=name)
