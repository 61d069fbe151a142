"""`lshfm_pl.runtime`, with files of constant outputs, and without torch."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import ExifTags, Image

from lshfm_pl.data.images import decode_image
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runtime import FORMAT, Detector, _pixels

DESCRIPTION = {
    "version": 1,
    "model": "tiny",
    "class_names": ["cat", "dog"],
    "nms": True,
    "size": None,
    "parameters": 1,
}
BOXES, SCORES, LABELS = [[1, 2, 3, 4], [0, 0, 8, 8]], [0.9, 0.2], [2, 1]


def write(path, description=DESCRIPTION, labels=LABELS):
    """A file that finds the same two objects in each picture, and returns them with its input's mean as score."""
    outputs = {
        "boxes": (BOXES, TensorProto.FLOAT),
        "scores": (SCORES, TensorProto.FLOAT),
        "labels": (labels, TensorProto.INT64),
    }
    nodes = [
        helper.make_node(
            "Constant", [], [name], value=helper.make_tensor(name, kind, np.shape(values), np.ravel(values))
        )
        for name, (values, kind) in outputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info(name, kind, None) for name, (_, kind) in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if description is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = FORMAT, json.dumps(description)
    onnx.save(model, path)
    return path


def test_pictures_of_all_kinds_are_detected(tmp_path):
    detector = Detector(write(tmp_path / "a.onnx"), threads=1)
    pixels = np.zeros((20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for image in (pixels, pixels[:, :, 0], Image.fromarray(pixels[:, :, 0]), tmp_path / "a.png"):
        boxes, scores, labels, names = detector(image)
        assert boxes.tolist() == BOXES
        assert scores.tolist() == pytest.approx(SCORES)
        assert (labels.tolist(), names) == (LABELS, ["dog", "cat"])
    assert detector(pixels, score_threshold=0.5).names == ["dog"]


def test_a_file_of_fixed_size_gives_boxes_in_the_picture(tmp_path):
    detector = Detector(write(tmp_path / "a.onnx", {**DESCRIPTION, "size": [10, 10]}))
    assert detector(np.zeros((20, 40, 3), np.uint8)).boxes.tolist() == [[4, 4, 12, 8], [0, 0, 32, 16]]


def test_each_wrong_file_and_picture_has_its_message(tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(LSHFMError, match="found no file"):
        Detector(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LSHFMError, match="a.onnx: not a whole ONNX file"):
        Detector(path)
    for description, message in (
        (None, "an ONNX file of another program"),
        ({**DESCRIPTION, "version": 9}, "version 9 of the description, expected 1"),
        ({**DESCRIPTION, "nms": "yes"}, "its description is damaged at nms"),
        ({"version": 1}, "its description is damaged"),
    ):
        with pytest.raises(LSHFMError, match=message):
            Detector(write(path, description))
    with pytest.raises(LSHFMError, match="finds label 3, but names 2 classes"):
        Detector(write(path, labels=[3, 1]))(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(LSHFMError, match="finds label 0, but names 2 classes from 1 on"):
        Detector(write(path, labels=[0, 1]))(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(LSHFMError, match="expected an exported ONNX file, found a folder"):
        Detector(tmp_path)
    with pytest.raises(LSHFMError, match="expected a path, a Pillow image or a uint8 array"):
        Detector(write(path))(np.zeros((4, 4, 3)))
    with pytest.raises(LSHFMError, match="a.onnx: expected a whole JPEG, PNG, BMP, WEBP file"):
        Detector(path)(path)
    with pytest.raises(LSHFMError, match="none.png: cannot be read: No such file"):
        Detector(path)(tmp_path / "none.png")


def _exif(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


PIXELS = np.random.RandomState(0).randint(0, 256, (24, 36, 3), dtype=np.uint8)
PICTURES = {
    "colour.png": lambda path: Image.fromarray(PIXELS).save(path),
    "colour.bmp": lambda path: Image.fromarray(PIXELS).save(path),
    "colour.webp": lambda path: Image.fromarray(PIXELS).save(path, lossless=True),
    "grey.png": lambda path: Image.fromarray(PIXELS[:, :, 0]).save(path),
    "grey16.png": lambda path: Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257).save(path),
    "bits.png": lambda path: Image.fromarray(PIXELS).convert("1").save(path),
    "palette.png": lambda path: Image.fromarray(PIXELS).quantize(16).save(path, transparency=3),
    "alpha.png": lambda path: Image.fromarray(PIXELS).convert("RGBA").save(path),
    "cmyk.jpg": lambda path: Image.fromarray(PIXELS).convert("CMYK").save(path),
    "wrong exif.jpg": lambda path: Image.fromarray(PIXELS).save(path, exif=b"Exif\0\0MM\0*\0\0\0"),
    "one.png": lambda path: Image.fromarray(PIXELS[:1, :1]).save(path),
    **{
        f"exif {number}.jpg": lambda path, number=number: Image.fromarray(PIXELS).save(
            path, exif=_exif(number)
        )
        for number in range(1, 9)
    },
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_the_same_pixels_as_in_predict(name, tmp_path):
    path = tmp_path / name
    PICTURES[name](path)
    expected = decode_image(path, upright=True)
    assert np.array_equal(_pixels(path), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("name", "write_picture", "message"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "expected a whole JPEG"),
        ("a.gif", lambda path: Image.fromarray(PIXELS).save(path), "can be given as arrays or Pillow images"),
        (
            "cut.png",
            lambda path: PICTURES["colour.png"](path) or path.write_bytes(path.read_bytes()[:800]),
            "cannot",
        ),
        ("thin.png", lambda path: Image.new("RGB", (650, 10)).save(path), "one side is more than 64 times"),
        (
            "huge.png",
            lambda path: Image.new("1", (10_000, 9_000)).save(path),
            "above the limit of 89,478,485",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_predict_leaves_out_is_refused(name, write_picture, message, tmp_path):
    path = tmp_path / name
    write_picture(path)
    with pytest.raises(LSHFMError):
        decode_image(path, upright=True)
    with pytest.raises(LSHFMError, match=f"{name}: .*{message}"):
        _pixels(path)


def test_a_pillow_image_of_16_bits_is_not_cut_at_255():
    image = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)
    assert np.array_equal(_pixels(image)[:, :, 2], PIXELS[:, :, 0])


def test_torch_is_not_needed(tmp_path):
    """In a process in which torch and the packages that need it cannot be imported."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "pytorch_lightning", "hydra", "omegaconf", "onnx"]))
import numpy
from lshfm_pl.runtime import Detector
print(Detector({str(write(tmp_path / "a.onnx"))!r})(numpy.zeros((9, 9, 3), numpy.uint8)).names)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("['dog', 'cat']\n", "")
