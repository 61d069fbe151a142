"""The single map of a backbone without a pyramid."""

from typing import Any

from torch import Tensor, nn

from lshfm_pl.detectors.backbones.backbone import Cut, SingleScale, Stage
from lshfm_pl.errors import LSHFMError

__all__ = ["last_map_of_stride_16"]

STRIDE = 16


class _SingleMap(nn.Module):
    """Returns the only map of a backbone that returns a dict of maps."""

    def __init__(self, body: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Compute a map [N, out_channels, H / 16, W / 16] from images [N, 3, H, W]."""
        (single,) = self.body(x).values()
        return single


def last_map_of_stride_16(maps: Any) -> Cut:
    """The backbone up to its stage of stride 16, by its `Backbone.maps`.

    Raises:
        LSHFMError: the backbone has no such stage.
    """

    def cut(body: nn.Module, stages: tuple[Stage, ...]) -> SingleScale:
        stage = next((stage for stage in stages if stage.stride == STRIDE), None)
        if stage is None:
            strides = ", ".join(str(stage.stride) for stage in stages)
            raise LSHFMError(
                f"model.neck: without a pyramid the body needs a map of stride {STRIDE}, its strides are "
                f"{strides}; give neck: fpn or another backbone."
            )
        return SingleScale(_SingleMap(maps(body, {stage.name: "0"}), stage.channels))

    return Cut(cut=cut)
