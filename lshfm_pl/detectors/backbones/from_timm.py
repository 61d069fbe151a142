"""Bodies of timm: `model.backbone=timm/<name>`.

Any that has stages (`features_only`) and takes images of any size.
"""

import difflib
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
from timm.layers import Format
from timm.models import FeatureDictNet
from torch import Tensor, nn

from lshfm_pl.detectors.backbones.backbone import Backbone, BackboneLibrary, Config, Stage
from lshfm_pl.detectors.backbones.conversion import convert_norms, eps_of, possible_norms
from lshfm_pl.detectors.backbones.norms import NormPair
from lshfm_pl.detectors.backbones.observed import observed_pairs
from lshfm_pl.detectors.backbones.single_map import last_map_of_stride_16
from lshfm_pl.errors import LSHFMError

__all__ = ["TIMM"]

SETTINGS: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
"""Arguments with which some bodies take images of any size; the first that works is taken."""
SIZES = ((128, 192), (96, 160))
"""Heights and widths that have to work."""
_LONGEST_REASON = 200
"""Characters of another library's message."""


class _Plan(NamedTuple):
    """What is known of a body before it is built."""

    settings: dict[str, Any]
    #: Finest first; a name is that of a module of `_TimmBody`.
    stages: tuple[Stage, ...]
    #: Name of a stage → its place in the list that timm's network returns.
    places: dict[str, int]
    stem: tuple[str, ...]
    norms: tuple[str, ...]
    eps: float | None
    #: Name of a tensor of `_TimmBody` → its name in timm's network for classification.
    names: dict[str, str]
    #: All names of that network.
    file_names: frozenset[str]


class _TimmBody(nn.Module):
    """Maps by name of a network of timm's `features_only`."""

    def __init__(self, net: nn.Module, places: Mapping[str, int]) -> None:
        super().__init__()
        self.net = net
        self.places = dict(places)
        self.is_channels_last = getattr(net, "output_fmt", Format.NCHW) == Format.NHWC

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """From images [N, 3, H, W] to maps [N, C, h, w]."""
        maps = self.net(x)
        chosen = {name: maps[place] for name, place in self.places.items()}
        if self.is_channels_last:
            return {name: level.permute(0, 3, 1, 2).contiguous() for name, level in chosen.items()}
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
    """Found by building the network without memory.

    Raises:
        LSHFMError: there is none of that name, or it cannot be a body.
    """
    if not _is_known(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        advice = f"; did you mean {' or '.join(f'timm/{other}' for other in close)}?" if close else ""
        raise LSHFMError(
            f"model.backbone: expected timm/<a name that timm.list_models() lists>, found timm/{name}{advice}"
        )
    with torch.device("meta"):
        net, settings, maps = _first_that_runs(name)
        full = timm.create_model(name, num_classes=1).state_dict()
    body = _TimmBody(net, {})
    if body.is_channels_last:
        maps = [level.permute(0, 3, 1, 2) for level in maps]
    stages: dict[int, Stage] = {}
    places = {}
    for place, (level, module) in enumerate(zip(maps, net.feature_info.module_name(), strict=True)):
        stride = round(SIZES[0][0] / level.shape[2])
        stage = Stage(_module_name(body, module) or f"map {place}", level.shape[1], stride)
        places[stage.name] = place
        if stride > 1:
            stages[stride] = stage  # the last of a stride
    ordered = tuple(stages[stride] for stride in sorted(stages))
    # With a first stage of stride 2 or less, what comes before it belongs to it.
    stem = _children_before(net, ordered[0].name) if ordered[0].stride > 2 else ()
    return _Plan(
        settings, ordered, places, stem, possible_norms(net), eps_of(net), _names(body, full), frozenset(full)
    )


def _is_known(name: str) -> bool:
    """Whether timm has a network of this name and, after a dot, weights of this one."""
    network, _, tag = name.partition(".")
    known = timm.list_pretrained(network) if tag else timm.list_models(network)
    return name in known


def _first_that_runs(name: str) -> tuple[Any, dict[str, Any], list[Tensor]]:
    reason = ""
    for settings in SETTINGS:
        try:
            net = timm.create_model(name, features_only=True, **settings).eval()
            found = [net(torch.empty(1, 3, *size)) for size in SIZES]
        except Exception as error:  # each network of timm refuses in a way of its own
            told = " ".join(str(error).split())[:_LONGEST_REASON]
            reason = reason or told or type(error).__name__
        else:
            return net, settings, found[0]
    raise LSHFMError(
        f"model.backbone: timm/{name} cannot be a detector's body: it has no stages, or takes images of one size "
        f"only ({reason})."
    )


def _module_name(body: _TimmBody, module: str) -> str | None:
    """The name in the body of what timm calls a module of the whole network; None where the body has none.

    Some networks are wrapped, or flattened by one level.
    """
    names = dict(body.named_modules())
    candidates = (module, module.replace(".", "_", 1), f"model.{module}", f"body.{module}")
    return next((name for candidate in candidates if (name := f"net.{candidate}") in names), None)


def _children_before(net: nn.Module, stage: str) -> tuple[str, ...]:
    """The parts of a network before a stage: children, or of a wrapped network its children."""
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
    """Names differ by the wrapper's prefix and by dots that became underscores."""
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
    return _TimmBody(net, plan.places)


def _maps(body: nn.Module, names: dict[str, str]) -> nn.Module:
    """The body that returns the maps of some stages; what runs after them is left out, where that is known."""
    assert isinstance(body, _TimmBody)
    _leave_out_rest(body.net, list(names)[-1].removeprefix("net."))
    body.places = {level: body.places[stage] for stage, level in names.items()}
    return body


def _leave_out_rest(net: Any, last: str) -> None:
    """Without the modules that run after `last`."""
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
    """timm's own weights, by the names of its network; None where norms are none that they were trained with.

    Raises:
        LSHFMError: they cannot be had.
    """
    if config["norm"] == "gn" and plan.norms != ("gn",):
        return None
    settings: Any = timm.get_pretrained_cfg(name)
    tag = settings.tag
    label = f"timm's weights of {name}" + (f" ({tag})" if tag and "." not in name else "")
    try:
        with _without_waiting():
            net = timm.create_model(name, features_only=True, pretrained=True, **plan.settings)
    except Exception as error:  # no network, no such file, no room
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
    """Without five attempts of growing waits where there is no network; files that are here already are found."""
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
        return True  # whose names the proxy finds
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return False
    return True


TIMM = BackboneLibrary(name="timm", record=_record)
