"""The LightningModule for training a student that mimics a frozen teacher."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lshfm_pl.data.batches import Batch, as_float
from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.cost import count_parameters
from lshfm_pl.detectors.frozen import freeze
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import Batch as MimicBatch
from lshfm_pl.mimic import Moment, Pair, Terms, make_tap
from lshfm_pl.mimic.balance import Balance, gradient_norms
from lshfm_pl.mimic.calibration import sampled_features
from lshfm_pl.mimic.scale import SAMPLED_IMAGES, ratio_of_sizes
from lshfm_pl.seeding import mix_seed
from lshfm_pl.training.detection import DetectionModule, Place
from lshfm_pl.training.mixed_batch import mean_by_images, mean_of, split_batch
from lshfm_pl.training.optim import Schedule
from lshfm_pl.training.pseudo_labels import PseudoLabeller

__all__ = ["ZERO_STEPS_ALLOWED", "DistillationModule"]

log = logging.getLogger(__name__)

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
        labeller: labels unlabelled pictures by this teacher; None leaves them without labels.

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
        labeller: PseudoLabeller | None = None,
    ) -> None:
        super().__init__(detector, schedule, data_config=data_config, seed=seed)
        self.mimic = losses
        self.balance = losses.make_balance()
        #: Counted before freezing, which merges some parameters.
        self.teacher_parameters = sum(count_parameters([teacher]))
        self.tap = make_tap(detector, teacher, losses.points, is_adapted=True)
        losses.add_adapters(self.tap, seed)
        losses.add_scales(self.tap)
        freeze(teacher, teacher_dtype)
        self.labeller = labeller
        #: Weight of the detection losses: 0 if there are no labels at all.
        self.detection_weight = 1.0
        #: Position of the batch in the run, which `losses_at` sets.
        self.moment = Moment()
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

    def move_teacher(self, device: torch.device) -> None:
        """Move the teacher, which is no sub-module, to a device."""
        self.teacher.to(device)
        if self.labeller is not None:
            self.labeller.to(device)

    def on_fit_start(self) -> None:
        """Move the teacher to the student's device. A new run also calibrates its losses.

        Every process computes the calibration, so that a failure occurs in all of them. The result of the first
        process is used.
        """
        super().on_fit_start()
        self.move_teacher(self.device)
        if self.balance is not None:
            told = ", ".join(f"{name} {share:g}" for name, share in self.balance.shares.items())
            log.info(
                "the weights follow from the gradients (distill.balance=share), so beta has no effect, and weights "
                "of the parts of a loss only say whether a part is on; "
                "shares of the detection losses' gradient: %s",
                told,
            )
        if self.trainer.ckpt_path is None:
            with self.trainer.precision_plugin.forward_context():
                self.mimic.calibrate(self._sampled_features, self.trainer.strategy.broadcast)
                factors = self.mimic.match_scales(self._ratio_of_sizes, self.trainer.strategy.broadcast)
            if factors is not None:
                listed = ", ".join(f"{factor:.3g}" for factor in factors.tolist())
                log.info("the teacher's maps are multiplied by %s, to be as large as the student's", listed)

    def _ratio_of_sizes(self) -> Tensor:
        sample = self.trainer.datamodule.sample_dataloader(SAMPLED_IMAGES)  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):  # an iterator of a loader draws a random number
            return ratio_of_sizes(self.detector, self.teacher, sample)

    def _sampled_features(self, num_images: int) -> Tensor:
        sample = self.trainer.datamodule.sample_dataloader(num_images)  # type: ignore[attr-defined]
        return sampled_features(self.teacher, self._with_boxes(sample))

    def _with_boxes(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches, in which pictures without labels have the boxes that the teacher detects.

        Raises:
            LSHFMError: the teacher does not label pictures.
        """
        for images, targets in batches:
            if any(UNLABELLED in target for target in targets):
                if self.labeller is None:
                    raise LSHFMError(
                        "distill.bias=median is measured near objects, which nothing tells without labels: "
                        "expected distill.pseudo_labels.score=0.5, or bias=mean, found neither"
                    )
                on_device = as_float([image.to(self.device) for image in images])
                yield images, self.labeller(on_device, targets).targets
            else:
                yield images, targets

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The student's losses, and `mimic_<term>` for each mimic term.

        A term that has ended is 0 and is not computed. The teacher runs only for the points of the other terms.
        Unlabelled pictures go through the student in a pass of their own, after the labelled images. They take part
        in the mimic terms, and if the teacher labels them, also in the detection losses, which are then the mean
        over both kinds by the number of images. How much a term is balanced follows from the labelled images, or if
        there are none, from the pictures.

        Raises:
            LSHFMError: while β > 0, a mimic term is missing, has no gradient, or was exactly zero too often.
        """
        labelled, unlabelled = split_batch(images, targets)
        maps: list[Tensor] = []
        with ExitStack() as stack:
            if self.balance is not None and self.balance.rule.is_due(self.moment.step):
                stack.enter_context(self._recording_maps(maps))
            if labelled[0]:
                losses, terms = self._pass(labelled, self.moment)
                has_boxes = any(len(target["boxes"]) for target in labelled[1])
            else:
                losses, terms, has_boxes = self._pass_of_pictures(*unlabelled)
                losses = {name: self.detection_weight * loss for name, loss in losses.items()}
        self._check_not_silent(terms, has_boxes=has_boxes)
        if self.balance is not None:
            self._measure(self.balance, terms, losses, maps)
        if labelled[0] and unlabelled[0] and (terms or self.labeller is not None):
            numbers = len(labelled[0]), len(unlabelled[0])
            of_pictures, others, _ = self._pass_of_pictures(*unlabelled)
            terms = mean_by_images(terms, others, *numbers)
            if self.labeller is not None:
                losses = mean_by_images(losses, of_pictures, *numbers)
        if self.balance is not None:
            factors = self.balance.factors()
            terms = {name: factors[name] * term if name in factors else term for name, term in terms.items()}
        terms |= self.mimic.ended(self.moment, self.device)
        return {**losses, **{f"mimic_{name}": terms[name] for name in self.mimic}}

    def _pass(self, batch: Batch, moment: Moment) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The student's losses and the mimic terms that have not ended, from one forward pass."""
        terms: dict[str, Tensor] = {}
        with ExitStack() as stack:
            if points := self.mimic.points_at(moment):
                stack.enter_context(
                    self.tap.pairing(
                        lambda pairs, seen: terms.update(self.mimic_terms(pairs, seen, moment)), points
                    )
                )
            losses = super().losses(*batch)
        return losses, terms

    def _pass_of_pictures(
        self, images: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], bool]:
        """The same as `_pass` for unlabelled pictures, and whether a term of 0 is suspicious, as it has objects.

        With soft labels each picture has a pass of its own, and its losses are multiplied by its weight.
        """
        # Other seeds than for the labelled images, so that losses that draw random numbers draw others.
        moments = [
            self.moment._replace(seed=mix_seed(self.moment.seed, 1 + index)) for index in range(len(images))
        ]
        if self.labeller is None:
            return *self._pass((images, targets), moments[0]), True
        labels = self.labeller(images, targets)
        has_boxes = any(len(target["boxes"]) for target in labels.targets)
        if labels.weights is None:
            return *self._pass((images, labels.targets), moments[0]), has_boxes
        passes = [
            self._pass(([image], [target]), moment)
            for image, target, moment in zip(images, labels.targets, moments, strict=True)
        ]
        parts = list(zip(labels.weights, *zip(*passes, strict=True), strict=True))
        weighted = [{name: weight * loss for name, loss in losses.items()} for weight, losses, _ in parts]
        return mean_of(weighted), mean_of([terms for _, _, terms in parts]), has_boxes

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

    def _measure(
        self, balance: Balance, terms: dict[str, Tensor], losses: Mapping[str, Tensor], maps: Sequence[Tensor]
    ) -> None:
        """Measure the gradients from which the factors of the terms follow, if maps were recorded."""
        if terms and maps and torch.is_grad_enabled():
            courses = {name: term.course(self.moment) for name, term in self.mimic.named()}
            each = [
                terms[name] / courses[name] if name in terms and courses[name] else None
                for name in balance.shares
            ]
            own = torch.stack(list(losses.values())).sum()
            sizes = gradient_norms([own, *each], maps, self._sum_over_processes)
            balance.measure(sizes, self.moment.step)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self._trainer is None:
            return values
        return cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="sum"))

    def monitored(self) -> dict[str, Tensor]:
        """Scalars of the last batch to log: those of the losses, and the factor of each balanced term."""
        factors = {} if self.balance is None else self.balance.factors()
        return {**self.mimic.monitored(), **{f"factor_{name}": factor for name, factor in factors.items()}}

    def mimic_terms(
        self, pairs: Mapping[str, Pair], batch: MimicBatch, moment: Moment | None = None
    ) -> dict[str, Tensor]:
        """The weighted mimic terms that have not ended, by name; without a moment, at that of the step."""
        return self.mimic(pairs, batch, self.moment if moment is None else moment)

    def losses_at(self, batch: Batch, place: Place) -> dict[str, Tensor]:
        """See `DetectionModule`. The mimic terms are also multiplied by the warm-up of the schedule."""
        seed = mix_seed(self.seed, place.rank, place.epoch, place.batch_idx)
        assert self.schedule is not None
        self.moment = Moment(place.step, place.epoch, seed, place.steps, self.schedule.epochs)
        losses = super().losses_at(batch, place)
        factor = self.schedule.mimic_factor(place.step)
        if factor == 1:
            return losses
        return {name: factor * loss if name.startswith("mimic_") else loss for name, loss in losses.items()}

    def _check_not_silent(self, terms: dict[str, Tensor], *, has_boxes: bool) -> None:
        beta = self.mimic.strength(self.moment)
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
