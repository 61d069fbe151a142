"""Properties for any input: readers raise the project's own error, or return what they document."""

import json
import math

import numpy as np
import pytest
import torch
from coco_files import annotation, coco_content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from voc_files import annotation_xml, object_xml, write_image, write_split

from lshfm_pl.data.coco.annotations import read_coco_json
from lshfm_pl.data.coco.dataset import COCODetection
from lshfm_pl.data.faults import FaultLog, unsafe_path
from lshfm_pl.data.images import decode_image
from lshfm_pl.data.sampler import AspectRatioBatchSampler, ShardSampler
from lshfm_pl.data.transforms import train_transform
from lshfm_pl.data.voc.dataset import VOCDetection
from lshfm_pl.data.voc.layout import VOCSource
from lshfm_pl.data.voc.sources import read_sources
from lshfm_pl.errors import LSHFMError

SIZE = (64, 48)
# Every example rewrites the folder of the fixture.
quick = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def voc(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    write_image(tmp_path / "JPEGImages" / "a.png", SIZE)
    write_split(tmp_path, "train", ["a"])
    return tmp_path


def read_voc(folder, content):
    (folder / "Annotations" / "a.xml").write_bytes(content)
    log = FaultLog("skip")
    dataset = VOCDetection([VOCSource(folder, "train")], ("cat", "dog"), log=log)
    assert (len(dataset) == 0) == bool(log.errors)
    for record in dataset.records:
        assert np.isfinite(record.boxes).all()
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        assert ((record.boxes[:, :2] < (record.width, record.height)) & (record.boxes[:, 2:] > 0)).all()
        assert set(record.labels.tolist()) <= {1, 2}
    if log.errors:
        with pytest.raises(LSHFMError):
            VOCDetection([VOCSource(folder, "train")], ("cat", "dog"))


numbers = st.one_of(
    st.integers(-20, 100),
    st.floats(width=32),
    st.sampled_from(["", " ", "nan", "1e400", "-0", "0x10", "1_0", "１２", "left", 2**70]),
)
objects = st.builds(
    object_xml,
    st.sampled_from(["cat", "dog", "catt", "", " cat ", "<b>", "&amp;"]),
    st.tuples(numbers, numbers, numbers, numbers),
    st.sampled_from([0, 1, "", "yes", -1]),
)


@quick
@given(objects=st.lists(objects, max_size=4), size=st.tuples(numbers, numbers))
def test_any_values_in_an_annotation_are_read_or_refused(voc, objects, size):
    read_voc(voc, annotation_xml(objects, size).encode("utf-8", "surrogatepass"))


@quick
@given(content=st.binary(max_size=300))
def test_any_bytes_for_an_annotation_are_refused(voc, content):
    read_voc(voc, content)


@quick
@given(data=st.data())
def test_a_damaged_annotation_is_read_or_refused(voc, data):
    content = bytearray(annotation_xml([object_xml("cat"), object_xml("dog")], SIZE).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 20)))
        content[start:end] = data.draw(st.binary(max_size=10))
    read_voc(voc, bytes(content))


@quick
@given(content=st.binary(max_size=60))
def test_any_bytes_for_a_split_are_read_or_refused(voc, content):
    (voc / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    (voc / "Annotations" / "a.xml").write_text(annotation_xml())
    try:
        images = read_sources([VOCSource(voc, "train")], FaultLog())
    except LSHFMError:
        return
    assert all(image.image_path.parent == voc / "JPEGImages" for image in images)


@quick
@given(name=st.text(alphabet="ab./\\:~\0 ", max_size=8))
def test_a_name_that_is_not_refused_stays_in_its_folder(tmp_path, name):
    if unsafe_path(name) is None:
        assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4)
    ),
    max_leaves=8,
)
PLACES = [
    ("images", "id"), ("images", "file_name"), ("images", "width"), ("images", "height"),
    ("annotations", "bbox"), ("annotations", "image_id"), ("annotations", "category_id"),
    ("annotations", "area"), ("annotations", "iscrowd"), ("categories", "id"), ("categories", "name"),
]  # fmt: skip


def read_coco(folder, content):
    path = folder / "objects.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for category_ids in ("contiguous", "keep"):
        for log in (FaultLog(), FaultLog("skip")):
            try:
                dataset = COCODetection(
                    path, folder / "JPEGImages", category_ids=category_ids, training=True, log=log
                )
            except LSHFMError:
                continue
            for record in dataset.records:
                limits = np.array([record.width, record.height] * 2)
                assert ((record.boxes >= 0) & (record.boxes <= limits)).all()
                assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
                assert not record.crowd.any()


@quick
@given(place=st.sampled_from(PLACES), value=json_values)
def test_any_value_in_a_coco_file_is_read_or_refused(voc, place, value):
    content = coco_content({1: SIZE, 2: SIZE}, [annotation(1), annotation(2)])
    for image in content["images"]:
        image["file_name"] = "a.png"
    content[place[0]][0][place[1]] = value
    read_coco(voc, content)


