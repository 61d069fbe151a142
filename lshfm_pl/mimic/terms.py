"""The weighted sum of named mimic terms that is trained in addition to the student's own losses."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.adapters import Adapter, make_adapter, resize_to_larger, resized_weights
from lshfm_pl.mimic.balance import Balance, Rule
from lshfm_pl.mimic.features import Batch, FeatureTap, Pair
from lshfm_pl.mimic.losses.base import Context, Loss, LossSum, require_number
from lshfm_pl.mimic.nested import Features, map_features
from lshfm_pl.seeding import mix_seed

__all__ = ["Moment", "Term", "Terms", "name_seed"]

Pairs = Mapping[str, Pair]

PYRAMID = "pyramid"
"""Name of the point with the maps of the pyramid, and of these maps among those of another point."""


class Moment(NamedTuple):
    """Position of a batch in the run.

    Attributes:
        step: number of the optimizer step, from 0.
        epoch: number of the epoch, from 0.
        seed: seed of random numbers for this batch.
        steps: number of optimizer steps of the whole run; 0 if it is not known.
        epochs: number of epochs of the whole run; 0 if it is not known.
    """

    step: int = 0
    epoch: int = 0
    seed: int = 0
    steps: int = 0
    epochs: int = 0

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return self.step / self.steps if self.steps else 0.0

    def share(self, time: float) -> float:
        """A time as a share of the run: below 1 it is a share already, from 1 on a number of epochs."""
        return time if time < 1 else time / max(self.epochs, 1)


def name_seed(name: str) -> int:
    """A number that depends only on a term's name, used in the seeds of its random numbers."""
    return zlib.crc32(name.encode())


