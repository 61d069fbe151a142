"""Backbones of timm: `model.backbone=timm/<name>`.

All networks can be used that have stages (`features_only`) and accept images of any size. Some do so with another
setting, or if images are padded to a multiple of a number; both are found out by trying.
"""

import difflib
import inspect
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from timm.models import FeatureDictNet
from torch import Tensor, nn

from lshfm_pl.detectors.backbones.backbone import Backbone, BackboneLibrary, Config, Stage
from lshfm_pl.detectors.backbones.conversion import convert_norms, eps_of, possible_norms
from lshfm_pl.detectors.backbones.norms import NormPair
from lshfm_pl.detectors.backbones.observed import observed_pairs
from lshfm_pl.detectors.backbones.single_map import last_map_of_stride_16
from lshfm_pl.detectors.cropping import crop_to_image
from lshfm_pl.errors import LSHFMError

__all__ = ["TIMM"]

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"strict_img_size": False},
    {"dynamic_img_size": True},
    # For patches of 14 pixels: a detector's strides are powers of 2. timm resamples its weights for another patch.
    {"dynamic_img_pad": True, "patch_size": 16},
    {"dynamic_img_size": True, "dynamic_img_pad": True, "patch_size": 16},
)
"""Arguments with which some networks accept images of any size. The first that work are used."""
SIZES = ((4, 6), (3, 5))
"""Heights and widths that must work, in multiples of a number of pixels."""
MULTIPLES = (32, 64, 128, 256)
"""Such numbers of pixels, besides the side of the images that a network was trained with. Networks with fixed
windows need the larger ones. With the first, images are not padded: what takes multiples of 32 takes all sizes."""
_LONGEST_REASON = 200
"""Characters of another library's message that are kept."""


class _Plan(NamedTuple):
    """What is known about a backbone before it is built."""

    settings: dict[str, Any]
    #: A number of pixels. The network takes images whose sides are multiples of it.
    multiple: int
    #: Finest first. The name of a stage is that of a module of `_TimmBody`.
    stages: tuple[Stage, ...]
    #: Name of a stage → its index in the list that timm's network returns.
    places: dict[str, int]
    stem: tuple[str, ...]
    norms: tuple[str, ...]
    eps: float | None
    #: Name of a tensor of `_TimmBody` → its name in timm's classification network.
    names: dict[str, str]
    #: All names of tensors of that network.
    file_names: frozenset[str]


