"""What a file contains of a detector: its weights with current names, and its description."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lshfm_pl.detectors.architecture import Architecture
from lshfm_pl.detectors.averages import choose_average
from lshfm_pl.detectors.published import (
    holds_pair,
    is_published,
    recognise_architecture,
    recognise_model,
    take_network,
    todays_names,
    without_further_heads,
)
from lshfm_pl.detectors.state_dicts import (
    FoundNetwork,
    choose_network,
    find_networks,
    model_and_average,
    shared_prefix,
)
from lshfm_pl.detectors.torch_files import UnsafeFileError, read_torch_file
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import read_bytes

__all__ = [
    "CONFIG_FILE",
    "FORMAT",
    "LARGEST_NUM_CLASSES",
    "OLD_FROZEN_BN_EPS",
    "VERSION",
    "Contents",
    "Source",
    "is_counter",
    "open_contents",
    "read_checkpoint",
]

FORMAT = "lshfm_pl.detector"
CONFIG_FILE = "config.json"
"""File beside exported weights (`.safetensors`) with the description of their detector."""
VERSION = 1
#: torchvision 0.8, whose names the reference implementation's files have, had FrozenBatchNorm2d without eps.
OLD_FROZEN_BN_EPS = 0.0
#: More than any data set has, background included.
LARGEST_NUM_CLASSES = 100_000

_LARGEST_DESCRIPTION = 10**7
"""Bytes; a description of 100 000 classes is smaller."""
_LIGHTNING_PREFIX = "detector."
#: Parts that occur in the names of every detector here, including the reference implementation's pairs.
_BODY_STARTS = ("backbone.", "s_backbone.", "t_backbone.")

Source = str | PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Contents:
    """The weights of one detector with current names, and what came with them."""

    source: str
    format: str
    weights: Mapping[str, Tensor]
    description: Mapping[str, Any] | None = None
    #: The eps of FrozenBatchNorm2d when the weights were trained; None if it is unknown.
    frozen_bn_eps: float | None = None
    #: What to say about the other networks in the file, which ``which`` chooses; "" if there are none.
    others: str = ""
    #: The names of labels 1, 2, … that come with the weights; None if there are none.
    class_names: tuple[str, ...] | None = None
    #: Name in ``weights`` → name in the file, if the two differ.
    names_in_file: Mapping[str, str] = field(default_factory=dict)
    #: The data config of the run that wrote the file; None if it does not say.
    data: Mapping[str, Any] | None = None
    #: Name in the file → shape, for tensors that belong to no detector here, such as those of masks.
    left_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: The file that holds the description: ``source``, or the one beside exported weights.
    described_in: str = ""

    def name_in_file(self, name: str) -> str:
        """The name in the file for a tensor in ``weights``."""
        return self.names_in_file.get(name, name)


def read_checkpoint(path: str | PathLike[str]) -> Any:
    """Read any file that ``load_weights`` accepts, without running code from it.

    Raises:
        LSHFMError: the file is missing, broken or not safe to read.
    """
    try:
        content = read_torch_file(fspath(path))
        description = _description_beside(Path(path))
        return content if description is None else {**description, "state_dict": content}
    except UnsafeFileError:
        # The reference implementation's files contain their command line as a Namespace, which is plain data.
        content = read_torch_file(fspath(path), allowed_types=[argparse.Namespace])
        if not (isinstance(content, Mapping) and is_published(content)):
            raise
        return content


def _description_beside(path: Path) -> dict[str, Any] | None:
    """The description in `config.json` beside exported weights; None if there is none of this project."""
    if (beside := _file_beside(path)) is None:
        return None
    try:
        found = json.loads(read_bytes(beside, limit=_LARGEST_DESCRIPTION))
    except (ValueError, RecursionError) as error:
        raise LSHFMError(
            f"{beside}: expected the JSON description of the detector in {path.name}, found a damaged file. "
            "Copy it again, or move it away"
        ) from error
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def _file_beside(path: Path) -> Path | None:
    """The file beside exported weights that may describe them; None if there is none."""
    beside = path.with_name(CONFIG_FILE)
    return beside if path.suffix == ".safetensors" and beside.is_file() else None


def open_contents(source: Source, which: str) -> Contents:
    """Find the detector in a file, or in the content of one.

    Args:
        source: a path, or the content.
        which: the network in a file with several: ``student`` or ``teacher`` of a pair of the reference
            implementation, or the name of its entry, such as ``model_ema``.

    Raises:
        LSHFMError: there is no detector, or there are several and ``which`` does not select one.
    """
    if isinstance(source, Mapping):
        name, content = "state dict", source
        described_in = name
    else:
        name = fspath(source)
        content = read_checkpoint(name)
        described_in = str(_file_beside(Path(name)) or name)
    if not isinstance(content, Mapping | list | tuple):
        raise LSHFMError(f"{name}: expected a dict with weights, found {type(content).__name__}.")
    described = _open_described(name, described_in, content, which) if isinstance(content, Mapping) else None
    contents = described or _open_foreign(name, content, which)
    if which != "student" and not contents.others:
        raise LSHFMError(f"{name}: contains one detector and no {which}; leave which=student.")
    return contents


def described_class_names(content: Any) -> tuple[str, ...] | None:
    """The names of labels 1, 2, … in the content of a file; None if it is not a file of this project."""
    if not isinstance(content, Mapping):
        return None
    for description in (content, content.get("detector")):
        if isinstance(description, Mapping) and description.get("format") == FORMAT:
            names = description.get("class_names")
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None


def is_counter(key: str) -> bool:
    """Whether a tensor is batch norm's counter of batches, which nothing reads here."""
    return key.endswith(".num_batches_tracked")


