"""Checking whether the tensors of a file fit a detector, and choosing those that it gets."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.build import Detector
from lshfm_pl.detectors.class_names import common_labels
from lshfm_pl.detectors.class_rows import with_rows
from lshfm_pl.detectors.contents import Contents, is_counter
from lshfm_pl.detectors.load_report import LoadedTensor
from lshfm_pl.detectors.published import default_class_names, recognise_architecture, recognise_model
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["Fit", "fit", "fit_by_class"]

_BACKGROUND = "background"


class Fit(NamedTuple):
    """The tensors that a detector gets, by their names, and what happened to each tensor."""

    weights: dict[str, Tensor]
    tensors: tuple[LoadedTensor, ...]


def fit(detector: Detector, contents: Contents) -> Fit:
    """All tensors of a detector, from a file that contains exactly these.

    Raises:
        LSHFMError: they are not the detector's.
    """
    expected = detector.state_dict()
    # As in torchvision: FrozenBatchNorm2d takes the statistics of a trained BatchNorm2d without its counter.
    weights = {
        key: value for key, value in contents.weights.items() if key in expected or not is_counter(key)
    }
    _check_fit(detector, contents, weights, weights)
    return Fit(weights, _tensors(expected, weights, contents, {}))


def fit_by_class(detector: Detector, contents: Contents, match_classes: Literal["by_name", "none"]) -> Fit:
    """All tensors of a detector, from a file that may have other classes and may lack counters of batches.

    If the classes or their order differ, class layers keep the detector's initial weights, except for the rows of
    the background and of classes that the file has too. A file that does not name its classes has the detector's
    classes if their numbers are equal.

    Args:
        detector: detector with initial weights, which stay where nothing is taken.
        contents: content of the file.
        match_classes: `none` takes no rows of class layers if the classes differ.

    Raises:
        LSHFMError: tensors other than those of class layers do not fit.
    """
    expected = detector.state_dict()
    in_file = {
        key: value for key, value in contents.weights.items() if key in expected or not is_counter(key)
    }
    made = {
        key: (value, _made_anew(key, value, "the file does not count batches"))
        for key, value in expected.items()
        if is_counter(key) and key not in in_file
    }
    count = architecture_of(detector).count_classes(contents.weights)
    names = contents.class_names or (default_class_names(count) if count else None)
    is_same = names == detector.class_names if names else count == detector.num_classes
    if not is_same:
        made |= _class_layers(detector, contents, names if match_classes == "by_name" else None)
    given = in_file | {key: value for key, (value, _) in made.items()}
    _check_fit(detector, contents, given, in_file)
    return Fit(given, _tensors(expected, given, contents, {key: told for key, (_, told) in made.items()}))


def _class_layers(
    detector: Detector, contents: Contents, names: tuple[str, ...] | None
) -> dict[str, tuple[Tensor, LoadedTensor]]:
    """The class layers of a detector with the rows of classes in `names`; with None no rows are copied.

    A layer that differs in more than the number of classes is left out.
    """
    family = architecture_of(detector)
    labels = {} if names is None else common_labels(detector.class_names, names)
    told = first_few((_BACKGROUND, *detector.class_names)[label] for label in labels)
    made = {}
    for key, own in detector.state_dict().items():
        if not key.startswith(family.class_layers):
            continue
        if names is None or key not in contents.weights:
            made[key] = own, _made_anew(key, own, "other classes")
            continue
        mixed = with_rows(
            own,
            contents.weights[key],
            labels,
            (detector.num_classes, len(names) + 1),
            is_class_first=key.startswith(family.class_first_layers),
        )
        if mixed is not None:
            name_in_file = contents.name_in_file(key)
            made[key] = mixed, LoadedTensor(key, tuple(own.shape), "rows taken", name_in_file, told)
    return made


def _made_anew(key: str, value: Tensor, told: str) -> LoadedTensor:
    return LoadedTensor(key, tuple(value.shape), "made anew", told=told)


def _tensors(
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    contents: Contents,
    changed: Mapping[str, LoadedTensor],
) -> tuple[LoadedTensor, ...]:
    taken = [
        changed.get(key) or LoadedTensor(key, tuple(value.shape), "taken", contents.name_in_file(key))
        for key, value in expected.items()
    ]
    left_out = [key for key in contents.weights if key not in weights]
    rest = [
        LoadedTensor(name, tuple(shape), "left out", name)
        for name, shape in (
            *((contents.name_in_file(key), contents.weights[key].shape) for key in left_out),
            *contents.left_out.items(),
        )
    ]
    return (*taken, *rest)


def _check_fit(
    detector: Detector, contents: Contents, given: Mapping[str, Tensor], in_file: Mapping[str, Tensor]
) -> None:
    """Refuse `given` if they are not the detector's tensors; `in_file` is searched for the cause."""
    expected = detector.state_dict()
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    misshapen = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    wrong = [*misshapen, *missing, *unexpected]
    if not wrong:
        _refuse_other_types(contents.source, expected, given)
        return
    name = detector.config["name"]
    raise LSHFMError(
        f"{contents.source} ({contents.format}) does not fit {name}: {len(missing)} tensors missing, "
        f"{len(unexpected)} unexpected, {len(misshapen)} of another shape ({first_few(wrong)}). "
        f"Likely cause: {_likely_cause(name, expected, in_file, wrong)}."
        + (f" {contents.others}: choose by which=…" if contents.others else "")
    )


def _refuse_other_types(source: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse integer weights: they are quantised, and their scales are not applied here."""
    other = [key for key in expected if _kind_of_numbers(given[key]) != _kind_of_numbers(expected[key])]
    if other:
        key = other[0]
        raise LSHFMError(
            f"{source}: {len(other)} tensors are of another type, such as {key}: expected {expected[key].dtype}, "
            f"found {given[key].dtype}. Export the weights without quantisation."
        )


def _kind_of_numbers(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.is_quantized


def _likely_cause(
    name: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor], wrong: list[str]
) -> str:
    family, other = recognise_architecture(expected), recognise_architecture(given)
    if family is not None and all(key.startswith(family.class_layers) for key in wrong):
        scores = next((key for key in wrong if key == f"{family.classifier}.bias"), wrong[0])
        sizes = (
            f" ({scores} has {given[scores].shape[0]} values, expected {expected[scores].shape[0]})"
            if scores in given and scores in expected
            else ""
        )
        return f"another number of classes{sizes}"
    recognised = recognise_model(given)
    if recognised not in (None, name):
        return f"another detector (the tensors look like {recognised})"
    if not given.keys() & expected.keys():
        return f"names of another library or network (such as {first_few(given, 1)})"
    if family is not None and other is not None and family is not other:
        return f"another architecture ({family.title} against {other.title})"
    if any(key.startswith("backbone.") and not key.startswith("backbone.fpn.") for key in wrong):
        return "another backbone, width or norm"
    return "other sizes of the pyramid or the heads"
