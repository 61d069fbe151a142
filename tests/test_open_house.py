"""Only a family's own files depend on the family. The rest of the source uses its record, never a name or a type.

The same holds for families of backbones. The source is parsed, not run.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.utils import get_class
from torch import nn
from torchvision.models import detection

import lshfm_pl
from lshfm_pl.detectors.architecture import known_architectures
from lshfm_pl.mimic.features.base import DetectorTap

PACKAGE = Path(lshfm_pl.__file__).parent
DETECTION = detection.__name__


def _file_of(import_path):
    return "/".join(import_path.split(".")[1:]) + ".py"


def _tap_files(tap):
    """Of a tap's class, and of those that it shares with other families' taps."""
    classes = (get_class(tap) if isinstance(tap, str) else tap).__mro__
    return {_file_of(each.__module__) for each in classes if DetectorTap in each.__mro__[1:]}


FAMILIES = [family for family in known_architectures() if family.build.__module__.startswith("lshfm_pl.")]
PARTS_OF_TAPS = {"mimic/features/held.py", "mimic/features/locations.py"}
"""Parts of the dense heads' tap, which only files of taps import."""

OWN_FILES = PARTS_OF_TAPS.union(
    (_file_of(family.build.__module__) for family in FAMILIES),
    *(_tap_files(family.tap) for family in FAMILIES if family.tap),
)
"""Of the families of detectors: the file of the architecture, and those of its tap."""

BODIES = "detectors/backbones/"

EXCEPTIONS = {
    ("detectors/full_precision.py", DETECTION): "the anchors that several families build on",
    ("detectors/backbones/build.py", DETECTION): "the pyramid that all families build on",
    ("detectors/tracing.py", DETECTION): "resizing and decoding, which all families share",
    ("detectors/architecture.py", DETECTION): "the type of a padded batch, for annotations alone",
    ("mimic/features/base.py", DETECTION): "the type of a padded batch, for annotations alone",
}
"""(file, what is found in it) → why it may be there."""

INSIDES = {
    "roi_heads", "rpn", "anchor_generator", "proposal_matcher", "classification_head", "regression_head",
    "box_roi_pool", "box_head", "box_predictor",
}  # fmt: skip
"""Parts of torchvision's detectors that not all of them have."""

DETECTOR_NAMES = {
    "fasterrcnn": "faster.?r.?cnn", "maskrcnn": "mask.?r.?cnn", "keypointrcnn": "keypoint.?r.?cnn",
    "retinanet": "retinanet", "fcos": "fcos", "ssd": "ssd(lite)?",
}  # fmt: skip
BODY_NAMES = {
    "resnet": "(wide.?)?resne(x)?t", "vgg": "vgg", "mobilenet": "mobilenet", "efficientnet": "efficientnet",
    "convnext": "convnext", "squeezenet": "squeezenet", "swin": "swin", "regnet": "regnet", "timm": "timm",
}  # fmt: skip


def _patterns(names):
    return {
        name: re.compile(rf"(?<![a-z]){pattern}(?![a-z])", re.IGNORECASE) for name, pattern in names.items()
    }


DETECTOR_PATTERNS, BODY_PATTERNS = _patterns(DETECTOR_NAMES), _patterns(BODY_NAMES)


def _family_classes():
    """Names of classes of torchvision's detectors and of the families' own files."""
    names = set()
    for info in pkgutil.iter_modules(detection.__path__):
        module = importlib.import_module(f"{DETECTION}.{info.name}")
        names |= {
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__
        }
    for file in OWN_FILES:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return names


CLASSES = _family_classes()


class Finding(NamedTuple):
    line: int
    what: str
    how: str


def _docstrings(tree):
    """The string constants that stand alone as statements."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _names_in(node):
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


def _asked_types(node):
    """What a node asks an object to be an instance of."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in ("isinstance", "issubclass") and len(node.args) == 2:
            yield from _names_in(node.args[1])
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(isinstance(part, ast.Call) and "type" in _names_in(part.func) for part in sides):
            yield from (name for side in sides for name in _names_in(side))
        if any(isinstance(part, ast.Attribute) and part.attr in ("__class__", "__name__") for part in sides):
            texts = [part for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant)]
            yield from (str(text.value) for text in texts)
    elif isinstance(node, ast.MatchClass):
        yield from _names_in(node.cls)


