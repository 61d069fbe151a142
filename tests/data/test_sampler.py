import bisect
import itertools
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lshfm_pl.data.sampler import AspectRatioBatchSampler, Draw, ShardSampler
from lshfm_pl.data.transforms import eval_transform
from lshfm_pl.errors import LSHFMError
from lshfm_pl.seeding import mix_seed


def ratios_of(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 ** (3 * torch.rand(number, generator=generator) - 1.5)).tolist()


def indices_of(batches):
    return [[draw.index for draw in batch] for batch in batches]


def global_batches(ratios, batch_size, num_replicas, epoch=0, **settings):
    """The concatenation of what all ranks yield, after checking that they agree in length."""
    ranks = []
    for rank in range(num_replicas):
        sampler = AspectRatioBatchSampler(
            ratios, batch_size, num_replicas=num_replicas, rank=rank, **settings
        )
        sampler.set_epoch(epoch)
        length = len(sampler)
        batches = list(sampler)
        assert len(batches) == length
        assert all(len(batch) == batch_size for batch in batches)
        ranks.append(indices_of(batches))
    return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


CASES = list(itertools.product([1, 2, 3, 7, 16, 41, 200], [1, 2, 4], [1, 2, 3], [0, 3]))


@pytest.mark.parametrize(("number", "batch_size", "num_replicas", "group_factor"), CASES)
def test_every_image_comes_and_few_come_again(number, batch_size, num_replicas, group_factor):
    batches = global_batches(ratios_of(number), batch_size, num_replicas, group_factor=group_factor)
    size = batch_size * num_replicas
    counts = Counter(itertools.chain(*batches))
    assert set(counts) == set(range(number))
    assert counts.total() == -(-number // size) * size
    assert counts.total() - number <= size - 1
    if number >= size:
        assert all(len(set(batch)) == size for batch in batches), "an image twice in one batch"


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_batches_are_of_one_aspect_ratio_group_but_for_the_tails(num_replicas):
    ratios = ratios_of(500)
    # The bin edges of torchvision's reference for factor 3.
    borders = [0.5, 0.5 ** (2 / 3), 0.5 ** (1 / 3), 1.0, 2 ** (1 / 3), 2 ** (2 / 3), 2.0]
    group = [bisect.bisect_right(borders, ratio) for ratio in ratios]
    size = 4 * num_replicas
    batches = global_batches(ratios, 4, num_replicas)
    mixed = [batch for batch in batches if len({group[index] for index in batch}) > 1]
    tails = sum(count % size for count in Counter(group).values())
    assert len(set(group)) == 8
    assert len(mixed) <= -(-tails // size)
    assert len(batches) - len(mixed) >= sum(count // size for count in Counter(group).values())


def test_an_aspect_ratio_on_a_border_belongs_to_the_upper_group():
    ratios = [1.0] * 4 + [0.99] * 4
    for batch in global_batches(ratios, 4, 1):
        assert len({ratios[index] for index in batch}) == 1


def test_mixed_batches_join_neighbouring_aspect_ratios():
    ratios = [0.4, 0.6, 0.7, 0.9, 1.1, 1.4, 1.8, 2.5]
    batches = global_batches(ratios[::-1], 2, 1)
    assert sorted(tuple(sorted(batch)) for batch in batches) == [(0, 1), (2, 3), (4, 5), (6, 7)]


@pytest.mark.parametrize("seed", range(5))
def test_tails_are_ordered_by_aspect_ratio_within_groups_too(seed):
    ratios = [5.0, 1.7, 3.0, 1.8]
    batches = global_batches(ratios, 3, 1, seed=seed)
    assert {1, 2, 3} in [set(batch) for batch in batches]


def test_factor_zero_does_not_group():
    ratios = [0.5, 2.0] * 20
    assert any(
        {ratios[i] for i in batch} == {0.5, 2.0} for batch in global_batches(ratios, 4, 1, group_factor=0)
    )
    assert all(len({ratios[i] for i in batch}) == 1 for batch in global_batches(ratios, 4, 1, group_factor=3))


def test_global_batches_do_not_depend_on_the_number_of_processes():
    ratios = ratios_of(97)
    assert global_batches(ratios, 4, 1) == global_batches(ratios, 2, 2) == global_batches(ratios, 1, 4)


def test_order_depends_on_seed_and_epoch_alone():
    ratios = ratios_of(60)
    first = global_batches(ratios, 4, 1, seed=1)
    torch.manual_seed(99)
    assert global_batches(ratios, 4, 1, seed=1) == first
    assert global_batches(ratios, 4, 1, seed=2) != first
    assert global_batches(ratios, 4, 1, epoch=1, seed=1) != first


def test_without_shuffling_every_epoch_has_the_order_of_the_data_set():
    for epoch in range(2):
        assert global_batches([1.0] * 6, 2, 1, epoch, shuffle=False) == [[0, 1], [2, 3], [4, 5]]


def test_batches_of_one_group_come_in_random_order():
    ratios = [0.4] * 40 + [2.5] * 40
    kinds = [ratios[batch[0]] for batch in global_batches(ratios, 4, 1)]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    assert changes > 3


def test_draws_carry_the_epoch_of_the_moment_the_iterator_was_made():
    sampler = AspectRatioBatchSampler([1.0] * 4, 2)
    sampler.set_epoch(5)
    iterator = iter(sampler)
    sampler.set_epoch(6)
    assert {draw.epoch for batch in iterator for draw in batch} == {5}
    batch = next(iter(sampler))
    assert all(isinstance(draw, Draw) and type(draw.index) is int for draw in batch)
    assert batch[0].epoch == 6


def test_lightning_finds_set_epoch_through_the_data_loader():
    from lightning_fabric.utilities.data import _set_sampler_epoch

    sampler = AspectRatioBatchSampler([1.0] * 4, 2)
    _set_sampler_epoch(DataLoader(range(4), batch_sampler=sampler), 7)
    assert sampler.epoch == 7


def test_no_images_are_refused():
    with pytest.raises(LSHFMError, match="no images"):
        AspectRatioBatchSampler([], 2)


@pytest.mark.parametrize("number", [0, 1, 5, 12])
@pytest.mark.parametrize("num_replicas", [1, 2, 5])
def test_evaluation_shards_cover_each_image_once(number, num_replicas):
    shards = [ShardSampler(number, num_replicas=num_replicas, rank=rank) for rank in range(num_replicas)]
    assert sorted(itertools.chain(*shards)) == list(range(number))
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_mixed_seeds_of_neighbours_differ():
    seeds = {mix_seed(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(100)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_evaluation_transforms_nothing():
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    assert isinstance(eval_transform(), v2.Transform)
    assert torch.equal(eval_transform()(image), image)


def test_skipped_batches_are_left_out_of_their_epoch_alone():
    sampler, whole = (AspectRatioBatchSampler(ratios_of(20), 2) for _ in range(2))
    for epoch in (3, 4):
        whole.set_epoch(epoch)
        sampler.set_epoch(epoch)
        if epoch == 3:
            sampler.skip(4)
        expected = list(whole)[4 if epoch == 3 else 0 :]
        assert list(sampler) == expected
        assert list(DataLoader(range(20), batch_sampler=sampler, num_workers=0).batch_sampler) == expected
        assert len(sampler) == len(whole) == 10


def test_loader_with_workers_leaves_skipped_batches_out_too():
    sampler = AspectRatioBatchSampler([1.0] * 8, 2)
    expected = list(sampler)[3:]
    sampler.skip(3)
    loader = DataLoader(Keys(), batch_sampler=sampler, num_workers=1, collate_fn=list)
    assert list(loader) == expected


class Keys(Dataset):
    """Its items are their keys."""

    def __getitem__(self, key):
        return key

    def __len__(self):
        return 8
