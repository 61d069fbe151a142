"""Batches are the same, no matter how they are passed to the training process."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lshfm_pl.data.batches import collate

ITEMS = [
    (
        torch.arange(3 * height * 5, dtype=torch.uint8).view(3, height, 5).flip(2),
        {
            "boxes": torch.rand(count, 4),
            "labels": torch.arange(count),
            "difficult": torch.arange(count) % 2 == 0,
            "image_id": torch.tensor(height),
            **extra,
        },
    )
    for height, count, extra in ((7, 3, {}), (1, 0, {"area": torch.rand(0)}), (4, 1, {}))
]


class Items(Dataset):
    def __len__(self):
        return len(ITEMS)

    def __getitem__(self, index):
        return ITEMS[index]


@pytest.fixture(params=[0, 1], ids=["same process", "worker"])
def batch(request):
    return next(iter(DataLoader(Items(), batch_size=3, num_workers=request.param, collate_fn=collate)))


def test_batch_is_a_list_of_images_and_one_of_targets_equal_to_the_items(batch):
    images, targets = batch
    assert [type(part) for part in batch] == [list, list]
    for image, target, (expected_image, expected) in zip(images, targets, ITEMS, strict=True):
        assert image.dtype == torch.uint8
        assert torch.equal(image, expected_image)
        assert list(target) == list(expected)
        for name, value in expected.items():
            assert target[name].dtype == value.dtype
            assert target[name].shape == value.shape
            assert torch.equal(target[name], value)


def test_tensors_of_a_batch_do_not_overlap(batch):
    images, targets = batch
    tensors = [*images, *(value for target in targets for value in target.values())]
    for tensor in tensors:
        tensor.zero_()
    images[0].fill_(7)
    targets[2]["labels"].fill_(7)
    assert sum(bool((tensor == 7).any()) for tensor in tensors) == 2


def test_batch_from_a_worker_comes_in_two_pieces_of_memory():
    images, targets = next(iter(DataLoader(Items(), batch_size=3, num_workers=1, collate_fn=collate)))
    pieces_of_images = {image.untyped_storage().data_ptr() for image in images}
    pieces_of_targets = {
        value.untyped_storage().data_ptr() for target in targets for value in target.values()
    }
    assert len(pieces_of_images) == len(pieces_of_targets) == 1
    assert pieces_of_images != pieces_of_targets
