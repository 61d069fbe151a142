"""ResNet and VGG bodies, under a feature pyramid or alone: sizes, norms, frozen stages and first weights."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from lshfm_pl.detectors.backbones.resnet import C4_LAYERS, RESNETS, build_resnet
from lshfm_pl.detectors.backbones.vgg import VGGS, build_vgg
from lshfm_pl.errors import LSHFMError

__all__ = ["BACKBONES", "SingleScale", "build_fpn_backbone", "build_single_scale"]


def build_fpn_backbone(
    config: Mapping[str, Any], *, num_stages: int, extra_blocks: Callable[[int], ExtraFPNBlock]
) -> BackboneWithFPN:
    """Build the body and the pyramid on its last stages.

    Args:
        config: a resolved detector configuration.
        num_stages: how many of the body's last stages the pyramid reads. Faster R-CNN reads four and
            subsamples the coarsest level once more; RetinaNet reads three (it leaves out the finest as too
            many anchors, arXiv 1708.02002) and gets P6 and P7 from P5.
        extra_blocks: makes what adds coarser levels, from the pyramid's number of channels.

    Returns:
        A module from images [N, 3, H, W] to an ordered dict of five maps [N, fpn_channels, H / s, W / s] with
        strides s = 4, 8, 16, 32, 64 (Faster R-CNN) or 8, 16, 32, 64, 128 (RetinaNet).

    Raises:
        LSHFMError: the backbone is unknown, or does not come with this norm.
    """
    body, channels = _build_body(config)
    fpn_channels = config["fpn_channels"]
    stages = [f"layer{index + 1}" for index in range(len(channels))][-num_stages:]
    return BackboneWithFPN(
        body,
        return_layers={stage: str(level) for level, stage in enumerate(stages)},
        in_channels_list=channels[-num_stages:],
        out_channels=fpn_channels,
        extra_blocks=extra_blocks(fpn_channels),
    )


class SingleScale(NamedTuple):
    """A detector's body without a pyramid."""

    #: From images [N, 3, H, W] to one map [N, out_channels, H / 16, W / 16]; its attribute ``out_channels``.
    backbone: nn.Sequential
    #: A ResNet's last stage, which follows the RoI pooling (C4, arXiv 1512.03385); None for a VGG.
    last_stage: nn.Module | None
    #: Channels that ``last_stage`` ends with, 0 without one.
    last_channels: int


def build_single_scale(config: Mapping[str, Any]) -> SingleScale:
    """Build the body alone: a VGG up to the ReLU of its last convolution, a ResNet in two parts.

    The layers have the indices that they have in torchvision's ``vgg*.features``, and a ResNet's stem and first
    three stages the indices 0 to 6.

    Raises:
        LSHFMError: the backbone is unknown, or does not come with this norm.
    """
    body, channels = _build_body(config)
    if config["backbone"] in RESNETS:
        layers = [body.get_submodule(name) for name in C4_LAYERS]
        backbone, last_stage = nn.Sequential(*layers), body.get_submodule("layer4")
        cast(Any, backbone).out_channels = channels[-2]
        return SingleScale(backbone, last_stage, channels[-1])
    stages = [stage.get_submodule("0") for stage in body.children()]
    named = OrderedDict(layer for stage in stages for layer in stage.named_children())
    named.popitem()  # the last max-pool
    backbone = nn.Sequential(named)
    cast(Any, backbone).out_channels = channels[-1]
    return SingleScale(backbone, None, 0)


BACKBONES = (*RESNETS, *VGGS)


def _build_body(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    """The whole body, its first stages frozen, and the number of channels of each of its stages."""
    name = config["backbone"]
    if name not in BACKBONES:
        raise LSHFMError(f"model.backbone: expected one of {', '.join(BACKBONES)}, found {name!r}.")
    body, channels = (build_resnet if name in RESNETS else build_vgg)(config)
    _freeze_stages(body, trainable_stages=config["trainable_stages"])
    return body, channels


def _freeze_stages(body: nn.Module, *, trainable_stages: int) -> None:
    """Freeze all but the last ``trainable_stages`` of five stages; a ResNet's stem is its first."""
    stages = [name for name, _ in body.named_children() if name.startswith("layer")]
    if "conv1" in dict(body.named_children()):
        stages.insert(0, "stem")
    trainable = stages[len(stages) - trainable_stages :]
    for name, parameter in body.named_parameters():
        module = name.split(".")[0]
        stage = module if module.startswith("layer") else "stem"
        parameter.requires_grad_(stage in trainable)
