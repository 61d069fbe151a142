"""The records of backbones describe the backbones correctly."""

import copy
import sys
import types

import pytest
import torch
from small_detectors import small_detector
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.detectors.backbones.backbone import (
    Backbone,
    Cut,
    SingleScale,
    Stage,
    backbone,
    import_backbone,
    known_backbones,
)
from lshfm_pl.detectors.backbones.build import build_fpn_backbone, build_single_scale
from lshfm_pl.detectors.backbones.norms import norm_factory, pairs_in_sequences
from lshfm_pl.detectors.frozen import freeze
from lshfm_pl.errors import LSHFMError

CONFIG = {
    "norm": "frozen_bn", "norm_eps": 1e-5, "width": 0.125, "trainable_stages": 5, "fpn_channels": 8,
}  # fmt: skip
BUILT_IN = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "vgg11", "vgg16")


def test_built_in_bodies_are_found_by_name():
    assert {record.name for record in known_backbones()} >= set(BUILT_IN)
    assert all(backbone(name).name == name for name in BUILT_IN)
    with pytest.raises(LSHFMError, match=r"model\.backbone: expected one of .*vgg16.*, found 'resnet51'"):
        backbone("resnet51")


@pytest.mark.parametrize("name", BUILT_IN)
def test_stages_have_the_channels_and_strides_that_the_record_says(name):
    config = {**CONFIG, "backbone": name}
    record = backbone(name)
    body, stages = record.build(config), record.stages(config)
    maps = record.maps(body, {stage.name: str(stage.stride) for stage in stages})
    with torch.no_grad():
        found = maps(torch.zeros(1, 3, 64, 64))
    expected = {str(stage.stride): (stage.channels, 64 // stage.stride) for stage in stages}
    assert {stride: (level.shape[1], level.shape[2]) for stride, level in found.items()} == expected


@pytest.mark.parametrize("name", BUILT_IN)
def test_norm_pairs_are_what_runs_one_after_the_other(name):
    """From a forward pass: which norm gets the output of which convolution."""
    record = backbone(name)
    body = record.build({**CONFIG, "backbone": name, "norm": "bn"})
    made, seen = {}, set()
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda layer, _, output: made.update({id(output): (layer, output)}))
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda norm, inputs: (
                    seen.add((made[id(inputs[0])][0], norm)) if id(inputs[0]) in made else None
                )
            )
    maps = record.maps(
        body, {stage.name: stage.name for stage in record.stages({**CONFIG, "backbone": name})}
    )
    with torch.no_grad():
        maps(torch.zeros(2, 3, 64, 64))
    told = {(pair.convolution, pair.parent.get_submodule(pair.name)) for pair in record.norm_pairs(body)}
    assert {pair for pair in told if isinstance(pair[1], nn.BatchNorm2d)} == seen
    assert len(seen) == sum(isinstance(module, nn.BatchNorm2d) for module in body.modules())


class Twisted(nn.Module):
    """Registers its two convolutions in another order than it runs them; the norm follows the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = FrozenBatchNorm2d(4)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def test_order_of_registration_alone_makes_no_pair():
    detector = small_detector("retinanet_resnet10fpn_tiny").eval()
    detector.add_module("twisted", Twisted())
    detector.twisted.norm.running_var.fill_(4)
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        expected = copy.deepcopy(detector.twisted)(image)
        assert torch.equal(freeze(detector).twisted(image), expected)
    assert not any(isinstance(m, FrozenBatchNorm2d | _BatchNorm) for m in detector.backbone.modules())


def test_pairs_of_sequences_leave_out_those_with_a_forward_of_their_own():
    class Reversed(nn.Sequential):
        def forward(self, x):
            return x

    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]
    assert [pair.name for pair in pairs_in_sequences(nn.Sequential(*layers))] == ["1"]
    assert list(pairs_in_sequences(Reversed(*layers))) == []


def own_record(**changes):
    """A body of three stages of one convolution each, strides 8, 16 and 32, after a stem of stride 4."""
    names = ("stem", "a", "b", "c")

    def build(config):
        layers = nn.Sequential()
        for index, name in enumerate(names):
            norm = norm_factory(config)
            layers.add_module(
                name,
                nn.Sequential(nn.Conv2d(4 if index else 3, 4, 3, 2 if index else 4, 1), norm(4), nn.ReLU()),
            )
        return layers

    settings = {
        "name": "own", "title": "body of mine", "build": build, "norms": ("bn",), "stem": ("stem",),
        "stages": lambda config: tuple(Stage(name, 4, 2 ** (index + 3)) for index, name in enumerate(names[1:])),
    }  # fmt: skip
    return Backbone(**{**settings, **changes})


@pytest.fixture
def own(monkeypatch):
    """Makes a record available under its import path."""
    module = types.ModuleType("own_bodies")
    monkeypatch.setitem(sys.modules, "own_bodies", module)

    def named(name, **changes):
        setattr(module, name, own_record(**changes))
        return {**CONFIG, "backbone": f"own_bodies.{name}", "norm": "bn"}

    return named


@pytest.mark.parametrize(
    ("trainable", "trained"), [(0, ""), (1, "c"), (3, "abc"), (4, "stem abc"), (5, "stem abc")]
)
def test_a_body_with_fewer_than_five_stages_is_trained_from_its_last(own, trainable, trained):
    body = build_fpn_backbone(
        {**own("THREE"), "trainable_stages": trainable}, num_stages=3, extra_blocks=lambda channels: None
    ).body
    assert {name.split(".")[0] for name, value in body.named_parameters() if value.requires_grad} == {
        name
        for name in ("stem", "a", "b", "c")
        if name in trained.split() or (len(name) == 1 and name in trained)
    } - (set() if trainable else {"stem", "a", "b", "c"})


def test_what_a_body_cannot_do_is_reported(own):
    config = own("FEW")
    with pytest.raises(
        LSHFMError, match=r"expected strides of own_bodies\.FEW, which has 8, 16, 32.*found 4, 8, 16, 32"
    ):
        build_fpn_backbone(config, num_stages=4, extra_blocks=lambda channels: None)
    with pytest.raises(LSHFMError, match=r"model\.neck: own_bodies\.FEW does not serve without a pyramid"):
        build_single_scale(config)
    with pytest.raises(LSHFMError, match=r"model\.norm: a body of mine needs bn, found gn"):
        build_single_scale({**config, "norm": "gn"})


def test_a_users_own_module_is_imported_for_the_user_alone(tmp_path, monkeypatch):
    name = f"body_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from dataclasses import replace\nfrom lshfm_pl.detectors.backbones.resnet import RESNET18\n"
        'MINE = replace(RESNET18, norms=("gn",))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LSHFMError, match="A file may not make this command import a module"):
        backbone(f"{name}.MINE")
    assert import_backbone(f"{name}.MINE").norms == ("gn",)
    assert backbone(f"{name}.MINE").norms == ("gn",)


def test_single_scale_of_ones_own(own):
    def cut(body, stages):
        body.out_channels = stages[-1].channels
        return SingleScale(body)

    maps = build_single_scale(own("SINGLE", single_scale=Cut(cut=cut))).backbone
    with torch.no_grad():
        assert maps(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 2, 2)
