"""SSD (arXiv 1512.02325) and SSDLite (1801.04381, 1905.02244), from torchvision's parts."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import ssd as torchvision_ssd
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG, SSDHead
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead, _extra_block
from torchvision.models.vgg import cfgs, make_layers

from lshfm_pl.detectors.architecture import Architecture, TorchvisionDetector
from lshfm_pl.detectors.backbones.backbone import Stage
from lshfm_pl.detectors.backbones.build import build_body
from lshfm_pl.detectors.backbones.mobilenet_v3 import mobilenet_v3_large_features
from lshfm_pl.detectors.backbones.norms import norm_factory
from lshfm_pl.detectors.decoding import decoded_boxes
from lshfm_pl.detectors.full_precision import FullPrecisionOutputs
from lshfm_pl.detectors.schema import BodyConfig, Count, Fraction, Positive
from lshfm_pl.errors import LSHFMError

__all__ = ["SSD", "build_ssd"]

LEVELS = 6
"""Number of maps that the head reads: two from the backbone, and four from extra blocks."""

AspectRatios = Annotated[list[Positive], Field(min_length=1, max_length=16)]


class SSDConfig(BodyConfig):
    """Keys of torchvision's `SSD` with the same names, and keys of its backbone, head and anchors.

    Images are resized to `max_size` x `min_size` pixels (width x height), whatever their aspect ratio.
    """

    weights_depend_on: ClassVar[tuple[str, ...]] = (
        *BodyConfig.weights_depend_on,
        "anchor_scales",
        "anchor_ratios",
        "anchor_steps",
    )

    min_size: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1, max_length=1)]
    size_divisible: Literal[1]
    head: Literal["ssd", "ssdlite"]
    reduced_tail: bool
    anchor_scales: Annotated[list[Positive], Field(min_length=LEVELS + 1, max_length=LEVELS + 1)]
    anchor_ratios: Annotated[list[AspectRatios], Field(min_length=LEVELS, max_length=LEVELS)]
    anchor_steps: Annotated[list[Positive], Field(min_length=LEVELS, max_length=LEVELS)] | None
    iou_thresh: Fraction
    positive_fraction: Annotated[float, Field(gt=0, le=1)]
    score_thresh: Fraction
    nms_thresh: Fraction
    topk_candidates: Count
    detections_per_img: Count


_OF_PARTS = {"head", "reduced_tail", "anchor_scales", "anchor_ratios", "anchor_steps"}
_OF_TORCHVISION = [
    key for key in SSDConfig.model_fields if key not in BodyConfig.model_fields and key not in _OF_PARTS
]
"""Keys that are passed to torchvision's class under the same name."""

_MOMENTUM = 0.03
"""Momentum of SSDLite's batch norms, as in torchvision."""
_LITE_STD = 0.03
"""Standard deviation of SSDLite's initial weights, as in torchvision."""
_VGG_CHANNELS = (512, 1024, 512, 256, 256, 256)
_VGG_LEAST_SIDE = 268
"""Smallest sides of images in pixels: the last convolutions have no padding and need some input."""
_VGG_FIRST_OF_EXTRA = 23
"""Index of the first layer of torchvision's `vgg16.features` that belongs to the extra blocks."""
_STRIDES = (16, 32)
"""Strides of the maps that the head reads from any other backbone."""
_EXTRA_WIDTHS = (512, 256, 256, 128)
_LEAST_WIDTH = 16
_MOBILENET_CUT = 13
"""Index of the block of torchvision's `mobilenet_v3_large.features` whose expansion is the first map."""
_MOBILENET_STARTS = (0, 2, 4, 7, 13, 16)
"""Indices at which its stages begin."""


class LiteBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that uses its running statistics where a batch has one value per channel.

    The last maps of SSDLite have one location, so that torch's batch norm refuses to train on a single image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """From [N, C, h, w] to the same shape."""
        if not self.training or x[:, 0].numel() > 1:
            return super().forward(x)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class FullPrecisionDefaultBoxes(DefaultBoxGenerator):
    """Default boxes [A, 4] for each image, in pixels, in float32 also under autocast."""

    def _grid_default_boxes(
        self, grid_sizes: list[list[int]], image_size: list[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        return super()._grid_default_boxes(grid_sizes, image_size, torch.promote_types(dtype, torch.float32))


class FullPrecisionSSDHead(FullPrecisionOutputs, SSDHead):
    """`cls_logits` [B, A, K] and `bbox_regression` [B, A, 4], in float32 also under autocast."""


class FullPrecisionSSDLiteHead(FullPrecisionOutputs, SSDLiteHead):
    """`cls_logits` [B, A, K] and `bbox_regression` [B, A, 4], in float32 also under autocast."""


def build_ssd(config: Mapping[str, Any], num_classes: int) -> torchvision_ssd.SSD:
    """Build an SSD with random initial weights.

    Args:
        config: a resolved configuration, ``architecture: ssd``.
        num_classes: number of classes, background included.

    Raises:
        LSHFMError: the backbone is not supported, or not with these settings.
    """
    body, channels = _BODIES.get(config["backbone"], _any_body)(config)
    anchors = FullPrecisionDefaultBoxes(
        config["anchor_ratios"], scales=config["anchor_scales"], steps=config["anchor_steps"]
    )
    counts = anchors.num_anchors_per_location()
    if config["head"] == "ssd":
        head: nn.Module = FullPrecisionSSDHead(channels, counts, num_classes)
    else:
        head = FullPrecisionSSDLiteHead(channels, counts, num_classes, _lite_norm(config))
    return torchvision_ssd.SSD(
        body,
        anchors,
        (config["max_size"], config["min_size"][0]),
        num_classes,
        image_mean=config["image_mean"],
        image_std=config["image_std"],
        head=head,
        **{key: config[key] for key in _OF_TORCHVISION},
    )


class _BodyWithExtras(nn.Module):
    """The maps of a backbone, and those of SSDLite's extra blocks, which follow its last map.

    Args:
        maps: from images [N, 3, H, W] to a dict of maps.
        channels: of each of them.
        widths: of the maps of the further blocks.
        norm_layer: of these.
    """

    def __init__(
        self, maps: nn.Module, channels: list[int], widths: list[int], norm_layer: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        self.body = maps
        pairs = pairwise([channels[-1], *widths])
        self.extra = nn.ModuleList(_extra_block(width, wider, norm_layer) for width, wider in pairs)
        _draw_first_weights(self.extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """From images [N, 3, H, W] to maps [N, C, h, w] by their numbers."""
        levels = list(self.body(x).values())
        for block in self.extra:
            levels.append(block(levels[-1]))
        return {str(index): level for index, level in enumerate(levels)}


def _any_body(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    """Any backbone with maps of strides 16 and 32, and the extra blocks of SSDLite."""
    if config["reduced_tail"]:
        raise LSHFMError(
            f"model.reduced_tail: expected false, which {config['backbone']} does not have, found true."
        )
    record, body, stages = build_body(config)
    read = [next((stage for stage in stages if stage.stride == stride), None) for stride in _STRIDES]
    if None in read:
        strides = ", ".join(str(stage.stride) for stage in stages)
        raise LSHFMError(
            f"model.backbone: an SSD needs maps of strides 16 and 32; those of {config['backbone']} are {strides}."
        )
    found = cast(list[Stage], read)
    widths = [max(_LEAST_WIDTH, int(width * config["width"])) for width in _EXTRA_WIDTHS]
    channels = [stage.channels for stage in found]
    maps = record.maps(body, {stage.name: str(level) for level, stage in enumerate(found)})
    return _BodyWithExtras(maps, channels, widths, _lite_norm(config)), [*channels, *widths]


def _vgg16(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    """The backbone of SSD300: VGG16 with two convolutions instead of its linear layers, and extra blocks."""
    for key, value in (("norm", "none"), ("width", 1), ("reduced_tail", False)):
        if config[key] != value:
            raise LSHFMError(
                f"model.{key}: an SSD with vgg16 needs {str(value).lower()}, found {config[key]}."
            )
    sides = config["min_size"][0], config["max_size"]
    if min(sides) < _VGG_LEAST_SIDE:
        raise LSHFMError(
            f"model.min_size, model.max_size: an SSD with vgg16 needs images of at least {_VGG_LEAST_SIDE} pixels, "
            f"found {sides[0]} and {sides[1]}."
        )
    layers = make_layers(cfgs["D"])
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    _freeze(layers, [0, *pools[:-1]], config["trainable_stages"])
    return SSDFeatureExtractorVGG(layers, False), list(_VGG_CHANNELS)


def _mobilenet_v3(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    """The backbone of SSDLite: MobileNetV3-Large, cut inside of a block, and extra blocks."""
    if config["norm"] == "none":
        raise LSHFMError("model.norm: a MobileNetV3 needs frozen_bn, bn, bn_frozen_stats or gn, found none.")
    features = mobilenet_v3_large_features(config, reduced_tail=config["reduced_tail"])
    _draw_first_weights(features)
    for layer in features.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = _MOMENTUM
    _freeze(features, list(_MOBILENET_STARTS), config["trainable_stages"])
    body = SSDLiteFeatureExtractorMobileNet(
        features, _MOBILENET_CUT, _lite_norm(config), width_mult=config["width"]
    )
    parts: Any = body.features[0][-1], body.features[1][-1], *(block[-1] for block in body.extra)
    return body, [part.out_channels for part in parts]


_BODIES: dict[str, Callable[[Mapping[str, Any]], tuple[nn.Module, list[int]]]] = {
    "vgg16": _vgg16,
    "mobilenet_v3_large": _mobilenet_v3,
}
"""Name of a backbone → the backbone of an SSD with it, and the channels of its maps."""


def _draw_first_weights(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=_LITE_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _freeze(layers: nn.Sequential, starts: list[int], trainable_stages: int) -> None:
    """Freeze all but the last `trainable_stages` of the stages that begin at `starts`; with 5 none is frozen."""
    if trainable_stages == 0:
        layers.requires_grad_(False)
    elif trainable_stages < 5:
        layers[: starts[-trainable_stages]].requires_grad_(False)


def _lite_norm(config: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """The norm of SSDLite's own layers: the config's, or batch norm if the config has none of these."""
    make = norm_factory(config) if config["norm"] in ("frozen_bn", "bn_frozen_stats", "gn") else None
    return make or partial(LiteBatchNorm2d, eps=config["norm_eps"], momentum=_MOMENTUM)


def _name_in_body(name: str) -> str | None:
    """The name of a detector's tensor in torchvision's classification network."""
    parts = name.split(".")
    if parts[:2] == ["backbone", "features"] and len(parts) == 4:
        return ".".join(parts[1:])
    if parts[:3] == ["backbone", "extra", "0"] and len(parts) == 5:
        return f"features.{_VGG_FIRST_OF_EXTRA + int(parts[3])}.{parts[4]}"
    if parts[:2] != ["backbone", "features"]:
        return None
    half, block, rest = parts[2], int(parts[3]), parts[4:]
    if half == "0":
        inside = ["block", "0"] if block == _MOBILENET_CUT else []
        return ".".join(["features", str(block), *inside, *rest])
    if block == 0:
        return ".".join(["features", str(_MOBILENET_CUT), "block", *rest])
    return ".".join(["features", str(_MOBILENET_CUT + block), *rest])


def _object_sizes(detector: Any) -> list[tuple[float, float]]:
    side = min(detector.transform.fixed_size)
    return [(low * side, high * side) for low, high in pairwise(detector.anchor_generator.scales)]


def _raw_detections(detector: Any, images: ImageList) -> tuple[Tensor, Tensor]:
    """All boxes [N, A, 4] and scores [N, A, K], see `Architecture.raw_detections`."""
    levels = list(detector.backbone(images.tensors).values())
    outputs = detector.head(levels)
    anchors_A4 = detector.anchor_generator(images, levels)[0]
    boxes = decoded_boxes(detector.box_coder, outputs["bbox_regression"], anchors_A4)
    return boxes, outputs["cls_logits"].softmax(dim=-1)


_HEAD = "head.classification_head.module_list"
_FILES = {"vgg16": "ssd300_vgg16", "mobilenet_v3_large": "ssdlite320_mobilenetv3"}
"""Backbone → the `conf/model` file with it."""


def _model_file(weights: Mapping[str, Tensor]) -> str:
    return _FILES["vgg16" if "backbone.scale_weight" in weights else "mobilenet_v3_large"]


def _count_classes(weights: Mapping[str, Tensor]) -> int | None:
    for last in ("0.bias", "0.1.bias"):
        logits = weights.get(f"{_HEAD}.{last}")
        deltas = weights.get(f"head.regression_head.module_list.{last}")
        if logits is not None and deltas is not None:
            # Both have a value for each default box of a location: one for each class, the other per coordinate.
            return 4 * len(logits) // len(deltas)
    return None


SSD = Architecture(
    name="ssd",
    title="SSD",
    build=build_ssd,
    schema=SSDConfig,
    is_built=lambda detector: isinstance(detector, torchvision_ssd.SSD),
    evaluation={key: key for key in ("score_thresh", "nms_thresh", "detections_per_img")},
    marks=(f"{_HEAD}.",),
    class_layers=tuple(
        f"{_HEAD}.{level}.{last}" for level in range(LEVELS) for last in ("weight", "bias", "1.")
    ),
    count_classes=_count_classes,
    raw_detections=_raw_detections,
    object_sizes=_object_sizes,
    neck=("backbone.extra.",),
    name_in_body=_name_in_body,
    model_file=_model_file,
    torchvision_detectors={
        "ssd300_vgg16": TorchvisionDetector("ssd300_vgg16"),
        "ssdlite320_mobilenetv3": TorchvisionDetector("ssdlite320_mobilenet_v3_large"),
    },
    torchvision_key=lambda config: _FILES.get(str(config.get("backbone")), ""),
    points=("pyramid", "logits"),
    tap="lshfm_pl.mimic.features.ssd.SSDTap",
    postprocessing=("postprocess_detections", "transform.postprocess"),
    class_activation="softmax",
    # torchvision's rate for SSD300 is 0.002 for 4 images per step. Logits are softened like those of Faster R-CNN.
    learning_rate=0.004,
    kd_weight=1.0,
    kd_temperature=2.0,
)
