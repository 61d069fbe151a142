import json
import pickle

import numpy as np
import pytest
import torch
from coco_files import annotation, coco_content, write_coco
from pycocotools.coco import COCO
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.transforms import v2

from lshfm_pl.data.coco.dataset import COCODetection, unused_name
from lshfm_pl.data.images import decode_image
from lshfm_pl.data.transforms import train_transform
from lshfm_pl.errors import LSHFMError

SIZE = (64, 48)
COCO2017_CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck",
    9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench",
    16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear",
    24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase",
    34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat",
    40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle",
    46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut",
    61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet",
    72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave",
    79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase",
    87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip


def read(tmp_path, images, annotations, **settings):
    categories = settings.pop("categories", {3: "cat", 7: "dog", 18: "hen"})
    path = write_coco(tmp_path, "own", coco_content(images, annotations, categories))
    return COCODetection(path, tmp_path / "own", **settings)


def test_evaluation_has_every_image_and_annotation_as_the_file_states_them(tmp_path):
    dataset = read(
        tmp_path,
        {9: SIZE, 4: (48, 64), 6: SIZE},
        [
            annotation(9, 18, (60.5, 2.25, 10, 20), area=77.5),
            annotation(4, 3, (0, 0, 5, 6), iscrowd=1),
            annotation(9, 7, (1, 2, 0, 4)),
        ],
        transforms=v2.Identity(),
    )
    assert [record.image_id for record in dataset.records] == ["4", "6", "9"]
    image, target = dataset[2]
    assert torch.equal(image, decode_image(tmp_path / "own" / "000000000009.jpg"))
    assert target["boxes"].tolist() == [[60.5, 2.25, 70.5, 22.25], [1, 2, 1, 6]]
    assert target["labels"].tolist() == [3, 2]
    assert target["area"].tolist() == [77.5, 0]
    assert target["crowd"].tolist() == target["difficult"].tolist() == [False, False]
    assert target["image_id"].item() == 2
    assert {name: value.dtype for name, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "difficult": torch.bool,
        "crowd": torch.bool,
        "area": torch.float32,
        "image_id": torch.int64,
    }
    assert dataset[0][1]["crowd"].tolist() == [True]
    assert dataset[1][1]["boxes"].shape == (0, 4)
    assert dataset.aspect_ratios == [48 / 64, 64 / 48, 64 / 48]


def test_training_drops_what_there_is_nothing_to_learn_from(tmp_path):
    dataset = read(
        tmp_path,
        dict.fromkeys(range(1, 8), SIZE),
        [
            annotation(1, 3, (60, 40, 20, 20)),  # clipped
            annotation(1, 7, (70, 10, 5, 5)),  # outside
            annotation(1, 7, (5, 5, 0.5, 9)),  # thin, together with another box
            annotation(1, 7, (5, 5, 0, 9)),
            annotation(1, 7, (5, 5, 9, 9), iscrowd=1),
            annotation(2, 3, (5, 5, 9, 9), iscrowd=1),  # only a crowd
            annotation(3, 3, (5, 5, 1, 9)),  # only a thin box
            annotation(4, 3, (5, 50, 9, 9)),  # only a box outside
            annotation(6, 18, (5, 5, 1e-9, 9)),
            annotation(6, 18, (5.5, 5, 9, 9)),
            annotation(7, 18, (5.5, 5, 1e-9, 9)),  # no area in float32
        ],
        training=True,
    )
    assert [record.image_id for record in dataset.records] == ["1", "6"]
    assert dataset.target(0)["boxes"].tolist() == [[60, 40, 64, 48], [5, 5, 5.5, 14]]
    assert dataset.target(0)["labels"].tolist() == [1, 2]
    assert not dataset.target(0)["crowd"].any()
    assert dataset.target(1)["boxes"].tolist() == [[5.5, 5, 14.5, 14]]
    assert dataset.target(1)["image_id"].item() == 1
    assert dataset.describe() == {
        "images": 2,
        "objects": 3,
        "crowd": 2,
        "dropped_boxes": 5,
        "dropped_images": 5,
        "classes": {"cat": 1, "dog": 1, "hen": 1},
    }


def test_nothing_to_learn_at_all_is_refused(tmp_path):
    with pytest.raises(LSHFMError, match=r"instances_own\.json: no image has an object to learn"):
        read(tmp_path, {1: SIZE}, [annotation(1, iscrowd=1)], training=True)


def test_describe_counts_the_evaluation_set(tmp_path):
    annotations = [annotation(1, 3), annotation(1, 18, iscrowd=1), annotation(1, 18, (0, 0, 0, 0))]
    dataset = read(tmp_path, {1: SIZE, 2: SIZE}, annotations, category_ids="keep")
    assert dataset.describe() == {
        "images": 2,
        "objects": 3,
        "crowd": 1,
        "dropped_boxes": 0,
        "dropped_images": 0,
        "classes": {"cat": 1, "dog": 0, "hen": 2},
    }


