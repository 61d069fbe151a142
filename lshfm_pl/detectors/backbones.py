"""ResNet and VGG bodies, under a feature pyramid or alone: sizes, norms, frozen stages and first weights."""

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, Self, cast

from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from lshfm_pl.detectors.contents import read_checkpoint
from lshfm_pl.detectors.state_dicts import find_networks, refuse_not_finite, shared_prefix
from lshfm_pl.detectors.torch_files import download_torch_file
from lshfm_pl.errors import LSHFMError, few

__all__ = [
    "BACKBONES",
    "RESNETS",
    "VGGS",
    "FrozenStatsBatchNorm2d",
    "SingleScale",
    "build_fpn_backbone",
    "build_single_scale",
    "group_norm",
    "load_backbone_weights",
    "scale_channels",
]

NormFactory = Callable[[int], nn.Module]


#: How many 3×3 convolutions each of the five stages has (configurations A and D of arXiv 1409.1556).
VGGS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}

_RESNET_STEM_CHANNELS = 64
_RESNET_STAGE_CHANNELS = (64, 128, 256, 512)
_VGG_STAGE_CHANNELS = (64, 128, 256, 512, 512)
#: The layers of a ResNet before the RoI pooling, where the last stage follows it.
_C4_LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
#: Channel counts are multiples of this, for speed and so that they divide into groups.
_CHANNEL_MULTIPLE = 8
_MAX_GROUPS = 32
_CLASSIFIERS = ("fc.", "classifier.")
"""What the names of a classification network's last layers begin with."""


def scale_channels(channels: int, width: float) -> int:
    """Scale a number of channels by ``width``, to the nearest multiple of 8 that is not 0."""
    return _CHANNEL_MULTIPLE * max(1, round(channels * width / _CHANNEL_MULTIPLE))


