"""Where training and evaluation deviate from a COCO file: boxes, areas, categories, images."""

import json
import shlex
import unicodedata

import pytest
from coco_files import annotation, coco_content, write_coco
from hydra.core.override_parser.overrides_parser import OverridesParser

from lshfm_pl.data.coco.datamodule import COCODataModule
from lshfm_pl.data.coco.dataset import COCODetection
from lshfm_pl.data.faults import FaultError, FaultLog
from lshfm_pl.errors import LSHFMError

SIZE = (64, 48)
CATEGORIES = {1: "cat", 2: "dog"}


def write(root, boxes, split="train", *, areas=None, images=None, categories=CATEGORIES, labels=None):
    """Each box belongs to its own image, unless `images` names the images."""
    images = images or list(range(1, len(boxes) + 1))
    labels = labels or [1] * len(boxes)
    entries = [
        annotation(image, label, box, **({} if areas is None else {"area": area}))
        for image, label, box, area in zip(images, labels, boxes, areas or boxes, strict=True)
    ]
    return write_coco(root, split, coco_content(dict.fromkeys(images, SIZE), entries, categories))


def read(root, split="train", **settings):
    log = FaultLog("skip")
    path = root / "annotations" / f"instances_{split}.json"
    dataset = COCODetection(path, root / split, log=log, **{"training": True, **settings})
    return dataset, [(fault.kind, fault.text) for fault in log.faults]


@pytest.mark.parametrize("training", [True, False])
def test_boxes_over_the_border_are_reported_by_what_the_file_says(tmp_path, training):
    boxes = [(50, 5, 20, 15), (-4, 5, 20, 15), (5, 30, 20, 18.005), (5, 5, 20, 15), (-30, -30, 200, 200)]
    write(tmp_path, boxes)
    dataset, told = read(tmp_path, training=training)
    assert [kind for kind, _ in told] == ["box-partly-outside"] * 3
    assert told[0][1] == (
        "entry 1 of 'annotations', of image 1 ('000000000001.jpg'): "
        "the box [50, 5, 20, 15] extends beyond the image of 64 x 48."
    )
    assert dataset.target(0)["boxes"].tolist() == [[50, 5, 64 if training else 70, 20]]