def _imports(node):
    if isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Attribute):
        yield ast.unparse(node)


def findings(source, *, of_detectors=True, of_bodies=True):
    """What a file knows of families: types that it asks for, names in its texts, and what it imports."""
    tree = ast.parse(source)
    docstrings = _docstrings(tree)
    patterns = (DETECTOR_PATTERNS if of_detectors else {}) | (BODY_PATTERNS if of_bodies else {})
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            for name, pattern in patterns.items():
                if pattern.search(node.value):
                    yield Finding(node.lineno, name, f"the text {node.value!r}")
            if of_detectors and node.value.split(".")[0] in INSIDES:
                yield Finding(node.lineno, node.value.split(".")[0], "a part of one family")
        if not of_detectors:
            continue
        for name in _asked_types(node):
            if name in CLASSES:
                yield Finding(node.lineno, name, "a comparison of types")
        if isinstance(node, ast.Attribute) and node.attr in INSIDES:
            yield Finding(node.lineno, node.attr, "a part of one family")
        for path in _imports(node):
            if path == DETECTION or path.startswith(f"{DETECTION}."):
                yield Finding(node.lineno, DETECTION, "an import")


def _of_package():
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file not in OWN_FILES:
            source = path.read_text(encoding="utf-8")
            for finding in findings(source, of_bodies=not file.startswith(BODIES)):
                yield file, finding


def test_only_a_familys_own_files_know_the_family():
    found = [
        f"{file}:{finding.line}: {finding.what} in {finding.how}"
        for file, finding in _of_package()
        if (file, finding.what) not in EXCEPTIONS
    ]
    assert not found, "ask the record of the family instead:\n" + "\n".join(found)


def test_each_exception_is_still_needed():
    found = {(file, finding.what) for file, finding in _of_package()}
    assert sorted(EXCEPTIONS.keys() - found) == []


def test_parts_of_taps_are_imported_by_files_of_families_alone():
    modules = {f"lshfm_pl.{file.removesuffix('.py').replace('/', '.')}" for file in PARTS_OF_TAPS}
    importing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in modules
    }
    assert importing
    assert importing <= OWN_FILES


def test_files_of_the_families_are_found():
    assert {"detectors/faster_rcnn.py", "detectors/retinanet.py"} <= OWN_FILES
    assert {"mimic/features/faster_rcnn.py", "mimic/features/retinanet.py"} <= OWN_FILES
    assert all((PACKAGE / file).is_file() for file in OWN_FILES)
    for family in FAMILIES:
        assert any(pattern.search(family.name) for pattern in DETECTOR_PATTERNS.values()), family.name


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(detector, FasterRCNN)",
        "isinstance(detector, (int, detection.RetinaNet))",
        "isinstance(part, AnchorGenerator | RoIHeads)",
        "issubclass(kind, RetinaNetTap)",
        "type(detector) is FasterRCNN",
        "type(detector).__name__ == 'RetinaNet'",
        "match detector:\n    case RetinaNet(): pass",
        "match config['architecture']:\n    case 'fasterrcnn': pass",
        "name == 'fasterrcnn'",
        "name in ('retinanet', 'fcos')",
        "name.startswith('retinanet_')",
        "{'fasterrcnn': 1, 'retinanet': 2}[name]",
        "f'{name} is no Faster R-CNN'",
        "if detector.roi_heads: pass",
        "hasattr(detector, 'rpn')",
        "detector.get_submodule('roi_heads.box_head')",
        "import torchvision.models.detection",
        "import torchvision\ntorchvision.models.detection.fcos",
        "from torchvision.models import detection",
        "from torchvision.models.detection.retinanet import RetinaNet",
        "name.startswith('resnet')",
        "{'vgg11': 1}",
        "name == 'wide_resnet50'",
    ],
)
def test_knowledge_of_a_family_is_found(source):
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        '"""As in a RetinaNet with a resnet50."""',
        "isinstance(detector, nn.Module)",
        "# name == 'fasterrcnn'",
        "architecture_of(detector).classifier",
        "from torchvision.models import get_model_weights",
        "name == 'passdown'",
    ],
)
def test_what_is_of_no_family_is_left_alone(source):
    assert not list(findings(source))
