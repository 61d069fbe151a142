"""Training a student to mimic a frozen teacher."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lshfm_pl.data.batches import Batch
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.cost import count_parameters
from lshfm_pl.detectors.frozen import freeze
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import Batch as MimicBatch
from lshfm_pl.mimic import Moment, Pair, Terms, make_tap
from lshfm_pl.mimic.calibration import sampled_features
from lshfm_pl.seeding import mix_seed
from lshfm_pl.training.detection import DetectionModule, Place
from lshfm_pl.training.optim import Schedule

__all__ = ["ZERO_STEPS_ALLOWED", "DistillationModule"]

CHECKPOINT_PREFIX = "mimic."
"""Where training checkpoints keep what belongs to the mimic terms in their `state_dict`."""

ZERO_STEPS_ALLOWED = 20
"""A mimic term that is exactly zero so many steps running means that nothing is being distilled."""


class DistillationModule(DetectionModule):
    """The student's own losses plus mimic terms.

    The teacher is deliberately no sub-module: it stays in eval mode whatever `train()` does, has no entry in the
    state dict, no optimizer state and no place in DDP's buckets or buffer broadcasts.

    Args:
        detector: the student.
        teacher: a trained detector with the points of the terms; frozen here for good (`freeze`).
        losses: of `build_losses`; where widths differ the terms are given adapters here, which `seed` decides.
        schedule, data_config, seed: as `DetectionModule`.
        teacher_dtype: of the teacher's weights; that of autocast if training runs in mixed precision.

    Raises:
        LSHFMError: student and teacher do not fit.
    """

    def __init__(
        self,
        detector: Detector,
        teacher: Detector,
        losses: Terms,
        schedule: Schedule | None = None,
        *,
        data_config: Mapping[str, Any] | None = None,
        seed: int = 0,
        teacher_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(detector, schedule, data_config=data_config, seed=seed)
        self.mimic = losses
        #: Of the teacher as it was given: freezing makes a few of its parameters one.
        self.teacher_parameters = sum(count_parameters([teacher]))
        self.tap = make_tap(detector, teacher, losses.points, is_adapted=True)
        losses.add_adapters(self.tap, seed)
        freeze(teacher, teacher_dtype)
        self._moment = Moment()
        self._steps = 0
        self._zero_steps: int | Tensor = 0
        # A hash matrix never changes; without this DDP would send it to every process every step.
        self._ddp_params_and_buffers_to_ignore = [
            CHECKPOINT_PREFIX + key for key, _ in losses.named_buffers()
        ]

    @property
    def teacher(self) -> Detector:
        """The frozen teacher."""
        return self.tap.teacher

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those of the student, then those of adapters and of losses."""
        return [*super().trained_parameters(), *self.mimic.parameters()]

    def on_fit_start(self) -> None:
        """The teacher follows the student to its device; a new run calibrates its losses, a resumed one did before.

        Every process makes the pass, so that one's failure is everybody's; the first one's result counts.
        """
        self.teacher.to(self.device)
        if self.trainer.ckpt_path is None:
            with self.trainer.precision_plugin.forward_context():
                self.mimic.calibrate(self._sampled_features, self.trainer.strategy.broadcast)

    def _sampled_features(self, num_images: int) -> Tensor:
        sample = self.trainer.datamodule.sample_dataloader(num_images)  # type: ignore[attr-defined]
        return sampled_features(self.teacher, sample)

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The student's losses and `mimic_<term>` for each mimic term.

        A term that has ended is 0 and costs nothing; the teacher runs for the points of the others alone.

        Raises:
            LSHFMError: a mimic term is missing or without gradient, or was exactly zero too often, while β > 0.
        """
        terms: dict[str, Tensor] = {}
        with ExitStack() as stack:
            if points := self.mimic.points_at(self._moment):
                stack.enter_context(
                    self.tap.pairing(
                        lambda pairs, batch: terms.update(self.mimic_terms(pairs, batch)), points
                    )
                )
            losses = super().losses(images, targets)
        self._check_not_silent(terms, has_boxes=any(len(target["boxes"]) for target in targets))
        terms |= self.mimic.ended(self._moment, self.device)
        return {**losses, **{f"mimic_{name}": terms[name] for name in self.mimic}}

    def mimic_terms(self, pairs: Mapping[str, Pair], batch: MimicBatch) -> dict[str, Tensor]:
        """The weighted mimic terms that have not ended, by name."""
        return self.mimic(pairs, batch, self._moment)

    def losses_at(self, batch: Batch, place: Place) -> dict[str, Tensor]:
        """As the plain module; the mimic terms are weighted by the schedule's warm-up."""
        seed = mix_seed(self.seed, place.rank, place.epoch, place.batch_idx)
        self._moment = Moment(place.step, place.epoch, seed)
        losses = super().losses_at(batch, place)
        assert self.schedule is not None
        factor = self.schedule.mimic_factor(place.step)
        if factor == 1:
            return losses
        return {name: factor * loss if name.startswith("mimic_") else loss for name, loss in losses.items()}

    def _check_not_silent(self, terms: dict[str, Tensor], *, has_boxes: bool) -> None:
        beta = self.mimic.strength(self._moment)
        if beta == 0:
            return
        without = [name for name, term in terms.items() if torch.is_grad_enabled() and not term.requires_grad]
        if without:
            raise LSHFMError(
                f"the mimic term {without[0]} has no gradient, so the student would not learn from it: is "
                "everything before it frozen? Raise model.trainable_stages"
            )
        if not has_boxes:
            return  # a RetinaNet's terms are of locations near boxes: none in images of background
        self._zero_steps = (self._zero_steps + 1) * (torch.stack(list(terms.values())) == 0).all()
        self._steps += 1
        # Counted on the device and looked at now and then: a look waits for all that a GPU has still to do.
        if self._steps % ZERO_STEPS_ALLOWED == 0 and int(self._zero_steps) >= ZERO_STEPS_ALLOWED:
            raise LSHFMError(
                f"the mimic term was exactly 0 for {ZERO_STEPS_ALLOWED} steps running, β = {beta:g}: "
                "nothing is distilled. Is the teacher trained, and not the student itself?"
            )

    def renamed_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """As the plain module; the hash of an older checkpoint under the name that it has now."""
        return self.mimic.renamed(super().renamed_state(state), CHECKPOINT_PREFIX)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As the plain module; a weights-only file (best.ckpt) holds the student alone."""
        super().on_save_checkpoint(checkpoint)
        if "optimizer_states" not in checkpoint:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {
                key: value for key, value in state.items() if not key.startswith(CHECKPOINT_PREFIX)
            }
