"""Weights of other tools: prefixes, entries of dicts, safetensors, and files without weights."""

import gzip
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from published_files import old_names, published_file
from safetensors.torch import save_file
from small_detectors import CLASS_NAMES, STUDENTS, small_detector

from lshfm_pl.detectors import build_detector, detector_checkpoint, load_detector
from lshfm_pl.detectors.torch_files import UnsafeFileError, read_torch_file
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.hash_files import read_hash_file

FASTER, RETINANET = STUDENTS


def detector_of(name=FASTER, seed=0):
    return small_detector(name, seed)


def load(content, tmp_path, *, name=FASTER, **settings):
    path = tmp_path / "foreign.pth"
    torch.save(content, path)
    return load_detector(path, config=small_detector(name).config, class_names=CLASS_NAMES, **settings)


def same_weights(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "detector.", "student.", "module.model.", "ema.module."],
)
def test_prefixes_are_taken_off_and_said(tmp_path, name, prefix):
    detector = detector_of(name)
    loaded = load(prefixed(prefix, detector.state_dict()), tmp_path, name=name)
    assert same_weights(loaded, detector)
    told = prefix.replace("_orig_mod.", "")
    assert (f"state dict, prefix '{told}' taken off" in str(loaded.load_report)) == bool(told)


def test_names_that_wrappers_put_inside_are_left_out(tmp_path):
    detector = detector_of()
    weights = {
        key.replace("backbone.", "backbone._orig_mod."): value for key, value in detector.state_dict().items()
    }
    assert same_weights(load(prefixed("_fsdp_wrapped_module.", weights), tmp_path), detector)


def test_tensors_beside_the_prefix_are_left_out_and_said(tmp_path):
    detector = detector_of()
    content = {**prefixed("model.", detector.state_dict()), "loss.weight": torch.ones(3)}
    report = str(load({"state_dict": content, "epoch": 3}, tmp_path).load_report)
    assert "state dict, in 'state_dict', prefix 'model.' taken off, 1 tensors beside it left out" in report


def test_old_names_below_a_prefix_become_todays(tmp_path):
    detector = detector_of()
    assert same_weights(load(prefixed("module.", old_names(detector.state_dict())), tmp_path), detector)


@pytest.mark.parametrize(
    "entry",
    ["state_dict", "model_state_dict", "model", "weights", "net", "ema", "model.module", "checkpoint.model"],
)
def test_the_only_dict_that_fits_is_taken_and_said(tmp_path, entry):
    detector = detector_of()
    content = detector.state_dict()
    for part in reversed(entry.split(".")):
        content = {part: content}
    state = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content |= {"epoch": 9, "optimizer_state_dict": state, "loss": 0.3, "best": torch.tensor(1.0)}
    loaded = load(content, tmp_path)
    assert same_weights(loaded, detector)
    assert f"state dict, in '{entry}'" in str(loaded.load_report)


def test_several_networks_are_named_and_one_can_be_chosen(tmp_path):
    first, second = detector_of(seed=1), detector_of(seed=2)
    content = {"model": first.state_dict(), "best": prefixed("module.", second.state_dict())}
    with pytest.raises(LSHFMError, match=r"holds 2 networks: model, best\.module\. Choose one by which="):
        load(content, tmp_path)
    assert same_weights(load(content, tmp_path, which="best"), second)
    assert same_weights(load(content, tmp_path, which="model"), first)
    with pytest.raises(LSHFMError, match="holds 2 networks"):
        load(content, tmp_path, which="other")


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (("model", "model_ema"), "model is there too: which=model"),
        (("state_dict", "ema_state_dict"), "state_dict is there too: which=state_dict"),
        (("model.module", "ema.module"), "model.module is there too: which=model.module"),
    ],
)
def test_of_a_model_and_its_average_the_average_is_taken_and_said(tmp_path, entries, told):
    model, average = detector_of(seed=1), detector_of(seed=2)
    content = {}
    for entry, detector in zip(entries, (model, average), strict=True):
        name, _, inside = entry.partition(".")
        content[name] = {inside: detector.state_dict()} if inside else detector.state_dict()
    loaded = load(content, tmp_path)
    assert same_weights(loaded, average)
    assert f"the average (EMA) was taken, {told}" in str(loaded.load_report)
    assert same_weights(load(content, tmp_path, which=entries[0]), model)
    assert same_weights(load(content, tmp_path, which=entries[1]), average)