def _open_described(name: str, described_in: str, content: Mapping[str, Any], which: str) -> Contents | None:
    """The detector of a file of this project; None for other files."""
    if content.get("format") == FORMAT:
        return _describe(name, described_in, "detector file", content.get("state_dict"), content)
    description = content.get("detector")
    if isinstance(description, Mapping) and description.get("format") == FORMAT:
        weights = content.get("state_dict")
        if isinstance(weights, Mapping):
            start = len(_LIGHTNING_PREFIX)
            own = {key: value for key, value in weights.items() if str(key).startswith(_LIGHTNING_PREFIX)}
            weights = {key[start:]: value for key, value in own.items()}
        weights, kind, others = choose_average(name, weights, content, which)
        found = _describe(name, name, kind, weights, description, prefix=_LIGHTNING_PREFIX)
        data = content.get("data")
        return replace(found, data=data if isinstance(data, Mapping) else None, others=others)
    return None


def _describe(
    name: str, described_in: str, kind: str, weights: Any, description: Mapping[str, Any], *, prefix: str = ""
) -> Contents:
    if description.get("version") != VERSION:
        raise LSHFMError(
            f"{described_in}: detector format version {description.get('version')!r}, expected {VERSION}; "
            "use the version of lshfm_pl that wrote it."
        )
    if not isinstance(weights, Mapping):
        raise LSHFMError(f"{name}: describes a detector but holds no state_dict.")
    for key, value in weights.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise LSHFMError(
                f"{name}: expected names to tensors in its state_dict, found {type(value).__name__} at {key!r:.80}."
            )
    _check_description(described_in, description)
    return Contents(
        name,
        kind,
        weights,
        description,
        class_names=tuple(description["class_names"]) or None,
        names_in_file={key: prefix + key for key in weights},
        described_in=described_in,
    )


def _check_description(name: str, description: Mapping[str, Any]) -> None:
    """Validate a description, except its config, which ``resolve_config`` validates."""
    missing = [key for key in ("config", "num_classes", "class_names") if key not in description]
    if missing:
        raise LSHFMError(f"{name}: its description of the detector has no {missing[0]!r}.")
    config, num_classes, names = (description[key] for key in ("config", "num_classes", "class_names"))
    found = None
    if not (isinstance(config, Mapping) and all(isinstance(key, str) for key in config)):
        found = f"a dict of settings as config, found {type(config).__name__}"
    elif type(num_classes) is not int or not 1 <= num_classes <= LARGEST_NUM_CLASSES:
        found = f"a whole number of classes from 1 to {LARGEST_NUM_CLASSES}, found {num_classes!r:.80}"
    elif not (isinstance(names, list | tuple) and all(isinstance(text, str) for text in names)):
        found = f"a list of texts as class_names, found {names!r:.80}"
    elif names and len(names) != num_classes - 1:
        found = f"{num_classes - 1} class names, found {len(names)}"
    if found is not None:
        raise LSHFMError(f"{name}: its description of the detector is damaged: expected {found}.")


