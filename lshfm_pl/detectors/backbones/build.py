"""Bodies under a feature pyramid or alone: their checks, their frozen stages."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from lshfm_pl.detectors.backbones.backbone import Backbone, SingleScale, Stage, backbone
from lshfm_pl.errors import LSHFMError

__all__ = ["build_fpn_backbone", "build_single_scale"]


class _Pyramid(BackboneWithFPN):
    """torchvision's class around what returns the maps of a body; names are its."""

    def __init__(self, maps: nn.Module, channels: list[int], out_channels: int, extra: ExtraFPNBlock) -> None:
        nn.Module.__init__(self)  # torchvision's would take the body apart
        self.body = maps
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=extra)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As torchvision's."""
        return self.fpn(self.body(x))


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
        LSHFMError: the backbone is unknown, has fewer stages, or does not come with this norm.
    """
    record, body, stages = _build_body(config)
    if len(stages) < num_stages:
        raise LSHFMError(
            f"model.backbone: expected at least {num_stages} stages for the pyramid, {config['backbone']} has "
            f"{len(stages)}."
        )
    read = stages[-num_stages:]
    extra = extra_blocks(config["fpn_channels"])
    return _Pyramid(
        record.maps(body, {stage.name: str(level) for level, stage in enumerate(read)}),
        [stage.channels for stage in read],
        config["fpn_channels"],
        extra,
    )


def build_single_scale(config: Mapping[str, Any]) -> SingleScale:
    """Build the body alone, as its record says.

    Raises:
        LSHFMError: the backbone is unknown, needs a pyramid, or does not come with this norm.
    """
    record, body, stages = _build_body(config)
    if record.single_scale is None:
        raise LSHFMError(
            f"model.neck: {config['backbone']} does not serve without a pyramid; give neck: fpn or another "
            "backbone."
        )
    return record.single_scale.cut(body, stages)


def _build_body(config: Mapping[str, Any]) -> tuple[Backbone, nn.Module, tuple[Stage, ...]]:
    """The record, the whole body with its first stages frozen, and the stages."""
    record = backbone(config["backbone"])
    if config["norm"] not in record.norms:
        *most, last = record.norms
        possible = f"{', '.join(most)} or {last}" if most else last
        raise LSHFMError(f"model.norm: a {record.title} needs {possible}, found {config['norm']}.")
    body, stages = record.build(config), record.stages(config)
    _freeze_stages(body, record.stem, stages, trainable_stages=config["trainable_stages"])
    return record, body, stages


def _freeze_stages(
    body: nn.Module, stem: tuple[str, ...], stages: tuple[Stage, ...], *, trainable_stages: int
) -> None:
    """Freeze all but the last `trainable_stages`; a stem counts as one. What follows the last stage is frozen."""
    ends = {stage.name for stage in stages}
    parts, children = [list(stem)] if stem else [], []
    for name, _ in body.named_children():
        if name not in stem:
            children.append(name)
        if name in ends:
            parts.append(children)
            children = []
    trained = {name for part in parts[max(0, len(parts) - trainable_stages) :] for name in part}
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in trained)