def test_average_of_another_network_is_not_taken_for_that_of_the_model(tmp_path):
    content = {"model": detector_of(FASTER).state_dict(), "model_ema": detector_of(RETINANET).state_dict()}
    with pytest.raises(LSHFMError, match="holds 2 networks: model, model_ema"):
        load(content, tmp_path)
    assert load({**content, "schema": detector_of(FASTER, 3).state_dict()}, tmp_path, which="schema")


def test_student_and_teacher_below_prefixes_are_told_apart(tmp_path):
    first, second = detector_of(seed=1), detector_of(seed=2)
    content = {**prefixed("student.", first.state_dict()), **prefixed("teacher.", second.state_dict())}
    assert same_weights(load({"state_dict": content}, tmp_path), first)
    assert same_weights(load({"state_dict": content}, tmp_path, which="teacher"), second)


def test_equal_networks_are_one(tmp_path):
    detector = detector_of()
    weights = {key: value.clone() for key, value in detector.state_dict().items()}
    assert same_weights(load({"model": detector.state_dict(), "ema": weights}, tmp_path), detector)


def test_no_wrong_cause_is_given(tmp_path):
    names = prefixed("module.", {"layer.weight": torch.ones(2), "layer.bias": torch.ones(2)})
    with pytest.raises(LSHFMError, match="all names begin with 'module.layer.'") as failure:
        load(names, tmp_path)
    assert "RetinaNet" not in str(failure.value)
    assert "names of another library or network" in str(failure.value)
    with pytest.raises(LSHFMError, match=r"Faster R-CNN against RetinaNet"):
        load(detector_of(RETINANET).state_dict(), tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    for value in (float("nan"), float("inf")):
        detector = detector_of()
        detector.state_dict()["backbone.body.conv1.weight"][0, 0, 0, 0] = value
        torch.save(detector_checkpoint(detector), tmp_path / "diverged.ckpt")
        with pytest.raises(
            LSHFMError, match=r"diverged.ckpt: 1 of \d+ tensors hold NaN or infinite values \(back"
        ):
            load_detector(tmp_path / "diverged.ckpt")
        with pytest.raises(LSHFMError, match="hold NaN or infinite values"):
            load(detector.state_dict(), tmp_path)


def test_quantised_weights_are_refused(tmp_path):
    weights = {key: value.to(torch.int8) for key, value in detector_of().state_dict().items()}
    with pytest.raises(
        LSHFMError, match="expected torch.float32, found torch.int8. Export the weights without"
    ):
        load(weights, tmp_path)


# Files that describe themselves


def test_sizes_in_a_description_are_believed_only_if_the_tensors_have_them(tmp_path):
    content = detector_checkpoint(detector_of())
    path = tmp_path / "file.ckpt"
    for key, value in (("fpn_channels", 4096), ("box_head_width", 16_384), ("width", 16.0)):
        torch.save({**content, "config": {**content["config"], key: value}}, path)
        with pytest.raises(LSHFMError, match=r"file.ckpt \(detector file\) does not fit"):
            load_detector(path)


WRONG_DESCRIPTIONS = {
    "config: no dict": ({"config": [1]}, "expected a dict of settings as config, found list"),
    "config: text": ({"config": "fpn"}, "expected a dict of settings as config, found str"),
    "config: numbers as keys": ({"config": {1: 2}}, "expected a dict of settings as config"),
    "classes: text": ({"num_classes": "4"}, "expected a whole number of classes from 1 to"),
    "classes: huge": ({"num_classes": 10**12}, "expected a whole number of classes from 1 to"),
    "classes: bool": ({"num_classes": True}, "expected a whole number of classes from 1 to"),
    "classes: tensor": ({"num_classes": torch.ones(3)}, "expected a whole number of classes from 1 to"),
    "names: text": ({"class_names": "abc"}, "expected a list of texts as class_names"),
    "names: numbers": ({"class_names": [1, 2, 3]}, "expected a list of texts as class_names"),
    "names: too few": ({"class_names": ["a"]}, "expected 3 class names, found 1"),
    "weights: list": ({"state_dict": [1]}, "holds no state_dict"),
    "weights: numbers": ({"state_dict": {"a": 1}}, "expected names to tensors in its state_dict, found int"),
    "version: list": ({"version": [1]}, "detector format version"),
}


@pytest.mark.parametrize("wrong", WRONG_DESCRIPTIONS)
def test_a_damaged_description_is_reported_in_one_line(tmp_path, wrong):
    changes, message = WRONG_DESCRIPTIONS[wrong]
    torch.save({**detector_checkpoint(detector_of()), **changes}, tmp_path / "file.ckpt")
    with pytest.raises(LSHFMError, match=message) as failure:
        load_detector(tmp_path / "file.ckpt")
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 400


SETTINGS = [
    ("fpn_channels", 10**7), ("fpn_channels", -1), ("min_size", [10**6]), ("min_size", [800] * 1000),
    ("max_size", 10**9), ("width", 1e9), ("box_head_width", 10**9), ("box_detections_per_img", 10**12),
    ("rpn_pre_nms_top_n_test", 2**70), ("name", "x" * 10**5), ("architecture", ["fasterrcnn"]),
    ("backbone", {"a": 1}), ("norm", 3), ("norm_eps", float("nan")), ("anchor_sizes", [[[1]]] * 5),
    ("image_mean", "abc"), ("trainable_stages", 2.5), ("neck", None), ("fpn_channels", torch.ones(10)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), SETTINGS, ids=[f"{key}-{index}" for index, (key, _) in enumerate(SETTINGS)]
)
def test_settings_in_a_file_have_bounds(tmp_path, key, value):
    content = detector_checkpoint(detector_of())
    torch.save({**content, "config": {**content["config"], key: value}}, tmp_path / "file.ckpt")
    with pytest.raises(LSHFMError, match=rf"file.ckpt: model\.{key}: expected .*, found") as failure:
        load_detector(tmp_path / "file.ckpt")
    assert len(str(failure.value)) < 500


def test_lists_that_hold_each_other_are_refused(tmp_path):
    endless = []
    endless.append(endless)
    bomb = [0] * 10
    for _ in range(12):
        bomb = [bomb] * 10
    deep = []
    for _ in range(150):
        deep = [deep]
    for content in (endless, bomb, deep):
        torch.save({"config": content}, tmp_path / "bomb.ckpt")
        with pytest.raises(UnsafeFileError, match="its lists and dicts hold each other without end"):
            read_torch_file(tmp_path / "bomb.ckpt")


# Backbones


def backbone_config(path):
    return {**small_detector(FASTER).config, "backbone_weights": str(path)}


def body_of(detector):
    start = "backbone.body."
    return {
        key.removeprefix(start): value
        for key, value in detector.state_dict().items()
        if key.startswith(start)
    }


def built_on(content, tmp_path):
    path = tmp_path / "body.pth"
    torch.save(content, path)
    torch.manual_seed(9)
    return build_detector(backbone_config(path), num_classes=4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda body: prefixed("module.", body),
        lambda body: prefixed("model.backbone.body.", body),
        lambda body: {"state_dict": prefixed("module.", body), "epoch": 4},
        lambda body: {"model": {**body, "fc.weight": torch.ones(2, 2)}, "args": None},
        lambda body: detector_checkpoint(detector_of()),
    ],
    ids=["prefix", "nested prefix", "entry and prefix", "entry with classifier", "a whole detector"],
)
def test_backbones_are_found_below_prefixes_and_entries(tmp_path, wrap):
    body = body_of(detector_of())
    built = built_on(wrap(body), tmp_path)
    assert all(torch.equal(value, body[key]) for key, value in body_of(built).items())
    assert "taken off" in built.backbone_report or "in 'model'" in built.backbone_report