@quick
@given(
    boxes=st.lists(
        st.lists(st.floats(-200, 200, allow_nan=False), min_size=4, max_size=4), min_size=1, max_size=5
    )
)
def test_any_boxes_of_a_coco_file_are_clipped_to_the_image(voc, boxes):
    content = coco_content({1: SIZE}, [annotation(1, box=box, area=1) for box in boxes])
    content["images"][0]["file_name"] = "a.png"
    read_coco(voc, content)


@quick
@given(
    content=json_values
    | st.dictionaries(st.sampled_from(["images", "annotations", "categories"]), json_values)
)
def test_any_json_is_read_or_refused(voc, content):
    read_coco(voc, content)


@quick
@given(content=st.text(max_size=200))
def test_any_text_for_json_is_refused(voc, content):
    path = voc / "objects.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(LSHFMError):
        read_coco_json(path)


@quick
@given(
    start=st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF"]),
    rest=st.binary(max_size=200),
)
def test_any_bytes_for_an_image_are_refused(tmp_path, start, rest):
    (tmp_path / "a.jpg").write_bytes(start + rest)
    with pytest.raises(LSHFMError):
        decode_image(tmp_path / "a.jpg")


@quick
@given(data=st.data(), suffix=st.sampled_from([".jpg", ".png", ".bmp", ".webp"]))
def test_a_damaged_image_is_read_or_refused(tmp_path, data, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, (16, 12))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        image = decode_image(path)
    except LSHFMError:
        return
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3


# Samplers


@quick
@given(
    ratios=st.lists(st.floats(0.05, 20), min_size=1, max_size=60),
    batch_size=st.integers(1, 5),
    num_replicas=st.integers(1, 4),
    group_factor=st.integers(0, 4),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 100),
)
def test_ranks_share_an_epoch(ratios, batch_size, num_replicas, group_factor, seed, epoch):
    shares = []
    for rank in range(num_replicas):
        sampler = AspectRatioBatchSampler(
            ratios, batch_size, group_factor=group_factor, seed=seed, num_replicas=num_replicas, rank=rank
        )
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
    number = math.ceil(len(ratios) / (batch_size * num_replicas))
    assert {len(share) for share in shares} == {number}
    draws = [draw for share in shares for batch in share for draw in batch]
    assert len(draws) == number * batch_size * num_replicas
    assert {draw.index for draw in draws} == set(range(len(ratios)))
    assert {draw.epoch for draw in draws} == {epoch}
    # Only the last batch is filled up with repeated images.
    assert len(draws) - len(ratios) < batch_size * num_replicas


@quick
@given(number=st.integers(0, 200), num_replicas=st.integers(1, 9))
def test_ranks_share_the_evaluation_without_repeating(number, num_replicas):
    shares = [
        list(ShardSampler(number, num_replicas=num_replicas, rank=rank)) for rank in range(num_replicas)
    ]
    assert sorted(index for share in shares for index in share) == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Boxes


@st.composite
def boxes_in_an_image(draw):
    """(height, width) and float32 [N, 4] boxes with area inside."""
    height, width = draw(st.integers(2, 60)), draw(st.integers(2, 60))
    boxes = []
    for _ in range(draw(st.integers(0, 5))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))))
    return (height, width), torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def is_inside(boxes, size, tolerance=0.0):
    height, width = size
    limits = torch.tensor([width, height, width, height]) + tolerance
    return bool(((boxes >= -tolerance) & (boxes <= limits)).all() and (boxes[:, 2:] > boxes[:, :2]).all())


@quick
@given(item=boxes_in_an_image())
def test_a_flip_keeps_boxes_inside_and_two_change_nothing(item):
    size, boxes = item
    image = torch.arange(3 * size[0] * size[1]).remainder(251).to(torch.uint8).reshape(3, *size)
    flip = train_transform(1.0)

    def flipped(image, boxes):
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        image, target = flip(tv_tensors.Image(image), {"boxes": boxes})
        return image.as_subclass(torch.Tensor), target["boxes"].as_subclass(torch.Tensor)

    once = flipped(image, boxes)
    assert is_inside(once[1], size)
    areas = [(found[:, 2:] - found[:, :2]).prod(dim=1) for found in (boxes, once[1])]
    assert torch.equal(*areas)
    twice = flipped(*once)
    assert torch.equal(twice[0], image)
    assert torch.equal(twice[1], boxes)


@quick
@given(item=boxes_in_an_image(), min_size=st.integers(8, 64))
def test_resizing_keeps_boxes_inside(item, min_size):
    size, boxes = item
    transform = GeneralizedRCNNTransform(min_size, 96, [0.0] * 3, [1.0] * 3)
    targets = [{"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}]
    images, resized = transform([torch.zeros(3, *size)], targets)
    assert is_inside(resized[0]["boxes"], images.image_sizes[0], tolerance=1e-3)