def test_kept_category_ids_are_labels_with_names_for_the_gaps(tmp_path):
    dataset = read(tmp_path, {1: SIZE}, [annotation(1, 18), annotation(1, 3)], category_ids="keep")
    assert dataset.target(0)["labels"].tolist() == [18, 3]
    assert len(dataset.class_names) == 18
    assert [dataset.class_names[label - 1] for label in (3, 7, 18)] == ["cat", "dog", "hen"]
    gaps = set(range(1, 19)) - {3, 7, 18}
    assert {dataset.class_names[label - 1] for label in gaps} == {unused_name(label) for label in gaps}
    assert unused_name(12) == "unused_12"


def test_coco_2017_has_the_classes_of_torchvisions_weights(tmp_path):
    settings = {"categories": COCO2017_CATEGORIES, "category_ids": "keep"}
    names = read(tmp_path, {1: SIZE}, [], **settings).class_names
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    expected = [unused_name(label) if name == "N/A" else name for label, name in enumerate(weights)]
    assert list(names) == expected[1:]
    assert len(names) + 1 == 91
    contiguous = read(tmp_path, {1: SIZE}, [], categories=COCO2017_CATEGORIES).class_names
    assert contiguous == tuple(COCO2017_CATEGORIES.values())


def test_category_ids_that_cannot_be_labels_are_refused(tmp_path):
    with pytest.raises(LSHFMError, match=r"own\.json: the category id 0 \('cat'\).*category_ids=contiguous"):
        read(tmp_path, {1: SIZE}, [], category_ids="keep", categories={0: "cat", 1: "dog"})
    assert read(tmp_path, {1: SIZE}, [], categories={0: "cat", 1: "dog"}).class_names == ("cat", "dog")
    with pytest.raises(LSHFMError, match=r"own\.json: a category has the name of an unused label"):
        read(tmp_path, {1: SIZE}, [], category_ids="keep", categories={2: "unused_1"})
    with pytest.raises(LSHFMError, match="keep or contiguous, found 'sorted'"):
        read(tmp_path, {1: SIZE}, [], category_ids="sorted")


def test_sizes_that_the_file_leaves_out_are_the_images(tmp_path):
    content = coco_content({1: SIZE, 2: (48, 64)}, [annotation(1, 3, (60, 40, 20, 20)), annotation(2)])
    path = write_coco(tmp_path, "own", content)
    for image in content["images"]:
        image["width"] = 0
    path.write_text(json.dumps(content))
    dataset = COCODetection(path, tmp_path / "own", training=True)
    assert [(record.width, record.height) for record in dataset.records] == [SIZE, (48, 64)]
    assert dataset.target(0)["boxes"].tolist() == [[60, 40, 64, 48]]


def test_flip_mirrors_the_boxes_and_keeps_the_rest(tmp_path):
    dataset = read(tmp_path, {1: SIZE}, [annotation(1, 7, (10, 20, 20, 10), area=50.0)])
    plain, _ = dataset[0]
    dataset.transforms = train_transform(1.0)
    image, target = dataset[0]
    assert torch.equal(image, plain.flip(-1))
    assert target["boxes"].tolist() == [[34, 20, 54, 30]]
    assert (target["labels"].item(), target["area"].item()) == (2, 50.0)
    assert {type(value) for value in target.values()} == {torch.Tensor}
    assert torch.equal(dataset.without_transforms()[0][0], plain)
    assert dataset.transforms is not None


def test_changing_an_item_does_not_change_the_data_set(tmp_path):
    dataset = read(tmp_path, {1: SIZE}, [annotation(1)])
    for key in ("boxes", "area"):
        dataset.target(0)[key].mul_(2)
    assert dataset.target(0)["boxes"].tolist() == [[10, 5, 30, 20]]
    assert dataset.target(0)["area"].tolist() == [300]


def test_data_set_can_be_sent_to_a_spawned_worker(tmp_path):
    dataset = pickle.loads(pickle.dumps(read(tmp_path, {1: SIZE}, [annotation(1)])))
    assert dataset[0][1]["boxes"].shape == (1, 4)


@pytest.mark.parametrize("seed", range(3))
def test_every_object_is_the_one_that_pycocotools_reads(tmp_path, seed, capsys):
    random = np.random.RandomState(seed)
    images = {int(image_id): SIZE for image_id in random.permutation(20)}
    annotations = [
        annotation(
            int(random.choice(list(images))),
            int(random.choice([3, 7, 18])),
            box,
            area=round(random.uniform(0.1, 1) * box[2] * box[3], 3),
            iscrowd=int(random.uniform() < 0.2),
        )
        for box in np.round(random.uniform(0, 20, (60, 4)), 2).tolist()
    ]
    dataset = read(tmp_path, images, annotations, category_ids="keep")
    reference = COCO(tmp_path / "annotations" / "instances_own.json")
    assert [int(record.image_id) for record in dataset.records] == sorted(reference.getImgIds())
    for index, record in enumerate(dataset.records):
        target = dataset.target(index)
        expected = reference.loadAnns(reference.getAnnIds(imgIds=[int(record.image_id)]))
        assert target["labels"].tolist() == [entry["category_id"] for entry in expected]
        assert target["crowd"].tolist() == [entry["iscrowd"] == 1 for entry in expected]
        assert target["area"].tolist() == pytest.approx([entry["area"] for entry in expected], rel=1e-6)
        for box, entry in zip(target["boxes"].tolist(), expected, strict=True):
            x, y, width, height = entry["bbox"]
            assert box == pytest.approx([x, y, x + width, y + height], abs=1e-5)