class Term(nn.Module):
    """A loss with its weight in the sum, and an adapter if student and teacher have features of different widths.

    Args:
        loss: the loss, which also says at which point it compares.
        weight: factor of the loss.
        warmup_steps: number of optimizer steps over which the weight rises linearly from 0.
        until: when the term ends: a number of epochs, or a share of the run below 1; None for never.
        decay_from: when the factor begins to fall, in the same units. It falls linearly to 0 at `until`, or at the
            end of the run; None for no fall.
        share: the term's share of the gradient, see `Balance`; None for that of the rule.
        match_scale: whether the teacher's maps of the pyramid get the size of the student's, see
            `Terms.match_scales`.

    Raises:
        LSHFMError: a number is out of range.
    """

    def __init__(
        self,
        loss: Loss,
        *,
        weight: float = 1.0,
        warmup_steps: int = 0,
        until: float | None = None,
        decay_from: float | None = None,
        share: float | None = None,
        match_scale: bool = False,
    ) -> None:
        super().__init__()
        numbers = {"weight": weight, "warmup_steps": warmup_steps}
        optional = {"until": until, "decay_from": decay_from, "share": share}
        numbers |= {key: value for key, value in optional.items() if value is not None}
        for key, value in numbers.items():
            require_number(key, value)
        if until is not None and decay_from is not None and decay_from >= until:
            raise LSHFMError(
                f"distill.decay_from: expected a time before distill.until={until:g}, found {decay_from:g}; give "
                "both as numbers of epochs, or both as shares of the run"
            )
        self.loss = loss
        self.weight, self.warmup_steps = float(weight), warmup_steps
        self.until, self.decay_from, self.share = until, decay_from, share
        self.adapter: Adapter | None = None
        self.matches_scale = match_scale
        #: [L], factor of the teacher's map at each level; None if they are left as they are.
        self.scale: Tensor | None
        self.register_buffer("scale", None)
        #: Whether a `Balance` sets the factor, so that the weight only says whether the term is on.
        self.is_balanced = False
        #: Number of terms that share the settings of one loss, and so its share of the gradient.
        self.num_parts = 1

    def strength(self, moment: Moment) -> float:
        """Weight times the loss's own β, without the warm-up; 0 once the term has ended."""
        return 0.0 if self.has_ended(moment) else self.weight * getattr(self.loss, "beta", 1.0)

    def has_ended(self, moment: Moment) -> bool:
        """Whether the term has ended, so that it is no longer computed."""
        if self.until is None:
            return False
        return moment.progress >= self.until > 0 if 0 < self.until < 1 else moment.epoch >= self.until

    def factor(self, moment: Moment) -> float:
        """Factor of the loss: the weight with its warm-up and its fall; 0 once the term has ended."""
        return self.weight * self.course(moment)

    def course(self, moment: Moment) -> float:
        """The warm-up times the fall, from 0 to 1; 0 once the term has ended."""
        if self.has_ended(moment):
            return 0.0
        rise = min(1.0, (moment.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay_from is None:
            return rise
        start, end = moment.share(self.decay_from), 1.0 if self.until is None else moment.share(self.until)
        if moment.progress <= start or end <= start:
            return rise
        return rise * max(0.0, (end - moment.progress) / (end - start))

    def forward(self, pair: Pair, batch: Batch, moment: Moment, generator_seed: int) -> Tensor:
        """The weighted loss of a pair, a float32 scalar."""
        student = pair.student
        if self.strength(moment) == 0 and not self.is_balanced:
            # Even a gradient of 0 may change the others in their last bits: what sums it up may change its layout.
            student = map_features(Tensor.detach, student)
        unadapted = student
        student = student if self.adapter is None else self.adapter(student)
        theirs = pair.teacher if self.scale is None else _scaled(pair.teacher, self.scale)
        student, teacher = resize_to_larger(student, theirs)
        weights = pair.weights
        if isinstance(weights, list) and isinstance(student, list):
            weights = resized_weights(weights, student)
        wants = self.loss.wants
        context = Context(
            weights=weights,
            boxes=batch.boxes if "boxes" in wants else None,
            labels=batch.labels if "boxes" in wants else None,
            image_sizes=batch.image_sizes,
            padded_size=batch.padded_size,
            strides=pair.strides,
            head=pair.head,
            unadapted=cast(list[Tensor], unadapted) if self.adapter and "unadapted" in wants else None,
            generator=torch.Generator().manual_seed(generator_seed) if "generator" in wants else None,
        )
        value = self.loss(student, teacher, context)
        factor = self.course(moment) if self.is_balanced and self.weight else self.factor(moment)
        return value if factor == 1 else factor * value

    def zero(self, device: torch.device) -> Tensor:
        """The value of an ended term: a 0 with a graph that gives each trained parameter a gradient of 0.

        DDP waits for a gradient of every parameter, and an optimizer skips parameters without one.
        """
        parts = [(parameter * 0).sum() for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack(parts).sum() if parts else torch.zeros((), device=device)


class Terms(nn.ModuleDict):
    """Named terms. Their sum is added to the student's own losses.

    Args:
        terms: terms by the names under which they are logged.
    """

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__(terms)
        self._ended: frozenset[str] = frozenset()
        #: How the factors of balanced terms follow from their gradients.
        self.rule = Rule()
        self.register_load_state_dict_pre_hook(_rename_state)

    @classmethod
    def of(cls, **losses: Loss | LossSum) -> "Terms":
        """Terms of weight 1. Each loss of a `LossSum` becomes a term with its own name."""
        terms: dict[str, Term] = {}
        for name, loss in losses.items():
            parts = loss.losses.items() if isinstance(loss, LossSum) else [(name, loss)]
            terms |= {part: Term(cast(Loss, each)) for part, each in parts}
        return cls(terms)

    def named(self) -> Iterator[tuple[str, Term]]:
        """The terms with their names."""
        for name, term in self.items():
            yield name, cast(Term, term)

    @property
    def points(self) -> frozenset[str]:
        """The points at which features are compared."""
        return frozenset(term.loss.point for _, term in self.named())

    def points_at(self, moment: Moment) -> frozenset[str]:
        """The points of the terms that have not ended."""
        return frozenset(term.loss.point for _, term in self.named() if not term.has_ended(moment))

    def add_adapters(self, tap: FeatureTap, seed: int) -> None:
        """Add an adapter to each term for which student and teacher have features of different widths.

        Its initial weights depend on the seed and the term's name. The global random state stays unchanged. Class
        logits are never adapted: they are paired by the names of the classes. A loss that `adapts` gets none.
        """
        for name, term in self.named():
            point = term.loss.point
            if term.loss.adapts:
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mix_seed(seed, name_seed(name)))
                term.adapter = make_adapter(*tap.channels(point), is_of_maps=tap.is_of_maps(point))

    def add_scales(self, tap: FeatureTap) -> None:
        """Give each term that matches the scale its factors, which are 1 until `match_scales`.

        Raises:
            LSHFMError: none of these terms compares maps of the pyramid.
        """
        wanted = [(name, term) for name, term in self.named() if term.matches_scale]
        fitting = [term for _, term in wanted if _has_pyramid(tap, term.loss.point)]
        if wanted and not fitting:
            name, term = wanted[0]
            raise LSHFMError(
                f"distill.match_scale: {name} compares features at {term.loss.point}, which has no maps of the "
                "pyramid; leave it false"
            )
        for term in fitting:
            assert tap.levels is not None
            term.scale = torch.ones(len(tap.levels.strides))

    def match_scales(
        self, ratio: Callable[[], Tensor], broadcast: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """Set the factors of the teacher's maps, so that these are as large as the student's before training.

        Args:
            ratio: returns size of the student's maps / size of the teacher's, [L].
            broadcast: returns the first process's tensor in every process.

        Returns:
            The factors; None if no term matches the scale.
        """
        terms = [term for _, term in self.named() if term.scale is not None]
        if not terms:
            return None
        factors = broadcast(ratio())
        for term in terms:
            assert term.scale is not None
            term.scale.copy_(factors)
        return factors

    def make_balance(self) -> Balance | None:
        """What sets the factors of the balanced terms by their gradients; None if all weights are fixed."""
        shares = {}
        for name, term in self.named():
            if term.is_balanced:
                share = self.rule.share if term.share is None else term.share
                shares[name] = share / term.num_parts if term.weight else 0.0
        return Balance(shares, self.rule) if shares else None

    def adapters(self) -> dict[str, Adapter]:
        """The adapters, by the names of their terms."""
        return {name: term.adapter for name, term in self.named() if term.adapter is not None}

    def strength(self, moment: Moment) -> float:
        """The strength of the strongest term; 0 without terms."""
        return max((term.strength(moment) for _, term in self.named()), default=0.0)

    def forward(self, pairs: Pairs, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """The weighted loss of each term that has not ended, by name.

        Args:
            pairs: pair of features for each point of these terms.
            batch: the batch of these features.
            moment: position in the run. Random numbers depend only on it and on the term's name.
        """

        # Cast once for all terms of a point, so that their gradients are summed in float32.
        pairs = {point: _with_float_rows(pair) for point, pair in pairs.items()}

        def is_late(entry: tuple[str, Term]) -> bool:
            _, term = entry
            return term.loss.is_last_on_maps and not isinstance(pairs[term.loss.point].student, Tensor)

        running = {name: term for name, term in self.named() if not term.has_ended(moment)}
        values = {}
        for name, term in sorted(running.items(), key=is_late):
            seed = mix_seed(moment.seed, name_seed(name)) % 2**63
            values[name] = term(pairs[term.loss.point], batch, moment, seed)
        return {name: values[name] for name in running}

    def ended(self, moment: Moment, device: torch.device) -> dict[str, Tensor]:
        """0 for each term that has ended; see `Term.zero`."""
        zeros = {name: term.zero(device) for name, term in self.named() if term.has_ended(moment)}
        self._ended = frozenset(zeros)
        return zeros

    def monitored(self) -> dict[str, Tensor]:
        """Scalars to log, by name. If two terms use the same name, it is prefixed with the term's name."""
        found = [
            (name, key, value)
            for name, term in self.named()
            if name not in self._ended  # its last values are from an earlier epoch
            for key, value in term.loss.monitored().items()
        ]
        keys = [key for _, key, _ in found]
        return {key if keys.count(key) == 1 else f"{name}_{key}": value for name, key, value in found}

    def calibrate(self, features_of: Callable[[int], Tensor], broadcast: Callable[[Tensor], Tensor]) -> None:
        """Call `calibrate` of the losses that ask for it with a sample of the teacher's features.

        Args:
            features_of: maps a number of training images to features [M, D] at `penultimate`.
            broadcast: returns the first process's tensor in every process.
        """
        for _, term in self.named():
            if term.loss.calibration_images:
                term.loss.calibrate(features_of(term.loss.calibration_images))
                for name in term.loss.calibrated:
                    buffer = term.loss.get_buffer(name)
                    # Via the CPU: unpickling a GPU tensor would initialise that GPU in every process.
                    buffer.copy_(broadcast(buffer.cpu()))

    def renamed(self, state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The state dict of a checkpoint with current key names.

        In checkpoints of versions without terms, the only hash has its keys directly at `prefix`.

        Args:
            state: state dict of a module that contains this one.
            prefix: prefix of this module's keys in it.
        """
        hashes = [name for name, term in self.named() if "weight" in dict(term.loss.named_buffers())]
        if len(hashes) != 1:
            return dict(state)
        new = {f"{prefix}{key}": f"{prefix}{hashes[0]}.loss.{key}" for key in ("weight", "bias")}
        return {new.get(key, key): value for key, value in state.items()}


def _has_pyramid(tap: FeatureTap, point: str) -> bool:
    """Whether the features at a point are the maps of the pyramid, or contain them."""
    _, widths = tap.channels(point)
    return tap.is_of_maps(point) and (
        isinstance(widths, tuple) or (isinstance(widths, dict) and PYRAMID in widths)
    )


def _scaled(features: Features, scale_L: Tensor) -> Features:
    """The teacher's features, whose maps of the pyramid are multiplied by the factor of their level."""
    if isinstance(features, dict):
        return {**features, PYRAMID: cast(list[Tensor], _scaled(features[PYRAMID], scale_L))}
    return [factor * level for factor, level in zip(scale_L, features, strict=True)]


def _with_float_rows(pair: Pair) -> Pair:
    if isinstance(pair.student, Tensor) and isinstance(pair.teacher, Tensor):
        return pair._replace(student=pair.student.float(), teacher=pair.teacher.float())
    return pair


def _rename_state(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    renamed = cast(Terms, module).renamed(state, prefix)
    state.clear()
    state.update(renamed)
