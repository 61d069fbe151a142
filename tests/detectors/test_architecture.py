"""Families of detectors by name: built-in, installed, a user's own; and which a file may name."""

import importlib
import sys

import pytest
import torch
from small_detectors import CLASS_NAMES, EVERY_STUDENT, STUDENTS, small_detector
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, retinanet_resnet50_fpn

from lshfm_pl import paths
from lshfm_pl.detectors import build_detector, detector_checkpoint, load_detector
from lshfm_pl.detectors.architecture import (
    Architecture,
    architecture,
    architecture_of,
    default_setting,
    known_architectures,
)
from lshfm_pl.detectors.config import EVALUATION_SETTINGS, import_parts
from lshfm_pl.detectors.faster_rcnn import FASTER_RCNN
from lshfm_pl.detectors.fcos import FCOS
from lshfm_pl.detectors.registry import Registry
from lshfm_pl.detectors.retinanet import RETINANET
from lshfm_pl.detectors.ssd import SSD
from lshfm_pl.errors import LSHFMError

MODULE = """
from lshfm_pl.detectors.retinanet import RETINANET
from lshfm_pl.detectors.ssd import SSD
from dataclasses import replace

OWN = replace(RETINANET, name="own")
NO_RECORD = 3
"""


def fresh_registry():
    """A registry that has found nothing yet and sees what is installed now."""
    return Registry(
        Architecture, key="architecture", package="lshfm_pl.detectors", group="lshfm_pl.architectures"
    )


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def test_built_in_families_are_found_by_name():
    names = ("fasterrcnn", "fcos", "retinanet", "ssd")
    found = tuple(architecture(name) for name in names)
    assert found == (FASTER_RCNN, FCOS, RETINANET, SSD)
    assert known_architectures()[: len(names)] == found


@pytest.mark.parametrize("name", EVERY_STUDENT)
def test_records_say_what_is_true_of_their_detectors(name):
    detector = small_detector(name)
    family = architecture_of(detector)
    weights = detector.state_dict()
    assert family.is_built(detector)
    assert [known for known in known_architectures() if known.has_parameters_of(weights)] == [family]
    assert family.count_classes(weights) == len(CLASS_NAMES) + 1
    assert not family.classifier or f"{family.classifier}.weight" in weights
    assert any(key.startswith(family.class_layers) for key in weights)
    assert all(detector.get_submodule(module) is not None for module in family.body_modules)
    assert set(family.evaluation) <= set(EVALUATION_SETTINGS)
    assert set(family.evaluation.values()) <= set(detector.config)
    assert set(family.before) <= set(detector.config)


def test_bare_detectors_of_torchvision_are_known_by_their_type():
    with torch.device("meta"):
        assert architecture_of(fasterrcnn_mobilenet_v3_large_320_fpn(weights_backbone=None)) is FASTER_RCNN
        assert architecture_of(retinanet_resnet50_fpn(weights_backbone=None)) is RETINANET
        with pytest.raises(
            LSHFMError, match="expected a detector of Faster R-CNN, .*RetinaNet.*, found ResNet"
        ):
            architecture_of(resnet18())


def test_defaults_of_training_are_the_published_ones():
    assert [default_setting(name, "learning_rate") for name in ("fasterrcnn", "retinanet")] == [0.01, 0.005]
    assert [default_setting(name, "kd_weight") for name in ("fasterrcnn", "retinanet")] == [1.0, 0.3]
    assert [default_setting(name, "kd_temperature") for name in ("fasterrcnn", "retinanet")] == [2.0, 1.0]


def test_loss_setting_of_a_family_goes_before_the_one_of_all_families():
    assert [default_setting(name, "pkd.beta", 10.0) for name in ("fasterrcnn", "retinanet")] == [6.0, 10.0]


def test_a_name_alone_imports_nothing_and_a_users_config_does(own_module):
    path, registry = f"{own_module}.OWN", fresh_registry()
    with pytest.raises(LSHFMError, match=r"fasterrcnn, .*retinanet.*, found 'own_.*A file may not make this"):
        registry.find(path)
    assert own_module not in sys.modules
    assert registry.load(path).name == "own"
    assert registry.find(path) is registry.known()[-1]


def test_a_name_in_a_file_imports_what_a_config_of_the_users_own_names(own_module, tmp_path, monkeypatch):
    (tmp_path / "own/model").mkdir(parents=True)
    monkeypatch.setattr(paths, "own_config_dir", lambda: tmp_path / "own")
    path, registry = f"{own_module}.OWN", fresh_registry()
    (tmp_path / "own/model/other.yaml").write_text("architecture: other.OTHER\n")
    (tmp_path / "own/model/broken.yaml").write_text("[\n")
    with pytest.raises(LSHFMError, match="A file may not make this"):
        registry.find(path)
    (tmp_path / "own/model/mine.yaml").write_text(f"architecture: {path}\n")
    assert registry.find(path).name == "own"
    with pytest.raises(LSHFMError, match=r"other\.OTHER cannot be imported .*PYTHONPATH"):
        registry.find("other.OTHER")


@pytest.mark.parametrize(
    "name", ["os.system", "torch.nn.Module", "sys.modules", "..", "a.", "", None, 3, ["a.b"]]
)
def test_what_is_no_record_is_refused(name):
    for way in (fresh_registry().find, fresh_registry().load):
        with pytest.raises(LSHFMError, match=r"model\.architecture: "):
            way(name)


def test_wrong_import_paths_are_reported_in_one_line(own_module):
    for path, message in (
        ("no_such_module.X", r"no_such_module\.X cannot be imported \(ModuleNotFoundError: .*PYTHONPATH"),
        (f"{own_module}.NO_RECORD", r" has no Architecture NO_RECORD\.$"),
        (f"{own_module}.OTHER", r" has no Architecture OTHER\.$"),
    ):
        with pytest.raises(LSHFMError, match=message) as failure:
            fresh_registry().load(path)
        assert "\n" not in str(failure.value)


def test_entry_points_of_installed_packages_are_found_by_their_names(own_module, tmp_path):
    info = tmp_path / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    entries = f"own = {own_module}:OWN\nbroken = {own_module}.missing:OWN\nwrong = {own_module}:NO_RECORD"
    (info / "entry_points.txt").write_text(f"[lshfm_pl.architectures]\n{entries}\n")
    registry = fresh_registry()
    assert {"own", "broken", "wrong"} < set(registry.names())
    assert own_module not in sys.modules
    assert registry.find("own").name == "own"
    for name, message in (
        ("broken", "cannot be imported"),
        ("wrong", "expected Architecture in .*, found int"),
    ):
        with pytest.raises(LSHFMError, match=f"{name} of an installed package.*{message}"):
            registry.find(name)


def test_a_file_may_name_a_family_only_once_the_user_has(own_module, tmp_path):
    detector = small_detector(STUDENTS[1])
    path = tmp_path / "named.ckpt"
    content = detector_checkpoint(detector)
    content["config"]["architecture"] = f"{own_module}.OWN"
    torch.save(content, path)
    with pytest.raises(LSHFMError, match=r"named\.ckpt: model\.architecture: .*--config-dir=.* model/"):
        load_detector(path)
    assert own_module not in sys.modules
    config = import_parts({**detector.config, "architecture": f"{own_module}.OWN"})
    loaded = load_detector(path)
    assert loaded.config == config
    assert architecture_of(loaded).name == "own"
    built = build_detector(config, num_classes=4, load_backbone=False)
    assert built.state_dict().keys() == loaded.state_dict().keys()
