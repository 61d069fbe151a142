"""Building backbones with or without a feature pyramid: checks and frozen stages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelP6P7

from lshfm_pl.detectors.backbones.backbone import Backbone, SingleScale, Stage, backbone
from lshfm_pl.errors import LSHFMError

__all__ = ["Pyramid", "build_body", "build_fpn_backbone", "build_single_scale", "build_uncut"]

_COARSEST = 32
"""Stride of the last map that the families' default pyramids read."""
_STRIDES_OF_P6_P7 = [64, 128]
_ALL_STAGES = 5
"""A value of `trainable_stages` that is at least the number of stages of any backbone."""


class Pyramid(BackboneWithFPN):
    """torchvision's class around a module that returns the maps of a backbone; names are those of torchvision."""

    def __init__(
        self,
        maps: nn.Module,
        channels: list[int],
        out_channels: int,
        extra: ExtraFPNBlock | None,
        strides: Sequence[int],
    ) -> None:
        nn.Module.__init__(self)  # torchvision's constructor would split the backbone
        self.body = maps
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=extra)
        self.out_channels = out_channels
        #: Number of levels that are maps of the backbone.
        self.num_stages = len(channels)
        #: Stride of each level in pixels.
        self.strides = tuple(strides)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See torchvision."""
        return self.fpn(self.body(x))


class _MoreLevels(ExtraFPNBlock):
    """Coarser levels by convolutions, like torchvision's P6 and P7, for configured strides.

    Args:
        channels: number of channels of all levels.
        strides: strides of the coarser levels; level p6 has stride 2⁶.
    """

    def __init__(self, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        for stride in strides:
            convolution = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(cast(Tensor, convolution.bias))
            self.add_module(f"p{stride.bit_length() - 1}", convolution)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """See torchvision: each level is computed from the one before, with a ReLU from the second on."""
        level = results[-1]
        for index, (name, convolution) in enumerate(self.named_children()):
            level = convolution(level if index == 0 else nn.functional.relu(level))
            results.append(level)
            names.append(name)
        return results, names


def build_fpn_backbone(
    config: Mapping[str, Any], *, num_stages: int, extra_blocks: Callable[[int], ExtraFPNBlock]
) -> Pyramid:
    """Build the backbone and the pyramid on its last stages.

    Args:
        config: a resolved detector configuration. `fpn_strides` are the strides of all levels: those of the maps
            that are read from the backbone, then those of the levels that `extra_blocks` adds; None for the
            family's default.
        num_stages: number of the backbone's stages that the family's default pyramid reads, up to the one of stride
            32. Faster R-CNN reads four and subsamples the coarsest level once more. RetinaNet reads three (the
            finest would have too many anchors, arXiv 1708.02002) and gets P6 and P7 from P5.
        extra_blocks: makes the module that adds coarser levels, from the pyramid's number of channels.

    Returns:
        A module from images [N, 3, H, W] to an ordered dict of maps [N, fpn_channels, H / s, W / s], by default of
        strides s = 4, 8, 16, 32, 64 (Faster R-CNN) or 8, 16, 32, 64, 128 (RetinaNet). Its `num_stages` says how
        many of them are the body's, its `strides` all.

    Raises:
        LSHFMError: the backbone is unknown, lacks a stage, or does not support this norm.
    """
    record, body, stages = build_body(config)
    extra: ExtraFPNBlock | None = extra_blocks(config["fpn_channels"])
    num_own = num_stages + (2 if isinstance(extra, LastLevelP6P7) else 1)
    strides = config.get("fpn_strides") or [_COARSEST >> num_stages - 1 << level for level in range(num_own)]
    read = _stages_of(strides, stages)
    is_own = not config.get("fpn_strides")
    if (
        not read
        or [stage.stride for stage in read] != list(strides[: len(read)])
        or (is_own and len(read) < num_stages)
    ):
        raise LSHFMError(
            f"model.fpn_strides: expected strides of {config['backbone']}, which has "
            f"{_listed(stage.stride for stage in stages)}, then coarser ones; found {_listed(strides)}. Give, "
            f"for example, model.fpn_strides=[{_example_of(stages)}], with as many model.anchor_sizes and "
            "model.anchor_aspect_ratios."
        )
    if not is_own:
        extra = _extra_levels(extra, config, strides[len(read) :])
    return Pyramid(
        record.maps(body, {stage.name: str(level) for level, stage in enumerate(read)}),
        [stage.channels for stage in read],
        config["fpn_channels"],
        extra,
        strides,
    )


def _stages_of(strides: Iterable[int], stages: Iterable[Stage]) -> list[Stage]:
    """The stages with these strides, in the order of `strides`. A stride that is listed twice needs two stages."""
    left, found = list(stages), []
    for stride in strides:
        stage = next((stage for stage in left if stage.stride == stride), None)
        if stage is not None:
            left.remove(stage)
            found.append(stage)
    return found


def _extra_levels(
    own: ExtraFPNBlock | None, config: Mapping[str, Any], strides: Sequence[int]
) -> ExtraFPNBlock | None:
    """The family's own block if it adds the same levels, otherwise one of its kind for other strides.

    Raises:
        LSHFMError: the family's block subsamples the coarsest level exactly once.
    """
    if isinstance(own, LastLevelP6P7):
        if list(strides) == _STRIDES_OF_P6_P7:
            return own
        return _MoreLevels(config["fpn_channels"], strides) if strides else None
    if len(strides) != 1:
        raise LSHFMError(
            "model.fpn_strides: expected one stride more than the body's maps, for the level that "
            f"{config['name']} subsamples; found {len(strides)} more in {_listed(config['fpn_strides'])}."
        )
    return own


def _example_of(stages: Sequence[Stage]) -> str:
    """The strides of the coarsest stages, and one more."""
    own = [stage.stride for stage in stages][-3:]
    return ",".join(map(str, [*own, 2 * own[-1]]))


def _listed(strides: Iterable[int]) -> str:
    return ", ".join(map(str, strides))


def build_single_scale(config: Mapping[str, Any]) -> SingleScale:
    """Build the backbone without a pyramid, as its record says.

    Raises:
        LSHFMError: the backbone is unknown, needs a pyramid, or does not support this norm.
    """
    record, body, stages = build_body(config)
    if record.single_scale is None:
        raise LSHFMError(
            f"model.neck: {config['backbone']} does not serve without a pyramid; give neck: fpn or another "
            "backbone."
        )
    return record.single_scale.cut(body, stages)


def build_uncut(config: Mapping[str, Any], title: str) -> nn.Module:
    """Build a backbone with one map for a detector without a box head, which could not hold a cut-off stage.

    Args:
        config: a resolved detector configuration, ``neck: none``.
        title: the detector with its article, for the message: `a RetinaNet`.

    Raises:
        LSHFMError: the backbone is cut before its last stage, or as `build_single_scale`.
    """
    backbone, last_stage, _ = build_single_scale(config)
    if last_stage is not None:
        raise LSHFMError(
            f"model.neck: {title} without a pyramid needs a body that is not cut, such as vgg16: there is "
            f"no box head for the last stage of {config['backbone']}. Give neck: fpn or another backbone."
        )
    return backbone


def build_body(config: Mapping[str, Any]) -> tuple[Backbone, nn.Module, tuple[Stage, ...]]:
    """The record, the whole backbone with its first stages frozen, and the stages.

    Raises:
        LSHFMError: the backbone is unknown, or does not support this norm or these trainable stages.
    """
    record = backbone(config["backbone"])
    if config["norm"] not in record.norms:
        *most, last = record.norms
        possible = f"{', '.join(most)} or {last}" if most else last
        raise LSHFMError(f"model.norm: a {record.title} needs {possible}, found {config['norm']}.")
    body, stages = record.build(config), record.stages(config)
    trainable = config["trainable_stages"]
    names = {name for name, _ in body.named_modules()}
    if all(stage.name in names for stage in stages):
        _freeze_stages(body, record.stem, stages, trainable_stages=trainable)
    elif trainable in (0, _ALL_STAGES):
        body.requires_grad_(trainable > 0)
    else:
        raise LSHFMError(
            f"model.trainable_stages: the stages of a {record.title} do not run one after the other: expected 0 or "
            f"{_ALL_STAGES} for all, found {trainable}."
        )
    return record, body, stages


def _freeze_stages(
    body: nn.Module, stem: tuple[str, ...], stages: tuple[Stage, ...], *, trainable_stages: int
) -> None:
    """Freeze all but the last `trainable_stages`. A stem counts as a stage, a stage without parameters does not.

    Modules are registered in the order in which they run. Modules after the last stage belong to it.
    """
    places = {name: place for place, (name, _) in enumerate(body.named_modules())}
    ends = [
        max(place for name, place in places.items() if f"{name}.".startswith(f"{stage.name}."))
        for stage in stages
    ]
    parts: dict[int, list[nn.Parameter]] = {}
    for name, parameter in body.named_parameters():
        module = name.rpartition(".")[0]
        if any(f"{module}.".startswith(f"{part}.") for part in stem):
            part = -1
        else:
            part = min(sum(end < places[module] for end in ends), len(ends) - 1)
        parts.setdefault(part, []).append(parameter)
    trained = sorted(parts)[max(0, len(parts) - trainable_stages) :]
    for part, parameters in parts.items():
        for parameter in parameters:
            parameter.requires_grad_(part in trained)