def test_backbones_that_are_not_one_are_reported(tmp_path):
    body = body_of(detector_of())
    both = {**prefixed("student.", body), **prefixed("teacher.", body_of(detector_of(seed=1)))}
    with pytest.raises(LSHFMError, match="holds 2 backbones: student, teacher. Save one of them"):
        built_on(both, tmp_path)
    with pytest.raises(LSHFMError, match=r"\(all names begin with 'a.'\) does not fit resnet10"):
        built_on({"a.b.c": torch.ones(1), "a.d": torch.ones(1)}, tmp_path)
    with pytest.raises(LSHFMError, match="of the backbone in .*body.pth, found none"):
        built_on({"epoch": 3}, tmp_path)
    with pytest.raises(LSHFMError, match="hold NaN or infinite values"):
        built_on({key: value * float("nan") for key, value in body.items()}, tmp_path)


def test_deeper_backbones_are_no_shallower_ones(tmp_path):
    from torchvision.models import resnet34

    config = {**small_detector(FASTER).config, "backbone": "resnet18", "width": 1.0, "norm": "bn"}
    torch.save(resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(LSHFMError, match="does not fit resnet18"):
        build_detector({**config, "backbone_weights": str(tmp_path / "resnet34.pth")}, num_classes=3)


# Files of other formats


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_are_read(tmp_path, dtype):
    detector = detector_of()
    weights = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in detector.state_dict().items()
    }
    path = tmp_path / "foreign.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata={"format": "pt"})
    loaded = load_detector(path, config=detector.config, class_names=CLASS_NAMES)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, weights[key].to(value.dtype))