def build_fpn_backbone(config: Mapping[str, Any], *, num_stages: int) -> BackboneWithFPN:
    """Build the body and the pyramid on its last stages.

    Args:
        config: a resolved detector configuration.
        num_stages: how many of the body's last stages the pyramid reads. Faster R-CNN reads four and
            subsamples the coarsest level once more; RetinaNet reads three (it leaves out the finest as too
            many anchors, arXiv 1708.02002) and gets P6 and P7 from P5.

    Returns:
        A module from images [N, 3, H, W] to an ordered dict of five maps [N, fpn_channels, H / s, W / s] with
        strides s = 4, 8, 16, 32, 64 (Faster R-CNN) or 8, 16, 32, 64, 128 (RetinaNet).

    Raises:
        LSHFMError: the backbone is unknown, or does not come with this norm.
    """
    body, channels = _build_body(config)
    fpn_channels = config["fpn_channels"]
    stages = [f"layer{index + 1}" for index in range(len(channels))][-num_stages:]
    extra_blocks = (
        LastLevelP6P7(fpn_channels, fpn_channels)
        if config["architecture"] == "retinanet"
        else LastLevelMaxPool()
    )
    return BackboneWithFPN(
        body,
        return_layers={stage: str(level) for level, stage in enumerate(stages)},
        in_channels_list=channels[-num_stages:],
        out_channels=fpn_channels,
        extra_blocks=extra_blocks,
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
        layers = [body.get_submodule(name) for name in _C4_LAYERS]
        backbone, last_stage = nn.Sequential(*layers), body.get_submodule("layer4")
        cast(Any, backbone).out_channels = channels[-2]
        return SingleScale(backbone, last_stage, channels[-1])
    stages = [stage.get_submodule("0") for stage in body.children()]
    named = OrderedDict(layer for stage in stages for layer in stage.named_children())
    named.popitem()  # the last max-pool
    backbone = nn.Sequential(named)
    cast(Any, backbone).out_channels = channels[-1]
    return SingleScale(backbone, None, 0)


def load_backbone_weights(detector: nn.Module, config: Mapping[str, Any]) -> str:
    """Load what ``config["backbone_weights"]`` names into the body of a detector.

    ``imagenet`` stands for torchvision's IMAGENET1K_V1 weights (of ``vgg*_bn`` when a VGG has batch norm), a
    path or a URL for a state dict of torchvision's classification network or of the detector's own
    ``backbone.body`` (``backbone`` where there is no pyramid), by itself or in an entry of a dict, with or
    without a prefix before all names (``module.``); None for nothing. The box head of a C4 detector is a part of
    the body.

    Returns:
        One line that says what was loaded.

    Raises:
        LSHFMError: there are no such weights, they cannot be had, or they do not fit the body.
    """
    source = config["backbone_weights"]
    if source is None:
        return "random initial weights"
    label = source
    if source == "imagenet":
        source, label = _imagenet_url(config), f"torchvision IMAGENET1K_V1 of {config['backbone']}"
        weights = _download(source, check_hash=True)
    elif source.startswith(("http://", "https://")):
        # A hash in the name is torchvision's custom, so another's file name proves nothing.
        weights = _download(source, check_hash=False)
    else:
        weights = read_checkpoint(source)
    return f"{label}: {_load_into_body(detector, weights, config, source)}"


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that always normalises by its running statistics, which never change; weight and bias do."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, in which the statistics are used and not updated."""
        return super().train(False)


def _normalised(convolution: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(convolution(x))`, where a frozen norm becomes a factor of the kernel and a bias: no pass over the map.

    The kernel itself stays as it is: its gradient and its checkpoint are those of the two layers.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(convolution(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    kernel = convolution.weight * scale[:, None, None, None]
    return convolution._conv_forward(x, kernel, norm.bias - norm.running_mean * scale)


def _identity(downsample: nn.Module | None, x: Tensor) -> Tensor:
    if downsample is None:
        return x
    convolution, norm = cast(nn.Sequential, downsample)
    return _normalised(cast(nn.Conv2d, convolution), norm, x)


class _FoldingBasicBlock(BasicBlock):
    """torchvision's block, with frozen norms folded into the convolutions before them."""

    def forward(self, x: Tensor) -> Tensor:
        """As the parent's."""
        identity = _identity(self.downsample, x)
        out = self.relu(_normalised(self.conv1, self.bn1, x))
        out = _normalised(self.conv2, self.bn2, out)
        out += identity
        return self.relu(out)


class _FoldingBottleneck(Bottleneck):
    """torchvision's block, with frozen norms folded into the convolutions before them."""

    def forward(self, x: Tensor) -> Tensor:
        """As the parent's."""
        identity = _identity(self.downsample, x)
        out = self.relu(_normalised(self.conv1, self.bn1, x))
        out = self.relu(_normalised(self.conv2, self.bn2, out))
        out = _normalised(self.conv3, self.bn3, out)
        out += identity
        return self.relu(out)


class _ResNetPlan(NamedTuple):
    """Kind of residual block and how many of them each of the four stages has."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: list[int]


RESNETS = {
    "resnet10": _ResNetPlan(_FoldingBasicBlock, [1, 1, 1, 1]),
    "resnet18": _ResNetPlan(_FoldingBasicBlock, [2, 2, 2, 2]),
    "resnet34": _ResNetPlan(_FoldingBasicBlock, [3, 4, 6, 3]),
    "resnet50": _ResNetPlan(_FoldingBottleneck, [3, 4, 6, 3]),
    "resnet101": _ResNetPlan(_FoldingBottleneck, [3, 4, 23, 3]),
}
BACKBONES = (*RESNETS, *VGGS)


class _ScaledResNet(ResNet):
    """torchvision's ResNet with every number of channels scaled by ``width``."""

    def __init__(self, plan: _ResNetPlan, *, width: float, norm_layer: NormFactory) -> None:
        self._width = width
        # The pyramid drops the classifier: one class keeps it small until then.
        super().__init__(plan.block, plan.depths, num_classes=1, norm_layer=norm_layer)

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        if self._width != 1 and not hasattr(self, "layer1"):
            # The parent has just made a stem of 64 channels and initialises it after the last stage.
            self.inplanes = scale_channels(_RESNET_STEM_CHANNELS, self._width)
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        return super()._make_layer(block, scale_channels(planes, self._width), blocks, stride, dilate)


class _VGGBody(nn.Sequential):
    """The five stages of a VGG, each ending with its max-pool.

    Stage n is ``layern``, a Sequential around a Sequential whose names are the indices that torchvision's
    ``vgg*.features`` (``vgg*_bn.features`` with a norm) gives to the same layers.
    """

    def __init__(self, depths: tuple[int, ...], *, width: float, norm_layer: NormFactory | None) -> None:
        super().__init__()
        in_channels, index = 3, 0
        for stage, (depth, channels) in enumerate(zip(depths, _VGG_STAGE_CHANNELS, strict=True), start=1):
            out_channels = scale_channels(channels, width)
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
                if norm_layer is not None:
                    layers.append(norm_layer(out_channels))
                layers.append(nn.ReLU(inplace=True))
                in_channels = out_channels
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            named = OrderedDict((str(index + offset), layer) for offset, layer in enumerate(layers))
            index += len(layers)
            self.add_module(f"layer{stage}", nn.Sequential(nn.Sequential(named)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))


def _build_body(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    """The whole body, its first stages frozen, and the number of channels of each of its stages."""
    name = config["backbone"]
    if name not in BACKBONES:
        raise LSHFMError(f"model.backbone: expected one of {', '.join(BACKBONES)}, found {name!r}.")
    body, channels = (_build_resnet if name in RESNETS else _build_vgg)(config)
    _freeze_stages(body, trainable_stages=config["trainable_stages"])
    return body, channels


def _build_resnet(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    plan, width = RESNETS[config["backbone"]], config["width"]
    norm_layer = _norm_factory(config)
    if norm_layer is None:
        raise LSHFMError("model.norm: a ResNet needs frozen_bn, bn, bn_frozen_stats or gn, found none.")
    channels = [scale_channels(planes, width) * plan.block.expansion for planes in _RESNET_STAGE_CHANNELS]
    return _ScaledResNet(plan, width=width, norm_layer=norm_layer), channels


def _build_vgg(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    width = config["width"]
    channels = [scale_channels(planes, width) for planes in _VGG_STAGE_CHANNELS]
    return _VGGBody(VGGS[config["backbone"]], width=width, norm_layer=_norm_factory(config)), channels


def group_norm(channels: int, *, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm in 32 groups, or in as many as divide the channels."""
    return nn.GroupNorm(math.gcd(_MAX_GROUPS, channels), channels, eps=eps)


def _norm_factory(config: Mapping[str, Any]) -> NormFactory | None:
    eps = config["norm_eps"]
    factories: dict[str, NormFactory | None] = {
        "frozen_bn": partial(FrozenBatchNorm2d, eps=eps),
        "bn": partial(nn.BatchNorm2d, eps=eps),
        "bn_frozen_stats": partial(FrozenStatsBatchNorm2d, eps=eps),
        "gn": partial(group_norm, eps=eps),
        "none": None,
    }
    return factories[config["norm"]]


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


def _imagenet_url(config: Mapping[str, Any]) -> str:
    name, norm, width = config["backbone"], config["norm"], config["width"]
    if name == "resnet10" or norm == "gn" or width != 1:
        raise LSHFMError(
            f"model.backbone_weights: there are no imagenet weights for {name} with width {width} and norm "
            f"{norm}; give a path, or null for random initial weights."
        )
    variant = f"{name}_bn" if name in VGGS and norm != "none" else name
    return get_model_weights(variant)["IMAGENET1K_V1"].url


def _download(url: str, *, check_hash: bool) -> Any:
    advice = (
        "Download it elsewhere and give model.backbone_weights=<path>, or null for random initial weights."
    )
    return download_torch_file(url, check_hash=check_hash, key="model.backbone_weights", advice=advice)


def _load_into_body(detector: nn.Module, content: Any, config: Mapping[str, Any], source: str) -> str:
    """Load the only body in what a file holds; returns what was loaded."""
    state = detector.state_dict()
    prefixes = _classification_prefixes(config)
    names = {}
    for key in state:
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is not None and not _is_counter(key):
            names[prefixes[prefix] + key.removeprefix(prefix)] = key
            names[key.removeprefix("backbone.").removeprefix("body.")] = key
    expected = set(names.values())
    weights, found = _find_body(content, names, len(expected), source)
    given = {
        names.get(key, key): value
        for key, value in weights.items()
        if not _is_counter(key) and not key.startswith(_CLASSIFIERS)
    }
    wrong = [
        key
        for key in expected
        if key not in given or given[key].shape != state[key].shape or not given[key].is_floating_point()
    ]
    wrong += [key for key in given if key not in expected]
    if wrong:
        raise LSHFMError(
            f"model.backbone_weights: {source}{found} does not fit {config['backbone']} with width "
            f"{config['width']} and norm {config['norm']}: {len(wrong)} tensors are missing, too many or of "
            f"another shape or type, such as {', '.join(sorted(wrong)[:3])}."
        )
    refuse_not_finite(f"model.backbone_weights: {source}", given)
    detector.load_state_dict(given, strict=False)
    return f"{len(given)} tensors{found}"


def _find_body(
    content: Any, names: Collection[str], num_tensors: int, source: str
) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of the body in what a file holds, and where they were if not at its top."""
    networks = find_networks(content, names.__contains__, least=max(1, num_tensors // 2))
    if len(networks) > 1:
        raise LSHFMError(
            f"model.backbone_weights: {source} holds {len(networks)} backbones: "
            f"{few((network.label for network in networks), 8)}. Save one of them in a file of its own."
        )
    if networks:
        told = str(networks[0])
        return networks[0].weights, f" ({told})" if told else ""
    if isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values()):
        prefix = shared_prefix(content) if len(content) > 1 else ""
        return content, f" (all names begin with {prefix!r})" if prefix else ""
    raise LSHFMError(
        f"model.backbone_weights: expected a state dict (names to tensors) of the backbone in {source}, found none."
    )


def _is_counter(key: str) -> bool:
    # BatchNorm counts its batches, FrozenBatchNorm and older files don't; nothing reads the count here.
    return key.endswith("num_batches_tracked")


def _classification_prefixes(config: Mapping[str, Any]) -> dict[str, str]:
    """What the names of the body's tensors begin with, in the detector: in torchvision's classification network."""
    is_vgg = config["backbone"] in VGGS
    if config["neck"] == "fpn" and is_vgg:
        return {
            f"backbone.body.layer{stage + 1}.0.": "features." for stage in range(len(_VGG_STAGE_CHANNELS))
        }
    if config["neck"] == "fpn":
        return {"backbone.body.": ""}
    if is_vgg:
        return {"backbone.": "features."}
    layers = {f"backbone.{index}.": f"{layer}." for index, layer in enumerate(_C4_LAYERS)}
    return {**layers, "roi_heads.box_head.0.": "layer4."}
