"""Samplers: training batches of similar aspect ratios, and shards for evaluation."""

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from lshfm_pl.errors import LSHFMError

__all__ = ["AspectRatioBatchSampler", "Draw", "ShardSampler"]


class Draw(NamedTuple):
    """The key of a training item: the index of the image, and the epoch, on which its random transforms depend."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    epoch: int


class AspectRatioBatchSampler(Sampler[list[Draw]]):
    """Yields batches of `Draw(index, epoch)` whose images have similar aspect ratios.

    Global batches of G = batch_size × num_replicas images are built from one permutation by (seed, epoch), each
    from one group of aspect ratios. The remaining images of all groups are sorted by aspect ratio and form mixed
    batches. The last of these is filled with images from the start of the permutation. So an epoch has ceil(N /
    G) batches, every image comes at least once, and at most G − 1 images come again. Each rank yields its slice
    of every global batch, so global batches do not depend on the number of processes that share G.

    Args:
        aspect_ratios: width / height of every image.
        batch_size: images per process and step.
        group_factor: k sets the group borders to 2^(j/k), j = −k..k, as in torchvision's detection reference;
            0 for a single group.
        shuffle: False keeps the order of the data set within groups.
        seed: seed of the permutations, at least 0.
        num_replicas: number of processes.
        rank: rank of this process.

    Raises:
        LSHFMError: there are no images.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float],
        batch_size: int,
        *,
        group_factor: int = 3,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if not len(aspect_ratios):
            raise LSHFMError("The training set has no images.")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self._first_batch = 0
        self._aspect_ratios = np.asarray(aspect_ratios, dtype=np.float64)
        borders = (2 ** np.linspace(-1, 1, 2 * group_factor + 1)).tolist() if group_factor else []
        self._groups = np.array([bisect.bisect_right(borders, ratio) for ratio in self._aspect_ratios])

    @property
    def sampler(self) -> "AspectRatioBatchSampler":
        """This object. Lightning calls `dataloader.batch_sampler.sampler.set_epoch` before an epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Select the permutation and the random transforms of an epoch (0-based)."""
        if epoch != self.epoch:
            self._first_batch = 0
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Skip the first batches of the selected epoch, which were trained on before a resume.

        It applies to every iterator of the epoch: a loader with workers creates two at its start.
        """
        self._first_batch = batches

    def __len__(self) -> int:
        return math.ceil(len(self._groups) / (self.batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[list[Draw]]:
        # No generator: the epoch is read when the iterator is created, whatever the loader prefetches.
        first = self.rank * self.batch_size
        remaining = self._global_batches()[self._first_batch :]
        return iter(
            [
                [Draw(int(index), self.epoch) for index in batch[first : first + self.batch_size]]
                for batch in remaining
            ]
        )

    def _global_batches(self) -> list[np.ndarray]:
        size = self.batch_size * self.num_replicas
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        number = len(self._groups)
        permutation = generator.permutation(number) if self.shuffle else np.arange(number)
        batches: list[np.ndarray] = []
        tails = []
        for group in np.unique(self._groups):
            members = permutation[self._groups[permutation] == group]
            whole = len(members) // size * size
            batches += list(members[:whole].reshape(-1, size))
            tails.append(members[whole:])
        rest = np.concatenate(tails)
        rest = rest[np.argsort(self._aspect_ratios[rest], kind="stable")]
        whole = len(rest) // size * size
        batches += list(rest[:whole].reshape(-1, size))
        if last := rest[whole:].tolist():
            others = permutation[~np.isin(permutation, last)].tolist() or last
            batches.append(np.array([*last, *itertools.islice(itertools.cycle(others), size - len(last))]))
        order = generator.permutation(len(batches)) if self.shuffle else range(len(batches))
        return [batches[position] for position in order]


class ShardSampler(Sampler[int]):
    """Yields every image once, in order, divided among the processes: rank r gets r, r + world size, …

    Shards differ in length by at most one. No image is repeated, so that evaluation counts no image twice.
    """

    def __init__(self, number: int, *, num_replicas: int = 1, rank: int = 0) -> None:
        self._indices = range(number)[rank::num_replicas]

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)