def test_safetensors_may_have_a_prefix_and_be_a_backbone(tmp_path):
    body = body_of(detector_of())
    path = tmp_path / "body.safetensors"
    save_file({f"module.{key}": value.contiguous() for key, value in body.items()}, path)
    built = build_detector(backbone_config(path), num_classes=4)
    assert all(torch.equal(value, body[key]) for key, value in body_of(built).items())


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": F32}, bytes(4)),
        safetensors({"a": F32, "b": F32}, bytes(8)),
        safetensors({"a": {**F32, "shape": [2**62, 4]}}, bytes(8)),
        safetensors({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
        safetensors({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8)),
        safetensors({"a": {**F32, "dtype": "Z9"}}, bytes(8)),
        safetensors({"a": 3}, bytes(8)),
        safetensors(b"{" + b"[" * 100_000, bytes(8)),
        safetensors(b"{not json", bytes(8)),
        safetensors({"a": F32}, bytes(8))[:20],
        struct.pack("<Q", 2**40) + b'{"a": 1}',
        struct.pack("<Q", 2**64 - 1) + b'{"a": 1}',
        safetensors({"a": F32}, bytes(12)),
        safetensors({"a": {**F32, "shape": [3]}}, bytes(8)),
        safetensors({"a": {**F32, "dtype": "F64"}}, bytes(8)),
        safetensors({"a": {**F32, "shape": "2"}}, bytes(8)),
        safetensors({"a": {"dtype": "F32"}}, bytes(8)),
    ],
    ids=[
        "cut",
        "overlap",
        "huge",
        "reversed",
        "negative",
        "dtype",
        "number",
        "deep",
        "text",
        "header cut",
        "header of a terabyte",
        "header without end",
        "bytes left over",
        "shape",
        "other dtype",
        "shape of text",
        "no offsets",
    ],
)
def test_damaged_safetensors_are_reported_in_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(LSHFMError, match="x.safetensors: not a whole safetensors file") as failure:
        read_torch_file(tmp_path / "x.safetensors")
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 500 + len(str(tmp_path))


def zipped(names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return write


def tarred(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))


