"""The LightningModule for training a student that mimics a frozen teacher."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lshfm_pl.data.batches import Batch
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.cost import count_parameters
from lshfm_pl.detectors.frozen import freeze
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import Batch as MimicBatch
from lshfm_pl.mimic import Moment, Pair, Terms, make_tap
from lshfm_pl.mimic.balance import Balance, gradient_norms
from lshfm_pl.mimic.calibration import sampled_features
from lshfm_pl.seeding import mix_seed
from lshfm_pl.training.detection import DetectionModule, Place
from lshfm_pl.training.optim import Schedule

__all__ = ["ZERO_STEPS_ALLOWED", "DistillationModule"]

CHECKPOINT_PREFIXES = ("mimic.", "balance.")
"""Prefixes of the tensors of the mimic terms and of their factors in the `state_dict` of a training checkpoint."""

ZERO_STEPS_ALLOWED = 20
"""If a mimic term is exactly zero in this many consecutive steps, nothing is distilled, and training is stopped."""


class DistillationModule(DetectionModule):
    """A student that is trained with its own losses plus mimic terms.

    The teacher is deliberately not a sub-module. So `train()` does not take it out of evaluation mode, and it is
    not in the state dict, in the optimizer, or in DDP's buckets and buffer broadcasts.

    Args:
        detector: the student.
        teacher: a trained detector that has the points of the terms. It is frozen permanently, see `freeze`.
        losses: result of `build_losses`. Terms whose features have different widths get adapters here, which are
            initialised by `seed`.
        schedule, data_config, seed: see `DetectionModule`.
        teacher_dtype: dtype of the teacher's weights: that of autocast in mixed precision; None keeps them.

    Raises:
        LSHFMError: student and teacher do not fit together.
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
        self.balance = losses.make_balance()
        #: Counted before freezing, which merges some parameters.
        self.teacher_parameters = sum(count_parameters([teacher]))
        self.tap = make_tap(detector, teacher, losses.points, is_adapted=True)
        losses.add_adapters(self.tap, seed)
        freeze(teacher, teacher_dtype)
        self._moment = Moment()
        self._steps = 0
        self._zero_steps: int | Tensor = 0
        # Hash matrices never change; without this DDP would send them to every process in every step.
        self._ddp_params_and_buffers_to_ignore += [
            key for key, _ in self.named_buffers() if key.startswith(CHECKPOINT_PREFIXES)
        ]

    @property
    def teacher(self) -> Detector:
        """The frozen teacher."""
        return self.tap.teacher

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of the student, followed by those of adapters and losses."""
        return [*super().trained_parameters(), *self.mimic.parameters()]

    def on_fit_start(self) -> None:
        """Move the teacher to the student's device. A new run also calibrates its losses.

        Every process computes the calibration, so that a failure occurs in all of them. The result of the first
        process is used.
        """
        super().on_fit_start()
        self.teacher.to(self.device)
        if self.trainer.ckpt_path is None:
            with self.trainer.precision_plugin.forward_context():
                self.mimic.calibrate(self._sampled_features, self.trainer.strategy.broadcast)

    def _sampled_features(self, num_images: int) -> Tensor:
        sample = self.trainer.datamodule.sample_dataloader(num_images)  # type: ignore[attr-defined]
        return sampled_features(self.teacher, sample)

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The student's losses, and `mimic_<term>` for each mimic term.

        A term that has ended is 0 and is not computed. The teacher runs only for the points of the other terms.

        Raises:
            LSHFMError: while β > 0, a mimic term is missing, has no gradient, or was exactly zero too often.
        """
        terms: dict[str, Tensor] = {}
        maps: list[Tensor] = []
        with ExitStack() as stack:
            if self.balance is not None and self.balance.is_due(self._moment.step):
                stack.enter_context(self._recording_maps(maps))
            if points := self.mimic.points_at(self._moment):
                stack.enter_context(
                    self.tap.pairing(
                        lambda pairs, batch: terms.update(self.mimic_terms(pairs, batch)), points
                    )
                )
            losses = super().losses(images, targets)
        self._check_not_silent(terms, has_boxes=any(len(target["boxes"]) for target in targets))
        if self.balance is not None:
            terms = self._balanced(self.balance, terms, losses, maps)
        terms |= self.mimic.ended(self._moment, self.device)
        return {**losses, **{f"mimic_{name}": terms[name] for name in self.mimic}}

    @contextmanager
    def _recording_maps(self, maps: list[Tensor]) -> Iterator[None]:
        """Append the maps of the student's pyramid in its next forward pass."""

        def record(module: nn.Module, inputs: Any, output: Tensor | dict[str, Tensor]) -> None:
            maps.extend([output] if isinstance(output, Tensor) else output.values())

        body = self.detector.get_submodule(architecture_of(self.detector).body_modules[0])
        handle = body.register_forward_hook(record)
        try:
            yield
        finally:
            handle.remove()

    def _balanced(
        self, balance: Balance, terms: dict[str, Tensor], losses: Mapping[str, Tensor], maps: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The terms, each with the factor that its gradient asks for."""
        if terms and maps and torch.is_grad_enabled():
            courses = {name: term.course(self._moment) for name, term in self.mimic.named()}
            each = [
                terms[name] / course if name in terms and course else None for name, course in courses.items()
            ]
            own = torch.stack(list(losses.values())).sum()
            sizes = gradient_norms([own, *each], maps, self._sum_over_processes)
            balance.measure(sizes, self._moment.step)
        factors = balance.factors()
        return {name: factors[name] * term for name, term in terms.items()}

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self._trainer is None:
            return values
        return cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="sum"))

    def monitored(self) -> dict[str, Tensor]:
        """Scalars of the last batch to log: those of the losses, and the factor of each balanced term."""
        factors = {} if self.balance is None else self.balance.factors()
        return {**self.mimic.monitored(), **{f"factor_{name}": factor for name, factor in factors.items()}}

    def mimic_terms(self, pairs: Mapping[str, Pair], batch: MimicBatch) -> dict[str, Tensor]:
        """The weighted mimic terms that have not ended, by name."""
        return self.mimic(pairs, batch, self._moment)

    def losses_at(self, batch: Batch, place: Place) -> dict[str, Tensor]:
        """See `DetectionModule`. The mimic terms are also multiplied by the warm-up of the schedule."""
        seed = mix_seed(self.seed, place.rank, place.epoch, place.batch_idx)
        assert self.schedule is not None
        self._moment = Moment(place.step, place.epoch, seed, place.steps, self.schedule.epochs)
        losses = super().losses_at(batch, place)
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
                f"the mimic term {without[0]} has no gradient, so the student would not learn from it, probably "
                "because all layers before its features are frozen: increase model.trainable_stages"
            )
        if not has_boxes:
            return  # RetinaNet's terms use locations near boxes, and images without objects have none
        self._zero_steps = (self._zero_steps + 1) * (torch.stack(list(terms.values())) == 0).all()
        self._steps += 1
        # Counted on the device and read rarely, because reading waits for all queued work of a GPU.
        if self._steps % ZERO_STEPS_ALLOWED == 0 and int(self._zero_steps) >= ZERO_STEPS_ALLOWED:
            raise LSHFMError(
                f"the mimic term was exactly 0 in {ZERO_STEPS_ALLOWED} consecutive steps with β = {beta:g}: "
                "nothing is distilled. Check that the teacher is trained, and is not the student itself"
            )

    def renamed_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """See `DetectionModule`. The hash of an older checkpoint gets the name that it has in this version."""
        return self.mimic.renamed(super().renamed_state(state), CHECKPOINT_PREFIXES[0])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `DetectionModule`. A checkpoint with weights only (best.ckpt) has those of the student alone."""
        super().on_save_checkpoint(checkpoint)
        if "optimizer_states" not in checkpoint:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {
                key: value for key, value in state.items() if not key.startswith(CHECKPOINT_PREFIXES)
            }
