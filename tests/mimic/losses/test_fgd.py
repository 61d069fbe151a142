"""The sums over maps of FGD against torch's own operations; its values are in test_map_goldens."""

import pytest
import torch

from lshfm_pl.mimic.losses.fgd import MapSums, _SumMaps


def maps(memory_format):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64, generator=generator)
    ours, theirs = (level.contiguous(memory_format=memory_format) for level in values)
    return ours.requires_grad_(), theirs, torch.rand(2, 4, 5, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_sums_and_their_gradient_are_those_of_torch(memory_format):
    ours, theirs, weights = maps(memory_format)
    found = MapSums(*_SumMaps.apply(ours, theirs, weights))
    difference = ours - theirs
    expected = MapSums(
        ours.abs().mean(dim=1),
        ours.abs().mean(dim=(2, 3)),
        difference.sum(dim=(2, 3)),
        difference.square().sum(dim=(2, 3)),
        (weights[:, None] * difference.square()).sum(dim=(2, 3)),
    )
    directions = [torch.randn_like(part) for part in expected]
    gradient, of_torch = (torch.autograd.grad(list(sums), ours, directions)[0] for sums in (found, expected))
    for own, other in zip([*found, gradient], [*expected, of_torch], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
    assert gradient.stride() == ours.stride()


def test_sums_leave_the_maps_as_they_are():
    ours, theirs, weights = maps(torch.channels_last)
    before = [ours.detach().clone(), theirs.clone()]
    torch.stack([part.sum() for part in _SumMaps.apply(ours, theirs, weights)]).sum().backward()
    assert torch.equal(ours, before[0])
    assert torch.equal(theirs, before[1])
