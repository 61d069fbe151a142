"""Convolutions of maps narrower than their stride, in bfloat16, against torch's in float64."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lshfm_pl.kernels.narrow_maps import NarrowMapConv2d, pad_narrow_maps
from lshfm_pl.selfchecks.subjects import detector_named


def map_among_nans(*shape: int) -> Tensor:
    """A map in bfloat16 and channels_last with NaN before and after it in memory."""
    batch, channels, height, width = shape
    count, margin = batch * channels * height * width, 4096
    memory = torch.full((count + 2 * margin,), float("nan"), dtype=torch.bfloat16)
    inner = memory[margin : margin + count].normal_(generator=torch.Generator().manual_seed(0))
    return inner.view(batch, height, width, channels).permute(0, 3, 1, 2)


CASES = [
    (groups, side, stride, height, width)
    for groups, side, stride, height, width in itertools.product(
        (1, 16), (3, 5), (2, 3), (1, 2, 5), (1, 2, 4)
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_do_not_depend_on_memory_beside_the_map(case):
    groups, side, stride, height, width = case
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 16, side, stride, side // 2, groups=groups).double()
    padded = nn.Sequential(copy.deepcopy(plain).bfloat16())
    pad_narrow_maps(padded)
    assert type(padded[0]) is NarrowMapConv2d
    x = map_among_nans(2, 16, height, width).requires_grad_()
    found = padded(x)
    direction = map_among_nans(*found.shape)
    wide = x.detach().double().requires_grad_()
    with torch.no_grad():
        for own, other in zip(plain.parameters(), padded.parameters(), strict=True):
            own.copy_(other)
    expected = plain(wide)
    pairs = zip(
        [found, *torch.autograd.grad(found, [x, *padded.parameters()], direction)],
        [expected, *torch.autograd.grad(expected, [wide, *plain.parameters()], direction.double())],
        strict=True,
    )
    for own, other in pairs:
        assert (own.double() - other).norm() <= 0.02 * other.norm()


def test_wider_maps_and_float32_are_computed_by_torch_alone(monkeypatch):
    network = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1))
    pad_narrow_maps(network)
    monkeypatch.setattr(F, "pad", lambda *_: pytest.fail("padded"))
    network(torch.rand(1, 4, 1, 1))
    network.bfloat16()(torch.rand(1, 4, 2, 2).bfloat16())
    with pytest.raises(pytest.fail.Exception, match="padded"):
        network(torch.rand(1, 4, 1, 1).bfloat16())


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 4, 3, 1, 1),
        nn.Conv2d(4, 4, 3, 2, 0),
        nn.Conv2d(4, 4, 3, 2, 1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same"),
    ],
    ids=["stride 1", "no padding", "other padding", "named padding"],
)
def test_other_convolutions_are_left_as_they_are(convolution):
    network = nn.Sequential(convolution)
    pad_narrow_maps(network)
    assert type(network[0]) is nn.Conv2d


@pytest.mark.parametrize("name", ["ssdlite_mobilenetv3_tiny", "retinanet_resnet10fpn_tiny"])
def test_strided_convolutions_of_detectors_pad_narrow_maps(name):
    detector = detector_named(name, seed=0)
    strided = [m for m in detector.modules() if isinstance(m, nn.Conv2d) and m.stride[1] > 1 and m.padding[1]]
    assert strided
    assert all(isinstance(module, NarrowMapConv2d) for module in strided)
