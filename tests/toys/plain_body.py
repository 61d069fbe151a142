"""A backbone in one file outside of the package: five strided convolutions with norms, each a stage."""

from torch import nn

from lshfm_pl.detectors.backbones.backbone import Backbone, Cut, SingleScale, Stage
from lshfm_pl.detectors.backbones.norms import norm_factory, scale_channels

CHANNELS = (8, 16, 24, 32, 48)


def stages(config):
    return tuple(
        Stage(f"stage{number}", scale_channels(channels, config["width"]), 2**number)
        for number, channels in enumerate(CHANNELS, start=1)
    )


def build(config):
    body, channels, norm = nn.Sequential(), 3, norm_factory(config)
    for stage in stages(config):
        convolution = nn.Conv2d(channels, stage.channels, kernel_size=3, stride=2, padding=1, bias=False)
        body.add_module(stage.name, nn.Sequential(convolution, norm(stage.channels), nn.ReLU()))
        channels = stage.channels
    return body


def cut(body, stages):
    """The first four stages, which end with a map of stride 16."""
    backbone = body[:4]
    backbone.out_channels = stages[3].channels
    return SingleScale(backbone)


PLAIN = Backbone(
    name="plain",
    title="plain body",
    build=build,
    stages=stages,
    norms=("bn", "frozen_bn", "bn_frozen_stats", "gn"),
    single_scale=Cut(cut=cut),
)
