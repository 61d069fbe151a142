"""Detectors that `benchmark inference` measures."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from small_detectors import EVERY_STUDENT, small_detector
from torch import nn

from lshfm_pl.benchmarking import subjects
from lshfm_pl.benchmarking.subjects import PartClock, Spent, draw_pictures, read_subjects
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors import detector_checkpoint
from lshfm_pl.errors import LSHFMError

SMALL = [
    "what=inference",
    "height=96",
    "width=128",
    "num_classes=4",
    "batch_size=1",
    "output_dir=x",
    "candidates=20",
]


def config_of(*overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("benchmark", [*SMALL, *overrides])


@pytest.mark.parametrize("name", EVERY_STUDENT)
def test_post_processing_of_every_family_is_timed_apart(name, monkeypatch):
    (subject,) = read_subjects(config_of(f"model={name}"))
    spent = subject.run()
    assert 0 < spent.seconds < 10
    again = subject.run()
    assert again.seconds < 2 * spent.seconds + 1  # each run counts for itself
    assert subject.name == name
    assert subject.facts["candidates"] == 20
    assert subject.facts["weights"] == "random"


def test_models_of_one_list_have_their_own_settings_and_sizes():
    listed = "models=[ssdlite_mobilenetv3_tiny,{narrow:{model:retinanet_resnet10fpn_tiny,fpn_channels:16}}]"
    ssd, narrow = read_subjects(config_of(listed))
    assert (ssd.name, narrow.name) == ("ssdlite_mobilenetv3_tiny", "narrow")
    assert ssd.facts["input"] == [128, 128]  # an SSD has one size for all pictures
    assert narrow.facts["input"] == [128, 192]  # 128×171, padded to a multiple of 32
    whole = small_detector("retinanet_resnet10fpn_tiny", fpn_channels=16)
    assert narrow.facts["parameters"] == sum(parameter.numel() for parameter in whole.parameters())


@pytest.mark.parametrize("sides", [(96, 160), (160, 96)])
@pytest.mark.parametrize("name", ["ssdlite_mobilenetv3_tiny", "retinanet_resnet10fpn_tiny"])
def test_pictures_can_stay_as_they_are(name, sides):
    (subject,) = read_subjects(
        config_of(f"model={name}", "resize=false", f"height={sides[0]}", f"width={sides[1]}")
    )
    assert subject.facts["input"] == list(sides)


def test_files_are_measured_with_their_weights(tmp_path):
    detector = small_detector("fcos_resnet10fpn_tiny")
    torch.save(detector_checkpoint(detector), tmp_path / "a.ckpt")
    one, other = read_subjects(
        config_of(f"checkpoint={tmp_path}/a.ckpt", f"models=[{{mine:{{checkpoint:{tmp_path}/a.ckpt}}}}]")
    )
    assert (one.name, other.name) == ("mine", "fcos_resnet10fpn_tiny")
    assert other.facts["weights"] == f"{tmp_path}/a.ckpt"
    with pytest.raises(
        LSHFMError, match=r"found fcos_resnet10fpn_tiny twice; name the file, as in .*a\.ckpt"
    ):
        read_subjects(config_of(f"models=[{tmp_path}/a.ckpt,fcos_resnet10fpn_tiny]"))


def test_wrong_settings_name_the_entry():
    with pytest.raises(LSHFMError, match="models: a: model.fpn_chanels: no such key"):
        read_subjects(config_of("models=[{a:{model:fcos_resnet10fpn_tiny,fpn_chanels:3}}]"))


def test_without_candidates_the_model_has_its_own_threshold(monkeypatch):
    monkeypatch.setattr(subjects, "threshold_for", None)
    (subject,) = read_subjects(config_of("model=retinanet_resnet10fpn_tiny", "candidates=null"))
    assert subject.facts["candidates"] is None


def test_pictures_follow_from_the_seed():
    pictures = draw_pictures(config_of("batch_size=2"))
    assert [tuple(picture.shape) for picture in pictures] == [(3, 96, 128)] * 2
    assert torch.equal(pictures[0], draw_pictures(config_of("batch_size=2"))[0])
    assert not torch.equal(pictures[0], draw_pictures(config_of("seed=1"))[0])


def test_clock_adds_up_the_named_methods(monkeypatch):
    class Part(nn.Module):
        def choose(self, x):
            return x + 1

    network = nn.Module()
    network.part = Part()
    network.choose = lambda x: 2 * x
    times = iter([Spent(0.0, 0.0), Spent(3.0, 2.0), Spent(10.0, 2.0), Spent(14.0, 5.0)])
    monkeypatch.setattr(PartClock, "_now", lambda clock: next(times))
    clock = PartClock(network, ("part.choose", "choose"), torch.device("cpu"))
    assert network.part.choose(1) + network.choose(5) == 12
    assert clock.spent == Spent(7, 5)
    clock.reset()
    assert clock.spent == Spent(0, 0)