@pytest.mark.parametrize(
    ("boxes", "areas", "reason"),
    [([(40, 20, 60, 45)] * 3, None, "3 of 3 leave their image, where x2 and y2 would fit"),
     ([(40, 20, 60, 45), (3, 2, 20, 12), (30, 5, 64, 48)], None, "2 of 3 leave"),
     ([(10, 5, 25, 20)] * 2, [225, 225], "area is (x2 - x1) (y2 - y1) in 2 of 2"),
     ([(10, 5, 25, 20)], [225], "area is (x2 - x1) (y2 - y1) in 1 of 1")],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_corners_in_place_of_width_and_height_stop(tmp_path, boxes, areas, reason, training):
    write(tmp_path, boxes, areas=areas)
    with pytest.raises(FaultError) as caught:
        read(tmp_path, training=training)
    assert "bbox looks like x1, y1, x2, y2, expected x, y, width, height: " + reason in str(caught.value)
    assert caught.value.fault.kind == "boxes-as-corners"


@pytest.mark.parametrize(
    "boxes",
    [[(40, 20, 30, 30)] * 3,  # crosses the border, but does not look like corners
     [(30, 20, 40, 30)],  # a single box is no evidence
     [(40, 20, 60, 45), (3, 2, 20, 12), (3, 2, 20, 12), (3, 2, 30, 40)],  # too little evidence
     [(0, 0, 64, 48)] * 3,
     [(0, 0, 80, 60)] * 3],
)  # fmt: skip
def test_boxes_that_only_go_over_the_border_are_read(tmp_path, boxes):
    write(tmp_path, boxes)
    assert {kind for kind, _ in read(tmp_path)[1]} <= {"box-partly-outside"}


def test_boxes_of_parts_of_the_image_stop(tmp_path):
    write(tmp_path, [(0.1, 0.2, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)])
    with pytest.raises(
        FaultError, match=r"all coordinates are within 0 and 1: are they relative\? Expected pixels"
    ):
        read(tmp_path)
    write(tmp_path, [(0.1, 0.2, 0.5, 0.5), (0, 0, 1.5, 2)])
    assert "boxes-relative" not in dict(read(tmp_path)[1])


def test_boxes_of_per_cent_are_asked_about(tmp_path):
    boxes = [(10, 20, 30, 40), (50, 50, 50, 50), (0, 0, 99.5, 5)]
    images = dict.fromkeys((1, 2, 3), (300, 200))

    def told(boxes):
        annotations = [annotation(number, 1, box) for number, box in enumerate(boxes, start=1)]
        write_coco(tmp_path, "train", coco_content(images, annotations, CATEGORIES))
        return dict(read(tmp_path)[1])

    text = told(boxes)["boxes-in-percent"]
    assert text.startswith(
        "all 3 boxes are within 0 and 100 and the images have 300 x 200 pixels or more. Percentages?"
    )
    assert "boxes-in-percent" not in told([*boxes[:2], (0, 0, 101, 5)])
    assert "boxes-in-percent" not in told([(1, 2, 30, 40)] * 3)


@pytest.mark.parametrize(
    ("area", "expected"),
    [(64 * 48, 300), (601, 300), (0, 300), (0.2, 300), (300, 300), (336, 336), (77.5, 77.5), (1, 1)],
)
@pytest.mark.parametrize("training", [True, False])
def test_an_area_that_the_box_cannot_have_is_the_boxs(tmp_path, area, expected, training):
    write(tmp_path, [(10, 5, 20, 15), (1, 1, 0.5, 1)], areas=[area, 0.0], images=[1, 1])
    dataset, told = read(tmp_path, training=training)
    assert dataset.target(0)["area"].tolist()[0] == expected
    told = [text for kind, text in told if kind == "area-replaced"]
    assert len(told) == (expected != area)
    if told:
        assert told[0].startswith("1 of 2")
        assert f"{area:g} instead of 300" in told[0]


def test_areas_that_are_wrong_everywhere_are_one_warning(tmp_path):
    write(tmp_path, [(10, 5, 20, 15)] * 4, areas=[3072] * 4)
    assert [kind for kind, _ in read(tmp_path)[1]] == ["area-replaced"]


def images_without_objects(root):
    """Images with an object, without, with only a crowd, only a one-pixel box, only a box outside."""
    content = coco_content(
        dict.fromkeys(range(1, 6), SIZE),
        [
            annotation(1),
            annotation(3, iscrowd=1),
            annotation(4, 3, (5, 5, 1, 9)),
            annotation(5, 3, (70, 5, 9, 9)),
        ],
        {3: "cat"},
    )
    return write_coco(root, "train", content)


def test_images_that_are_left_out_of_training_are_reported_by_reason(tmp_path):
    images_without_objects(tmp_path)
    dataset, told = read(tmp_path)
    assert [record.image_id for record in dataset.records] == ["1"]
    assert dict(told)["images-left-out"] == (
        "4 of 5 images are left out of training, having nothing to learn: 1 without annotations, 1 with only "
        "crowds, 2 with only boxes of one pixel or outside; the first is 000000000002.jpg. "
        "data.keep_empty_images=true trains on those without annotations as background."
    )
    dataset, told = read(tmp_path, training=False)
    assert len(dataset) == 5
    assert "images-left-out" not in dict(told)


def test_images_without_annotations_can_be_kept_as_background(tmp_path):
    images_without_objects(tmp_path)
    dataset, told = read(tmp_path, keep_empty_images=True)
    assert [record.image_id for record in dataset.records] == ["1", "2"]
    assert dataset.target(1)["boxes"].shape == (0, 4)
    text = dict(told)["images-left-out"]
    assert text.startswith("3 of 5 images")
    assert "keep_empty_images" not in text


def test_boxes_without_area_are_reported_in_the_evaluation_too(tmp_path):
    write(tmp_path, [(5, 5, 20, 20), (5, 5, 0, 9), (70, 5, 9, 9)])
    told = [text for kind, text in read(tmp_path, training=False)[1] if kind == "box-left-out"]
    assert len(told) == 2
    assert all(text.endswith("it counts as missed in the evaluation.") for text in told)


# Categories


def make(root, *splits, **settings):
    files = {
        key: value
        for split in splits
        for key, value in (
            (f"{split}_annotations", f"annotations/instances_{split}.json"),
            (f"{split}_images", split),
        )
    }
    return COCODataModule(root=root, num_workers=0, **files, **settings)


def read_sets(datamodule):
    told = {}
    for split in datamodule.splits_to_read():
        log = FaultLog("skip")
        datamodule.read_set(split, log)
        told[split] = {fault.kind: fault.text for fault in log.faults}
    return told


@pytest.mark.parametrize("category_ids", ["contiguous", "keep"])
@pytest.mark.parametrize(
    "categories", [{1: "dog", 2: "cat"}, {0: "dog"}, {7: "dog", 1: "cat"}, {20: "dog", 5: "cat"}]
)
def test_categories_of_another_file_are_matched_by_name(tmp_path, categories, category_ids):
    write(tmp_path, [(5, 5, 20, 20)] * 2, labels=[1, 2])
    dog = next(category_id for category_id, name in categories.items() if name == "dog")
    write(tmp_path, [(5, 5, 20, 20)], "val", categories=categories, labels=[dog])
    datamodule = make(tmp_path, "train", "val", category_ids=category_ids)
    told = read_sets(datamodule)
    assert datamodule.class_names == ("cat", "dog")
    assert "matched by name" in told["val"]["category-matched"]
    datamodule.setup()
    assert datamodule.val_set.target(0)["labels"].tolist() == [2]
    assert datamodule.val_set.class_names == ("cat", "dog")


def test_categories_in_another_form_of_unicode_are_the_same(tmp_path):
    for split, form in (("train", "NFC"), ("val", "NFD")):
        name = unicodedata.normalize(form, "Größe")
        write(tmp_path, [(5, 5, 20, 20)] * 2, split, categories={1: name}, labels=[1, 1])
    datamodule = make(tmp_path, "train", "val")
    assert "category-matched" not in read_sets(datamodule)["val"]
    assert datamodule.class_names == (unicodedata.normalize("NFC", "Größe"),)


def test_categories_that_are_the_same_are_not_reported(tmp_path):
    write(tmp_path, [(5, 5, 20, 20)] * 2, labels=[1, 2])
    write(tmp_path, [(5, 5, 20, 20)], "val")
    for category_ids in ("contiguous", "keep"):
        assert read_sets(make(tmp_path, "train", "val", category_ids=category_ids)) == {
            "train": {},
            "val": {},
        }


def test_the_setting_that_drops_categories_can_be_typed_as_it_is_printed(tmp_path):
    odd = ["it's", "a, b", 'say "x"']
    write(tmp_path, [(5, 5, 20, 20)] * 2, labels=[1, 2])
    names = {1: "cat", 2: "dog", **dict(enumerate(odd, start=3))}
    write(tmp_path, [(5, 5, 20, 20)], "val", categories=names, labels=[1])
    with pytest.raises(FaultError) as caught:
        make(tmp_path, "train", "val").setup()
    typed = str(caught.value).partition("They have no objects: ")[2].partition(" drops them")[0]
    (override,) = shlex.split(typed)
    assert OverridesParser.create().parse_override(override).value() == odd


def test_gaps_between_kept_ids_are_no_missing_categories(tmp_path):
    categories = {2: "cat", 5: "dog"}
    write(tmp_path, [(5, 5, 20, 20)] * 2, labels=[2, 5], categories=categories)
    write(tmp_path, [(5, 5, 20, 20)], "val", labels=[5], categories=categories)
    datamodule = make(tmp_path, "train", "val", category_ids="keep")
    assert read_sets(datamodule) == {"train": {}, "val": {}}
    assert datamodule.class_names == ("unused_1", "cat", "unused_3", "unused_4", "dog")


def test_a_name_that_training_has_not_stops(tmp_path):
    write(tmp_path, [(5, 5, 20, 20)] * 2, labels=[1, 2])
    write(tmp_path, [(5, 5, 20, 20)], "val", categories={1: "cat", 2: "cow"}, labels=[2])
    with pytest.raises(
        FaultError, match=r"train\.json: it has no 'cow'.\nThe classes are cat, dog\.$"
    ) as caught:
        read_sets(make(tmp_path, "train", "val"))
    assert caught.value.fault.kind == "category-unknown"
    write(tmp_path, [(5, 5, 20, 20)], "val", categories={1: "cat", 2: "Dog"}, labels=[2])
    with pytest.raises(
        FaultError, match=r"it has no 'Dog'\.\nDid you mean 'dog'\? The classes are cat, dog\."
    ):
        read_sets(make(tmp_path, "train", "val"))


def roboflow(root, split):
    path = write(root, [(5, 5, 20, 20)] * 2, split, labels=[1, 2], categories={0: "pets", **CATEGORIES})
    content = json.loads(path.read_text())
    for entry in content["categories"]:
        entry["supercategory"] = "none" if entry["id"] == 0 else "pets"
    path.write_text(json.dumps(content))


def test_a_root_category_is_reported_and_can_be_dropped(tmp_path):
    roboflow(tmp_path, "train")
    roboflow(tmp_path, "val")
    datamodule = make(tmp_path, "train", "val")
    told = read_sets(datamodule)
    assert told["train"]["class-without-objects"] == (
        "the class 'pets' has no objects: it is only the supercategory of all others. "
        "'data.drop_categories=[\"pets\"]' drops it."
    )
    assert datamodule.class_names == ("pets", "cat", "dog")
    datamodule = make(tmp_path, "train", "val", drop_categories=["pets"])
    assert read_sets(datamodule) == {"train": {}, "val": {}}
    assert datamodule.class_names == ("cat", "dog")
    kept = make(tmp_path, "train", "val", drop_categories=["pets"], category_ids="keep")
    kept.setup()
    assert kept.val_set.target(1)["labels"].tolist() == [2]


def test_only_categories_without_objects_can_be_dropped(tmp_path):
    write(tmp_path, [(5, 5, 20, 20)] * 2, labels=[1, 2])
    with pytest.raises(FaultError, match="data.drop_categories has 'dog', which has 1 annotations"):
        read_sets(make(tmp_path, "train", "val", drop_categories=["dog"]))
    write(tmp_path, [(5, 5, 20, 20)], "val", categories={1: "cat", 2: "dog", 3: "hen"}, labels=[1])
    with pytest.raises(LSHFMError, match="data.drop_categories: there is no category 'cow' in .*_train.json"):
        read_sets(make(tmp_path, "train", "val", drop_categories=["cow", "hen"]))
    # The category occurs in one file only, as the message about unknown categories advises.
    datamodule = make(tmp_path, "train", "val", drop_categories=["hen"])
    datamodule.setup()
    assert datamodule.class_names == ("cat", "dog")
    with pytest.raises(LSHFMError, match="data.drop_categories must be a list of names"):
        make(tmp_path, "train", "val", drop_categories="dog")


def test_classes_without_training_objects_are_named(tmp_path):
    categories = {1: "cat", 2: "dog", 3: 'it\'s "b"'}
    write(tmp_path, [(5, 5, 20, 20)], categories=categories)
    write(tmp_path, [(5, 5, 20, 20)] * 2, "val", categories=categories, labels=[1, 2])
    told = read_sets(make(tmp_path, "train", "val"))
    assert told["train"]["class-without-objects"] == (
        '2 of 3 classes have no training objects: dog, it\'s "b". '
        """'data.drop_categories=["dog","it'"'"'s \\"b\\""]' drops them."""
    )
    assert told["val"]["class-without-objects"].startswith(
        "has objects of classes without training objects: dog (1)"
    )


def test_classes_of_an_object_or_two_among_hundreds_are_named(tmp_path):
    write(tmp_path, [(5, 5, 20, 20)] * 202, labels=[1] * 200 + [2] * 2, images=[1] * 202)
    write(tmp_path, [(5, 5, 20, 20)], "val")
    told = read_sets(make(tmp_path, "train", "val"))["train"]
    assert told["class-rare"] == "classes with very few training objects: dog (2); cat has 200."
    write(tmp_path, [(5, 5, 20, 20)] * 202, labels=[1] * 199 + [2] * 3, images=[1] * 202)
    assert "class-rare" not in read_sets(make(tmp_path, "train", "val"))["train"]


def test_a_category_named_like_an_unused_label_is_refused_where_ids_are_kept(tmp_path):
    write(tmp_path, [(5, 5, 20, 20)], categories={1: "cat", 3: "unused_3"})
    with pytest.raises(FaultError, match=r"has the name of an unused label.*category_ids=contiguous"):
        read(tmp_path, category_ids="keep")
    assert read(tmp_path)[0].class_names == ("cat", "unused_3")