class _TimmBody(nn.Module):
    """Returns maps by name, from a timm network with `features_only`.

    Args:
        net: the network.
        places: name of a map → its index in the list that the network returns.
        multiple: images are padded with 0 at the right and the bottom to a multiple of this number of pixels, and
            the maps are cropped to the part of the image.
    """

    def __init__(self, net: nn.Module, places: Mapping[str, int], multiple: int = 1) -> None:
        super().__init__()
        self.net = net
        self.places = dict(places)
        self.multiple = multiple
        self.is_channels_last = getattr(net, "output_fmt", Format.NCHW) == Format.NHWC

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute maps [N, C, h, w] from images [N, 3, H, W]."""
        size = x.shape[2:]
        added = [-side % self.multiple for side in size]
        padded = F.pad(x, (0, added[1], 0, added[0])) if any(added) else x
        maps = self.net(padded)
        chosen = {name: maps[place] for name, place in self.places.items()}
        if self.is_channels_last:
            chosen = {name: level.permute(0, 3, 1, 2).contiguous() for name, level in chosen.items()}
        if padded is not x:
            chosen = {name: crop_to_image(level, padded.shape[2:], size) for name, level in chosen.items()}
        return chosen


def _record(name: str) -> Backbone:
    plan = _plan(name)
    settings: Any = timm.get_pretrained_cfg(name)
    return Backbone(
        name=f"timm/{name}",
        title=f"timm/{name}",
        build=partial(_build, name, plan),
        stages=lambda config: plan.stages,
        stem=plan.stem,
        norms=plan.norms,
        norm_pairs=_norm_pairs,
        maps=_maps,
        single_scale=last_map_of_stride_16(_maps),
        image_mean=tuple(settings.mean),
        image_std=tuple(settings.std),
        norm_eps=1e-5 if plan.eps is None else plan.eps,
        name_in_file=lambda tensor: plan.names.get(tensor, tensor),
        is_beside=lambda tensor: tensor in plan.file_names or f"net.{tensor}" in plan.names,
        pretrained=partial(_pretrained, name, plan) if settings.has_weights else None,
    )


def _plan(name: str) -> _Plan:
    """Examine a network by building it on the meta device.

    Raises:
        LSHFMError: there is no such network, or it cannot be a backbone.
    """
    if not _is_known(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        advice = f"; did you mean {' or '.join(f'timm/{other}' for other in close)}?" if close else ""
        raise LSHFMError(
            f"model.backbone: expected timm/<a name that timm.list_models() lists>, found timm/{name}{advice}"
        )
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=1)
        net, settings, multiple, maps = _first_that_runs(name, whole)
    full = whole.state_dict()
    body = _TimmBody(net, {})
    if body.is_channels_last:
        maps = [level.permute(0, 3, 1, 2) for level in maps]
    stages: dict[int, Stage] = {}
    places = {}
    for place, (level, module) in enumerate(zip(maps, net.feature_info.module_name(), strict=True)):
        stride = round(multiple * SIZES[0][0] / level.shape[2])
        stage = Stage(_module_name(body, module) or f"map {place}", level.shape[1], stride)
        places[stage.name] = place
        if stride > 1:
            stages[stride] = stage  # the last stage of a stride is kept
    ordered = tuple(stages[stride] for stride in sorted(stages))
    # With a first stage of stride 2 or less, the modules before it belong to it.
    stem = _children_before(net, ordered[0].name) if ordered[0].stride > 2 else ()
    return _Plan(
        settings,
        multiple,
        ordered,
        places,
        stem,
        possible_norms(net),
        eps_of(net),
        _names(body, full),
        frozenset(full),
    )


def _is_known(name: str) -> bool:
    """Whether timm has a network of this name with, after a dot, these weights."""
    network, _, tag = name.partition(".")
    known = timm.list_pretrained(network) if tag else timm.list_models(network)
    return name in known


def _first_that_runs(name: str, whole: nn.Module) -> tuple[Any, dict[str, Any], int, list[Tensor]]:
    """The network with `features_only`, its settings, the multiple to which images are padded, and its maps.

    Args:
        name: name of the network.
        whole: the network itself, whose class tells which settings there are.

    Raises:
        LSHFMError: it has no stages, or takes images of one size only.
    """
    known = {argument for kind in type(whole).__mro__ for argument in inspect.signature(kind).parameters}
    possible = [settings for settings in SETTINGS if settings.keys() <= known]
    of_training: Any = timm.get_pretrained_cfg(name)
    nets: dict[int, Any] = {}
    reasons = []
    for multiple in sorted({*MULTIPLES, *of_training.input_size[1:]}):
        for index, settings in enumerate(possible):
            try:
                if index not in nets:
                    nets[index] = timm.create_model(name, features_only=True, **settings).eval()
                found = [
                    nets[index](torch.empty(1, 3, *(multiple * side for side in size))) for size in SIZES
                ]
            except Exception as error:  # timm's networks raise various exceptions
                reasons.append(" ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__)
            else:
                return nets[index], settings, multiple, found[0]
    raise LSHFMError(
        f"model.backbone: timm/{name} cannot be a detector's body: it has no stages, or takes images of one size "
        f"only ({reasons[0]})."
    )


def _module_name(body: _TimmBody, module: str) -> str | None:
    """The name in the backbone for a module that timm names in the whole network; None if the backbone lacks it.

    Some networks are wrapped, or flattened by one level.
    """
    names = dict(body.named_modules())
    candidates = (module, module.replace(".", "_", 1), f"model.{module}", f"body.{module}")
    return next((name for candidate in candidates if (name := f"net.{candidate}") in names), None)


def _children_before(net: nn.Module, stage: str) -> tuple[str, ...]:
    """The modules of a network before a stage: its children, or those of a wrapped network."""
    prefix = "net."
    while len(children := list(net.named_children())) == 1:
        prefix, net = f"{prefix}{children[0][0]}.", children[0][1]
    before = []
    for name, _ in children:
        if f"{stage}.".startswith(f"{prefix}{name}."):
            break
        before.append(f"{prefix}{name}")
    return tuple(before)


def _names(body: _TimmBody, full: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the backbone → name in the network. They differ in the wrapper's prefix, and dots or underscores."""
    by_sign = {key.replace(".", "_"): key for key in full}
    found = {}
    for key in body.state_dict():
        own = key.removeprefix("net.")
        signs = [
            part.replace(".", "_") for part in (own, own.removeprefix("model."), own.removeprefix("body."))
        ]
        found[key] = next((by_sign[sign] for sign in signs if sign in by_sign), own)
    return found


