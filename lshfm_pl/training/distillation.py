"""Training a student to mimic a frozen teacher."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lshfm_pl.data.batches import Batch
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.cost import count_parameters
from lshfm_pl.detectors.frozen import freeze
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import LSH, DistillLosses, make_tap
from lshfm_pl.mimic.build import CHECKPOINT_PREFIX
from lshfm_pl.mimic.features import Pairs
from lshfm_pl.training.detection import DetectionModule, Place
from lshfm_pl.training.optim import Schedule

__all__ = ["ZERO_STEPS_ALLOWED", "DistillationModule"]

ZERO_STEPS_ALLOWED = 20
"""A mimic term that is exactly zero so many steps running means that nothing is being distilled."""


class DistillationModule(DetectionModule):
    """The student's own losses plus the mimic term: of features, of class logits, or of both.

    The teacher is deliberately no sub-module: it stays in eval mode whatever `train()` does, has no entry in the
    state dict, no optimizer state and no place in DDP's buckets or buffer broadcasts.

    Args:
        detector: the student.
        teacher: a trained detector of the same architecture; frozen here for good (`freeze`).
        losses: of `build_losses`.
        schedule, data_config, seed: as `DetectionModule`.
        teacher_dtype: of the teacher's weights; that of autocast if training runs in mixed precision.

    Raises:
        LSHFMError: student and teacher do not fit.
    """

    def __init__(
        self,
        detector: Detector,
        teacher: Detector,
        losses: DistillLosses,
        schedule: Schedule | None = None,
        *,
        data_config: Mapping[str, Any] | None = None,
        seed: int = 0,
        teacher_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(detector, schedule, data_config=data_config, seed=seed)
        self.mimic, self.kd = losses.features, losses.logits
        self._bias = losses.bias
        #: Of the teacher as it was given: freezing makes a few of its parameters one.
        self.teacher_parameters = sum(count_parameters([teacher]))
        self.tap = make_tap(
            detector,
            teacher,
            features=self.mimic is not None,
            logits=self.kd is not None,
        )
        freeze(teacher, teacher_dtype)
        self._steps = 0
        self._zero_steps: int | Tensor = 0
        # The hash matrix never changes; without this DDP would send it to every process every step.
        buffers = [] if self.mimic is None else self.mimic.named_buffers()
        self._ddp_params_and_buffers_to_ignore = [CHECKPOINT_PREFIX + key for key, _ in buffers]

    @property
    def teacher(self) -> Detector:
        """The frozen teacher."""
        return self.tap.teacher

    def on_fit_start(self) -> None:
        """The teacher follows the student to its device; a new run centres its hash, a resumed one has its bias.

        Every process makes the pass, so that one's failure is everybody's; the first one's result counts.
        """
        self.teacher.to(self.device)
        if self._bias is not None and self.trainer.ckpt_path is None:
            assert isinstance(self.mimic, LSH)
            sample = self.trainer.datamodule.sample_dataloader(self._bias.num_images)  # type: ignore[attr-defined]
            with self.trainer.precision_plugin.forward_context():
                self._bias.apply(self.mimic, self.teacher, sample)
            # By the CPU: a pickled tensor of a GPU would open that GPU in every process.
            self.mimic.bias.copy_(self.trainer.strategy.broadcast(self.mimic.bias.cpu()))

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The student's losses and `mimic_<term>` for each term of the mimic losses.

        Raises:
            LSHFMError: the mimic term is missing or without gradient, or was exactly zero too often, while β > 0.
        """
        terms: dict[str, Tensor] = {}
        with self.tap.pairing(lambda pairs: terms.update(self.mimic_terms(pairs))):
            losses = super().losses(images, targets)
        self._check_not_silent(terms, has_boxes=any(len(target["boxes"]) for target in targets))
        return {**losses, **{f"mimic_{name}": term for name, term in terms.items()}}

    def mimic_terms(self, pairs: Pairs) -> dict[str, Tensor]:
        """The weighted terms of the mimic losses by name."""
        terms: dict[str, Tensor] = {}
        if self.mimic is not None and pairs.features is not None:
            terms |= self.mimic.terms(*pairs.features)
        if self.kd is not None and pairs.logits is not None:
            terms |= self.kd.terms(*pairs.logits)
        return terms

    def losses_at(self, batch: Batch, place: Place) -> dict[str, Tensor]:
        """As the plain module; the mimic terms are weighted by the schedule's warm-up."""
        losses = super().losses_at(batch, place)
        assert self.schedule is not None
        factor = self.schedule.mimic_factor(place.step)
        if factor == 1:
            return losses
        return {name: factor * loss if name.startswith("mimic_") else loss for name, loss in losses.items()}

    def _check_not_silent(self, terms: dict[str, Tensor], *, has_boxes: bool) -> None:
        beta = max(head.beta for head in (self.mimic, self.kd) if head is not None)
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As the plain module; a weights-only file (best.ckpt) holds the student alone, without the hash."""
        super().on_save_checkpoint(checkpoint)
        if "optimizer_states" not in checkpoint:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {
                key: value for key, value in state.items() if not key.startswith(CHECKPOINT_PREFIX)
            }