def _open_foreign(name: str, content: Any, which: str) -> Contents:
    networks = find_networks(content, lambda key: key.startswith(_BODY_STARTS))
    chosen, average_told = choose_network(networks, which), ""
    if chosen is None and which == "student" and (pair := model_and_average(networks)) is not None:
        other, chosen = pair
        average_told = f"; the average (EMA) was taken, {other.label} is there too: which={other.label}"
    if chosen is None and networks:
        labels = first_few((network.label for network in networks), 8)
        raise LSHFMError(
            f"{name} holds {len(networks)} networks: {labels}. Choose "
            f"one by which=…, such as which={networks[-1].label} (teacher.which=… for a teacher, model.which=… "
            "beside model.weights)."
        )
    kind = "state dict"
    if chosen is None:
        # Nothing looks like a detector: use all tensors, for a message that says what does not fit.
        if isinstance(content, Mapping) and is_published(content):
            content, kind = content["model"], "published checkpoint"
        if not _is_state_dict(content):
            raise LSHFMError(
                f"{name}: expected a detector's weights, found a {_told_type(content)}. "
                "Give a checkpoint of this project, a published one, or a state dict."
            )
        chosen = FoundNetwork("", "", dict(content))
        if (prefix := shared_prefix(content)) and len(content) > 1:
            kind += f", all names begin with {prefix!r}"
    elif isinstance(content, Mapping) and is_published(content) and chosen.entry == "model":
        kind = "published checkpoint" + (f", {told}" if (told := str(_inside(chosen))) else "")
    elif str(chosen):
        kind = f"state dict, {chosen}"
    kind += average_told
    weights: Mapping[str, Tensor] = chosen.weights
    others, pair_prefix = "", ""
    if len(networks) > 1 or which in chosen.label.split("."):
        others = f"The file holds {first_few((network.label for network in networks), 8)}"
    if holds_pair(weights):
        others = "The file holds a student and its teacher"
        network: Literal["student", "teacher"] = "teacher" if which == "teacher" else "student"
        weights, kind = take_network(weights, network), f"{network} of a {kind}"
        pair_prefix = f"{network[0]}_"
    weights, further = without_further_heads(weights)
    if further:
        kind += f", {len(further)} tensors of other heads left out, such as {next(iter(further))}"
    names = todays_names(weights)
    renamed = {names[key]: value for key, value in weights.items()}
    entry = f"{chosen.entry}." if chosen.entry else ""
    family = recognise_architecture(renamed)
    is_as_old = family is None or bool(family.renamed_parameters)
    # A batch norm with a counter of batches was not a FrozenBatchNorm2d.
    is_old = is_as_old and renamed.keys() != weights.keys() and not any(is_counter(key) for key in weights)
    return Contents(
        name,
        kind,
        renamed,
        frozen_bn_eps=_frozen_bn_eps_of_old_names(renamed, family) if is_old else None,
        others=others,
        names_in_file={names[key]: f"{entry}{chosen.prefix}{pair_prefix}{key}" for key in weights},
        left_out={f"{entry}{chosen.prefix}{key}": tuple(value.shape) for key, value in further.items()},
    )


def _frozen_bn_eps_of_old_names(weights: Mapping[str, Tensor], family: Architecture | None) -> float | None:
    """The eps of frozen norms in files with names of torchvision 0.8: that of 0.8, or of today's detector.

    Some weights that torchvision published later have the old names of the pyramid and today's eps.
    """
    known = {} if family is None else family.torchvision_detectors
    detector = known.get(recognise_model(weights) or "")
    return OLD_FROZEN_BN_EPS if detector is None else detector.frozen_bn_eps


def _inside(network: FoundNetwork) -> FoundNetwork:
    """The label of a network without its entry, which checkpoints of the reference implementation always have."""
    return FoundNetwork("", network.prefix, {}, network.num_left_out)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())
    )


def _told_type(content: Any) -> str:
    if isinstance(content, Mapping):
        entry = content["model"] if is_published(content) else content
        return f"dict of {first_few(entry)}"[:300]
    return f"list of {len(content)}"
