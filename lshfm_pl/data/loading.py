"""The part of a data module that makes batches of the sets which were read."""

from abc import abstractmethod
from typing import Any

from torch.utils.data import DataLoader

from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.data.loaders import Beside, evaluation_loader, loader_arguments, sample_loader, train_loader
from lshfm_pl.data.skipping import SkippingDataModule
from lshfm_pl.data.train_labels import no_set
from lshfm_pl.data.unlabelled import MixedDataset, num_unlabelled
from lshfm_pl.errors import LSHFMError

__all__ = ["SPLITS", "LoadingDataModule"]

SPLITS = ("train", "val", "test")
"""The names of the sets, in the order in which they are read."""


class LoadingDataModule(SkippingDataModule):
    """Gives access to the sets that were read, and builds their samplers and loaders."""

    batch_size: int
    eval_batch_size: int
    num_workers: int
    start_method: str | None
    aspect_ratio_groups: int
    seed: int
    unlabelled_share: float

    @abstractmethod
    def has_set(self, split: str) -> bool:
        """Whether the set `train`, `val` or `test` exists."""

    @property
    def train_set(self) -> DetectionDataset:
        """The training images, after `setup("fit")`."""
        return self._set("train")

    @property
    def trained_images(self) -> DetectionDataset | MixedDataset:
        """The images of training batches: the training set, followed by the unlabelled pictures."""
        if self.unlabelled_set is None:
            return self.train_set
        return MixedDataset(self.train_set, self.unlabelled_set)

    @property
    def val_set(self) -> DetectionDataset:
        """The validation images, after `setup("fit")` or `setup("validate")`."""
        return self._set("val")

    @property
    def test_set(self) -> DetectionDataset:
        """The test images, after `setup("test")`."""
        return self._set("test")

    def _set(self, name: str) -> DetectionDataset:
        if not self.has_set(name):
            raise LSHFMError(no_set(name))
        if name not in self._sets:
            raise RuntimeError(f"the {name} set is not there yet: call setup() first")
        return self._sets[name]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of images with similar aspect ratios, in a new order every epoch."""
        return train_loader(
            self.train_set,
            self.trainer,
            batch_size=self.batch_size,
            aspect_ratio_groups=self.aspect_ratio_groups,
            seed=self.seed,
            beside=self.beside(),
            **self._loader_arguments(),
        )

    def beside(self) -> Beside | None:
        """The unlabelled pictures and their number in a batch of a process; None without any.

        Raises:
            LSHFMError: a batch has a single image.
        """
        if self.unlabelled_set is None:
            return None
        return Beside(self.unlabelled_set, num_unlabelled(self.batch_size, self.unlabelled_share))

    def val_dataloader(self) -> DataLoader:
        """Each validation image once, in order."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Each test image once, in order."""
        return self._evaluation_loader(self.test_set)

    def _evaluation_loader(self, dataset: DetectionDataset) -> DataLoader:
        return evaluation_loader(
            dataset, self.trainer, batch_size=self.eval_batch_size, **self._loader_arguments()
        )

    def sample_dataloader(self, num_images: int, split: str = "train") -> DataLoader:
        """An evenly spaced sample of a set, as for calibration: always the same images, in order.

        Nothing is random. Every process gets the whole sample.

        Args:
            num_images: at least 1; all images are used if there are fewer.
            split: train, val or test.

        Raises:
            LSHFMError: the number is below 1.
        """
        if num_images < 1:
            raise LSHFMError(f"A sample of {split} images needs at least one image, found {num_images}.")
        return sample_loader(
            self._set(split), num_images, batch_size=self.batch_size, **self._loader_arguments()
        )

    def _loader_arguments(self) -> dict[str, Any]:
        return loader_arguments(self.trainer, self.num_workers, self.start_method)

    def describe(self) -> dict[str, dict[str, Any]]:
        """`DetectionDataset.describe` of every split that is set up."""
        return {split: self._sets[split].describe() for split in SPLITS if split in self._sets}
