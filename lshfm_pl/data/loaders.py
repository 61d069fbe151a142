"""Data loaders for training, evaluation and evenly spaced samples."""

from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Subset

from lshfm_pl.data.batches import collate
from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.data.sampler import AspectRatioBatchSampler, ShardSampler
from lshfm_pl.data.unlabelled import MixedBatchSampler, MixedDataset, PictureSet, order_seed
from lshfm_pl.data.workers import worker_arguments
from lshfm_pl.errors import LSHFMError

__all__ = ["Beside", "evaluation_loader", "loader_arguments", "sample_loader", "train_loader"]


class Beside(NamedTuple):
    """Unlabelled pictures beside the labelled images of each batch.

    Attributes:
        dataset: the pictures.
        per_batch: their number in a batch of a process.
    """

    dataset: PictureSet
    per_batch: int


def loader_arguments(trainer: Any, num_workers: int, start_method: str | None) -> dict[str, Any]:
    """The arguments that all loaders of a data module share.

    Args:
        trainer: the Lightning trainer; None outside of one.
        num_workers: number of loader processes; 0 loads in the main process.
        start_method: how they are started, see `worker_arguments`.

    Raises:
        LSHFMError: this system does not have the start method.
    """
    on_cuda = trainer is not None and trainer.strategy.root_device.type == "cuda"
    return {
        "collate_fn": collate,
        **worker_arguments(num_workers, start_method),
        "persistent_workers": num_workers > 0,
        "pin_memory": on_cuda,
    }


def train_loader(
    dataset: DetectionDataset,
    trainer: Any,
    *,
    batch_size: int,
    aspect_ratio_groups: int,
    seed: int,
    beside: Beside | None = None,
    **arguments: Any,
) -> DataLoader:
    """Shuffled batches of images with similar aspect ratios, in a new order every epoch.

    Args:
        dataset: the training set.
        trainer: the Lightning trainer; None for a single process at the start of a run.
        batch_size: images per process and step.
        aspect_ratio_groups: see `AspectRatioBatchSampler`.
        seed: seed of the order.
        beside: unlabelled pictures, which are a part of each batch; None for none.
        **arguments: from `loader_arguments`.
    """

    def batches_of(images: DetectionDataset, size: int, seed: int) -> AspectRatioBatchSampler:
        return AspectRatioBatchSampler(
            images.aspect_ratios,
            size,
            group_factor=aspect_ratio_groups,
            # trainer.overfit_batches requires the same batches in every epoch.
            shuffle=trainer is None or not trainer.overfit_batches,
            seed=seed,
            num_replicas=_num_replicas(trainer),
            rank=_rank(trainer),
        )

    sampler: AspectRatioBatchSampler | MixedBatchSampler
    images: DetectionDataset | MixedDataset
    if beside is None:
        images, sampler = dataset, batches_of(dataset, batch_size, seed)
    else:
        images = MixedDataset(dataset, beside.dataset)
        sampler = MixedBatchSampler(
            batches_of(dataset, batch_size - beside.per_batch, seed),
            batches_of(beside.dataset, beside.per_batch, order_seed(seed)),
            offset=len(dataset),
        )
    if trainer is not None:
        # On resume Lightning creates the first iterator before it calls set_epoch with this number;
        # current_epoch may still be that of the finished epoch.
        fit_loop = trainer.fit_loop
        sampler.set_epoch(fit_loop.epoch_progress.current.processed)
        if fit_loop.restarting:  # in the middle of an epoch
            sampler.skip(fit_loop.epoch_loop.batch_progress.current.completed)
    return DataLoader(images, batch_sampler=sampler, **arguments)


def evaluation_loader(
    dataset: DetectionDataset, trainer: Any, *, batch_size: int, **arguments: Any
) -> DataLoader:
    """Each image of a set once, in order, divided among the processes.

    Args:
        dataset: the validation or test set.
        trainer: the Lightning trainer; None for a single process.
        batch_size: images per process and step.
        **arguments: from `loader_arguments`.

    Raises:
        LSHFMError: there are fewer images than processes.
    """
    if len(dataset) < _num_replicas(trainer):
        raise LSHFMError(
            f"There are {len(dataset)} images to evaluate, fewer than the {_num_replicas(trainer)} processes: "
            "use fewer devices or a larger set."
        )
    sampler = ShardSampler(len(dataset), num_replicas=_num_replicas(trainer), rank=_rank(trainer))
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, **arguments)


def sample_loader(
    dataset: DetectionDataset, num_images: int, *, batch_size: int, **arguments: Any
) -> DataLoader:
    """An evenly spaced sample of a set in order, without random transforms, the same for every process.

    Args:
        dataset: the set.
        num_images: at least 1; all images are used if there are fewer.
        batch_size: images per step.
        **arguments: from `loader_arguments`.
    """
    count = min(num_images, len(dataset))
    positions = [step * len(dataset) // count for step in range(count)]
    return DataLoader(Subset(dataset.without_transforms(), positions), batch_size=batch_size, **arguments)


def _num_replicas(trainer: Any) -> int:
    return 1 if trainer is None else trainer.world_size


def _rank(trainer: Any) -> int:
    return 0 if trainer is None else trainer.global_rank
