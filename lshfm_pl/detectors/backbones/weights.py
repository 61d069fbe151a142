"""Initial weights of a backbone."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lshfm_pl.detectors.architecture import architecture
from lshfm_pl.detectors.backbones.backbone import Backbone, backbone
from lshfm_pl.detectors.contents import read_checkpoint
from lshfm_pl.detectors.state_dicts import find_networks, refuse_not_finite, shared_prefix
from lshfm_pl.detectors.torch_files import download_torch_file
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["load_backbone_weights"]


PRETRAINED = ("imagenet", "pretrained")
"""Values of `backbone_weights` that stand for the weights of the backbone's library."""
_WRAPPERS = ("backbone.", "body.", "net.")
"""Prefixes of a detector's names of its backbone, before those of the backbone or its library's network."""


def load_backbone_weights(detector: nn.Module, config: Mapping[str, Any]) -> str:
    """Load what ``config["backbone_weights"]`` names into the backbone of a detector.

    ``pretrained``, or ``imagenet``, stands for the ImageNet weights of the backbone's library: torchvision's
    IMAGENET1K_V1 (of ``vgg*_bn`` for a VGG with batch norm), or timm's for ``timm/…``. A path or a URL stands for a
    state dict of the library's classification network or of the detector's own ``backbone.body`` (``backbone``
    without a pyramid), alone or in an entry of a dict, with or without a prefix of all names (``module.``). None
    stands for nothing. The box head of a C4 detector belongs to the backbone.

    Returns:
        One line that says what was loaded.

    Raises:
        LSHFMError: there are no such weights, they are not available, or they do not fit the backbone.
    """
    source = config.get("backbone_weights")
    if source is None:
        return "random initial weights"
    label, pretrained = source, backbone(config["backbone"]).pretrained
    had = pretrained(config) if source in PRETRAINED and pretrained is not None else None
    if had is not None:
        label, weights = had
    elif source in PRETRAINED:
        source, label = _imagenet_url(config), f"torchvision IMAGENET1K_V1 of {config['backbone']}"
        weights = _download(source, check_hash=True)
    elif source.startswith(("http://", "https://")):
        # A hash in the file name is torchvision's convention; in other names it means nothing.
        weights = _download(source, check_hash=False)
    else:
        weights = read_checkpoint(source)
    return f"{label}: {_load_into_body(detector, weights, config, source)}"


def _imagenet_url(config: Mapping[str, Any]) -> str:
    url = backbone(config["backbone"]).imagenet_url(config)
    if url is None:
        raise LSHFMError(
            f"model.backbone_weights: there are no imagenet weights for {config['backbone']} with width "
            f"{config['width']} and norm {config['norm']}; give a path, or null for random initial weights."
        )
    return url


def _download(url: str, *, check_hash: bool) -> Any:
    advice = (
        "Download it elsewhere and give model.backbone_weights=<path>, or null for random initial weights."
    )
    return download_torch_file(url, check_hash=check_hash, key="model.backbone_weights", advice=advice)


def _load_into_body(detector: nn.Module, content: Any, config: Mapping[str, Any], source: str) -> str:
    """Load the only backbone in the content of a file; returns what was loaded."""
    state = detector.state_dict()
    record = backbone(config["backbone"])
    family = architecture(config["architecture"])
    last_stage = family.last_stage if config.get("neck") == "none" else ""
    names = {}
    for key in state:
        if _is_counter(key):
            continue
        of_family = family.name_in_body
        if of_family is None or key.startswith("backbone.body."):
            in_file = _name_in_file(key, record, last_stage)
        else:
            in_file = of_family(key)
        if in_file is not None:
            names[in_file] = key
            names[_without(_WRAPPERS, key)] = key
    expected = set(names.values())
    weights, found = _find_body(content, names, len(expected), source)
    given = {names.get(key, key): value for key, value in weights.items() if not _is_counter(key)}
    given = {key: value for key, value in given.items() if key in expected or not record.is_beside(key)}
    wrong = [
        key
        for key in expected
        if key not in given
        or given[key].shape != state[key].shape
        or given[key].is_floating_point() != state[key].is_floating_point()
    ]
    wrong += [key for key in given if key not in expected]
    if wrong:
        raise LSHFMError(
            f"model.backbone_weights: {source}{found} does not fit {config['backbone']} with width "
            f"{config['width']} and norm {config['norm']}: {len(wrong)} tensors are missing, too many or of "
            f"another shape or type, such as {', '.join(sorted(wrong)[:3])}."
        )
    refuse_not_finite(f"model.backbone_weights: {source}", given)
    detector.load_state_dict(given, strict=False)
    return f"{len(given)} tensors{found}"


def _find_body(
    content: Any, names: Collection[str], num_tensors: int, source: str
) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of the backbone in the content of a file, and where they were if not at the top level."""
    networks = find_networks(content, names.__contains__, least=max(1, num_tensors // 2))
    if len(networks) > 1:
        raise LSHFMError(
            f"model.backbone_weights: {source} holds {len(networks)} backbones: "
            f"{first_few((network.label for network in networks), 8)}. Save one of them in a file of its own."
        )
    if networks:
        told = str(networks[0])
        return networks[0].weights, f" ({told})" if told else ""
    if isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values()):
        prefix = shared_prefix(content) if len(content) > 1 else ""
        return content, f" (all names begin with {prefix!r})" if prefix else ""
    raise LSHFMError(
        f"model.backbone_weights: expected a state dict (names to tensors) of the backbone in {source}, found none."
    )


def _without(prefixes: Iterable[str], name: str) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _is_counter(key: str) -> bool:
    # BatchNorm counts its batches; FrozenBatchNorm and older files don't. Nothing reads the count here.
    return key.endswith("num_batches_tracked")


def _name_in_file(key: str, record: Backbone, last_stage: str) -> str | None:
    """The name of a detector's tensor in files of the backbone's classification network; None for other tensors.

    Args:
        key: name in the detector.
        record: record of the backbone.
        last_stage: the detector's module that is the last stage if the backbone is cut before it.
    """
    if key.startswith("backbone.body."):
        return record.name_in_file(key.removeprefix("backbone.body."))
    cut = record.single_scale
    if cut is None or key.startswith("backbone.fpn."):
        return None
    if key.startswith("backbone."):
        return cut.name_in_file(key.removeprefix("backbone."))
    if cut.last_stage and last_stage and key.startswith(f"{last_stage}."):
        return record.name_in_file(f"{cut.last_stage}{key.removeprefix(last_stage)}")
    return None
