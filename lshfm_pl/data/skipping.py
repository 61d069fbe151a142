"""The part of a data module that lists the training images which were skipped."""

import pytorch_lightning as pl

from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.data.fault_lines import log_skipped
from lshfm_pl.data.faults import Fault, FaultLog, OnBadSample
from lshfm_pl.data.unlabelled import PictureSet

__all__ = ["SkippingDataModule"]


class SkippingDataModule(pl.LightningDataModule):
    """Knows which images were left out or replaced with `data.on_bad_sample=skip`, and lists them at the end."""

    on_bad_sample: OnBadSample
    unlabelled_set: PictureSet | None
    _sets: dict[str, DetectionDataset]
    _train_log: FaultLog

    def teardown(self, stage: str) -> None:
        """After training, list the skipped images of all processes."""
        if stage == "fit" and self.on_bad_sample == "skip":
            trainer = self.trainer
            if trainer is not None and trainer.world_size > 1:
                for images in self._trained_on():
                    counts = images.is_bad.int().to(trainer.strategy.root_device)
                    images.is_bad |= trainer.strategy.reduce(counts, reduce_op="max").bool().cpu()
            self._log_skipped()

    def on_exception(self, exception: BaseException) -> None:
        """List the images that this process has skipped so far; the other processes may have ended."""
        if self.on_bad_sample == "skip" and "train" in self._sets:
            self._log_skipped()

    def skipped(self) -> list[Fault]:
        """The errors because of which training images were left out or replaced, one per image.

        After `trainer.fit` they are those of all processes. After a resume they are those since then; every full
        epoch finds all of them again.
        """
        by_image = {fault.image_id or str(fault): fault for fault in reversed(self._train_log.errors)}
        images = list(by_image.values())[::-1]
        return images + [fault for dataset in self._trained_on() for fault in dataset.skipped()]

    def _trained_on(self) -> list[DetectionDataset]:
        """The training set and the unlabelled pictures, as far as they were read."""
        labelled = [self._sets["train"]] if "train" in self._sets else []
        return labelled + ([] if self.unlabelled_set is None else [self.unlabelled_set])

    def _log_skipped(self) -> None:
        faults = self.skipped()
        if faults and (self.trainer is None or self.trainer.global_rank == 0):
            log_skipped(faults)