FORMATS = {
    "empty": (lambda path: path.write_bytes(b""), "is empty. Download"),
    "web page": (lambda path: path.write_text("\n <!DOCTYPE html><html>404</html>"), "is a web page or XML"),
    "npz": (lambda path: np.savez(path.open("wb"), weight=np.ones(3)), r"is a NumPy archive \(.npz\)"),
    "npy": (lambda path: np.save(path.open("wb"), np.ones(3)), r"is a NumPy array \(.npy\)"),
    "hdf5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "is an HDF5 file, as Keras"),
    "keras": (zipped(["config.json", "metadata.json", "model.weights.h5"]), "is a Keras model"),
    "onnx": (lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x99"), "is an ONNX model"),
    "tflite": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(99)), "is a TensorFlow Lite"),
    "torchscript": (
        lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path)),
        "is a TorchScript program, which is not read because it holds code",
    ),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": np.ones(3)})), "is a Python pickle without"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x" * 99)), "is compressed by gzip. Unpack it"),
    "tar": (tarred, "is a tar archive. Unpack it"),
    "zip": (zipped(["a/weights.pth"]), "is a zip archive of something else. Unpack it"),
    "git lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"),
        "is a pointer of Git LFS, not the file itself. Fetch it",
    ),
    "index": (lambda path: path.write_text('{"weight_map": {}}'), "is JSON text, which holds no tensors"),
    "picture": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(99)), "is a JPEG picture"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_files_of_other_formats_are_named(tmp_path, name):
    write, message = FORMATS[name]
    write(tmp_path / "given.pth")
    with pytest.raises(
        LSHFMError, match=rf"given\.pth {message}.* Expected a file of torch.save or of safetens"
    ):
        read_torch_file(tmp_path / "given.pth")


def test_whole_modules_are_refused_with_a_way_out(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UnsafeFileError, match=r"holds torch.nn.* torch.save\(model.state_dict\(\), <file>\)"):
        read_torch_file(tmp_path / "module.pth")


@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "zero.ckpt").symlink_to("/dev/zero")
    for name, found in (("pipe", "a named pipe"), ("zero", "a device")):
        with pytest.raises(LSHFMError, match=f"{name}.ckpt: expected a regular file, found {found}"):
            read_torch_file(tmp_path / f"{name}.ckpt")


def test_masks_of_a_larger_detector_are_left_out_and_said(tmp_path):
    detector = detector_of()
    masks = {
        "roi_heads.mask_head.mask_fcn1.weight": torch.ones(2),
        "roi_heads.mask_predictor.bias": torch.ones(3),
    }
    loaded = load({"model": prefixed("module.", {**detector.state_dict(), **masks})}, tmp_path)
    assert same_weights(loaded, detector)
    assert "2 tensors of other heads left out, such as roi_heads.mask_head.mask_fcn1.weight" in str(
        loaded.load_report
    )
    left_out = [(each.name, each.shape) for each in loaded.load_report.tensors if each.how == "left out"]
    assert left_out == [
        ("model.module.roi_heads.mask_head.mask_fcn1.weight", (2,)),
        ("model.module.roi_heads.mask_predictor.bias", (3,)),
    ]


def test_a_pair_of_the_published_code_has_its_own_message(tmp_path):
    detector = detector_of(RETINANET)
    weights = {**prefixed("s_", detector.state_dict()), **prefixed("t_", detector.state_dict())}
    published_file(tmp_path / "pair.ckpt", weights)
    loaded = load_detector(
        tmp_path / "pair.ckpt", config=detector.config, class_names=CLASS_NAMES, which="teacher"
    )
    assert "teacher of a published checkpoint" in str(loaded.load_report)


def test_hashes_that_are_not_finite_are_refused(tmp_path):
    torch.save({"weight": torch.full((4, 8), float("nan")), "bias": None}, tmp_path / "hash.pth")
    with pytest.raises(
        LSHFMError, match=r"distill.hash_weights: .*hash.pth: 1 of 1 tensors hold NaN or infinite"
    ):
        read_hash_file(tmp_path / "hash.pth")