def _build(name: str, plan: _Plan, config: Config) -> nn.Module:
    if config["width"] != 1:
        raise LSHFMError(
            f"model.width: timm/{name} has the channels that it comes with: expected 1, found {config['width']}."
        )
    net = timm.create_model(name, features_only=True, **plan.settings)
    convert_norms(net, config["norm"], config["norm_eps"])
    return _TimmBody(net, plan.places, plan.multiple if plan.multiple > MULTIPLES[0] else 1)


def _maps(body: nn.Module, names: dict[str, str]) -> nn.Module:
    """The backbone that returns the maps of some stages. Modules after them are removed if they are known."""
    assert isinstance(body, _TimmBody)
    _leave_out_rest(body.net, list(names)[-1].removeprefix("net."))
    body.places = {level: body.places[stage] for stage, level in names.items()}
    return body


def _leave_out_rest(net: Any, last: str) -> None:
    """Remove the modules that run after `last`."""
    parent, _, own = last.rpartition(".")
    keys = list(net) if isinstance(net, FeatureDictNet) else []
    if last.partition(".")[0] in keys:
        for key in keys[keys.index(last.partition(".")[0]) + 1 :]:
            del net[key]
            net.return_layers.pop(key, None)
    elif (
        parent == "blocks"
        and isinstance(net.blocks, nn.Sequential)
        and getattr(net, "feature_hooks", 0) is None
    ):
        del net.blocks[int(own) + 1 :]


def _norm_pairs(network: nn.Module) -> Iterator[NormPair]:
    for module in network.modules():
        if isinstance(module, _TimmBody):
            yield from observed_pairs(module)


def _pretrained(name: str, plan: _Plan, config: Config) -> tuple[str, dict[str, Tensor]] | None:
    """timm's weights by the names of its network; None if the norms are not those that they were trained with.

    Raises:
        LSHFMError: they are not available.
    """
    if config["norm"] == "gn" and plan.norms != ("gn",):
        return None
    settings: Any = timm.get_pretrained_cfg(name)
    tag = settings.tag
    label = f"timm's weights of {name}" + (f" ({tag})" if tag and "." not in name else "")
    try:
        with _without_waiting():
            net = timm.create_model(name, features_only=True, pretrained=True, **plan.settings)
    except Exception as error:  # no network, no such file, no space
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        if not _is_reachable():
            reason = (
                f"no network: {huggingface_hub.constants.ENDPOINT} is out of reach, and its cache lacks them"
            )
        raise LSHFMError(
            f"model.backbone_weights: {label} could not be had ({reason}). Download them elsewhere and give "
            "model.backbone_weights=<path>, or null for random initial weights."
        ) from error
    return label, net.state_dict()


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Skip the five retries with growing delays if there is no network. Cached files are still found."""
    log, hub = logging.getLogger("huggingface_hub"), huggingface_hub.constants
    level, is_offline = log.level, hub.HF_HUB_OFFLINE
    log.setLevel(logging.ERROR)
    hub.HF_HUB_OFFLINE = not _is_reachable()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = is_offline
        log.setLevel(level)


def _is_reachable() -> bool:
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    address = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies():
        return True  # the proxy resolves names
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return False
    return True


TIMM = BackboneLibrary(name="timm", record=_record)
