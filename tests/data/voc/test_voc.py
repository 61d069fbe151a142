import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from voc_files import (
    BOX,
    SIZE,
    annotation_xml,
    error_text,
    object_xml,
    one_image,
    read,
    set_annotation,
    write_image,
    write_split,
    write_voc,
)

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.images import decode_image
from lshfm_pl.data.sampler import Draw
from lshfm_pl.data.transforms import train_transform
from lshfm_pl.data.voc.dataset import VOC_CLASSES, VOCDetection
from lshfm_pl.data.voc.layout import VOCSource
from lshfm_pl.errors import LSHFMError


def test_item_has_the_pixels_and_the_published_box_convention(tmp_path):
    folder = one_image(tmp_path, object_xml("dog", (11, 21, 30, 40)), object_xml("cat", (1, 1, 64, 48), 1))
    expected_pixels = write_image(folder / "JPEGImages" / "a.png", SIZE, 7)
    image, target = read(folder)[0]
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected_pixels)
    assert torch.equal(target["boxes"], torch.tensor([[10.0, 20, 30, 40], [0, 0, 64, 48]]))
    assert target["labels"].tolist() == [2, 1]
    assert target["difficult"].tolist() == [False, True]
    assert target["image_id"].item() == 0
    assert {name: value.dtype for name, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "difficult": torch.bool,
        "image_id": torch.int64,
    }


def test_box_covers_exactly_the_pixels_that_the_annotation_includes(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(11, 21, 30, 40)))
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[21 - 1 : 40, 11 - 1 : 30] = 255
    Image.fromarray(pixels).save(folder / "JPEGImages" / "a.png")
    image, target = read(folder)[0]
    x1, y1, x2, y2 = target["boxes"][0].int().tolist()
    assert image[:, y1:y2, x1:x2].min() == 255
    assert image.sum() == image[:, y1:y2, x1:x2].sum()


def test_difficult_objects_are_dropped_from_training_and_carried_in_evaluation(tmp_path):
    folder = one_image(tmp_path, object_xml("cat", BOX, 1), object_xml("dog", BOX, 0))
    training, evaluation = read(folder, keep_difficult=False), read(folder)
    assert training[0][1]["labels"].tolist() == [2]
    assert training[0][1]["difficult"].tolist() == [False]
    assert evaluation[0][1]["labels"].tolist() == [1, 2]
    assert training.describe() == {
        "images": 1,
        "objects": 1,
        "difficult": 1,
        "classes": {"cat": 0, "dog": 1},
    }
    assert evaluation.describe()["objects"] == 2


def test_image_without_objects_has_empty_tensors(tmp_path):
    target = read(one_image(tmp_path), transforms=train_transform(1.0))[0][1]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == target["difficult"].shape == (0,)
    assert target["labels"].dtype == torch.int64


def test_target_equals_that_of_the_item_without_reading_the_image(tmp_path):
    folder = one_image(tmp_path, object_xml())
    dataset = read(folder)
    expected = dataset[0][1]
    (folder / "JPEGImages" / "a.png").unlink()
    found = dataset.target(0)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_changing_an_item_does_not_change_the_data_set(tmp_path):
    dataset = read(one_image(tmp_path, object_xml()))
    dataset[0][1]["boxes"].mul_(2)
    assert dataset[0][1]["boxes"].tolist() == [[10, 20, 30, 40]]


def test_merged_folders_keep_their_order_and_have_unique_ids(tmp_path):
    first = write_voc(tmp_path / "VOC2007", "trainval", {"000005": (SIZE, [object_xml("cat")])})
    second = write_voc(tmp_path / "VOC2012", "trainval", {"000005": (SIZE, [object_xml("dog")])})
    dataset = VOCDetection([VOCSource(first, "trainval"), VOCSource(second, "trainval")], ("cat", "dog"))
    assert [record.image_id for record in dataset.records] == ["VOC2007/000005", "VOC2012/000005"]
    assert [dataset[index][1]["image_id"].item() for index in range(2)] == [0, 1]
    assert [dataset[index][1]["labels"].item() for index in range(2)] == [1, 2]


def test_merged_folders_of_one_name_have_unique_ids(tmp_path):
    folders = [write_voc(tmp_path / part / "set", "train", {"a": (SIZE, [])}) for part in ("one", "two")]
    dataset = VOCDetection([VOCSource(folder, "train") for folder in folders], ("cat",))
    assert len({record.image_id for record in dataset.records}) == 2


def test_voc_has_twenty_classes_in_alphabetical_order():
    assert len(set(VOC_CLASSES)) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_index_out_of_range_ends_iteration(tmp_path):
    dataset = read(one_image(tmp_path))
    assert len(list(dataset)) == 1
    assert dataset[-1][1]["image_id"].item() == 0


def test_data_set_can_be_sent_to_a_spawned_worker(tmp_path):
    dataset = pickle.loads(
        pickle.dumps(read(one_image(tmp_path, object_xml()), transforms=train_transform()))
    )
    assert dataset[0][1]["boxes"].shape == (1, 4)


# Transforms


def test_flip_mirrors_image_and_boxes_exactly(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(11, 21, 30, 40)), object_xml(box=(1, 1, 64, 48)))
    plain, _ = read(folder)[0]
    image, target = read(folder, transforms=train_transform(1.0))[0]
    assert torch.equal(image, plain.flip(-1))
    assert target["boxes"].tolist() == [[64 - 30, 20, 64 - 10, 40], [0, 0, 64, 48]]
    assert type(image) is torch.Tensor
    assert {type(value) for value in target.values()} == {torch.Tensor}


def test_image_of_another_size_than_annotated_is_refused(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(11, 21, 30, 40)))
    set_annotation(folder, annotation_xml([object_xml(box=(11, 21, 30, 40))], size=(48, 64)))
    message = (
        r"a\.png: has 64 x 48 pixels, its annotation says 48 x 64: .* another picture, perhaps a rotated one"
    )
    with pytest.raises(LSHFMError, match=message):
        read(folder)[0]


def flips(dataset, draws):
    plain = decode_image(dataset.records[0].image_path)
    return [not torch.equal(dataset[draw][0], plain) for draw in draws]


def test_transforms_depend_on_seed_epoch_and_index_and_not_on_the_order(tmp_path):
    same_image = {f"{number:02d}": (SIZE, []) for number in range(40)}
    folder = write_voc(tmp_path / "set", "train", same_image)
    for number in range(40):
        write_image(folder / "JPEGImages" / f"{number:02d}.png", SIZE)
    dataset = read(folder, transforms=train_transform(), seed=1)
    draws = [Draw(index, epoch) for epoch in range(2) for index in range(40)]
    expected = flips(dataset, draws)
    torch.manual_seed(123)
    assert flips(dataset, draws[::-1])[::-1] == expected
    assert expected[:40] != expected[40:]
    assert flips(read(folder, transforms=train_transform(), seed=2), draws) != expected
    # 80 fair coins: outside 20..60 with probability 1e-5.
    assert 20 < sum(expected) < 60


def test_transforms_leave_the_global_random_state_alone(tmp_path):
    dataset = read(one_image(tmp_path), transforms=train_transform())
    before = torch.get_rng_state()
    dataset[Draw(0, 3)]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("probability", [-0.1, 1.5, "often"])
def test_flip_probability_out_of_range_is_refused(probability):
    with pytest.raises(LSHFMError, match=r"flip_probability.*between 0 and 1"):
        train_transform(probability)


def test_custom_transforms_get_boxes_that_follow_the_image(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(11, 21, 30, 40)))
    image, target = read(folder, transforms=v2.Resize((96, 128)))[0]
    assert image.shape == (3, 96, 128)
    assert target["boxes"].tolist() == [[20, 40, 60, 80]]


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8 no jpeg", "cut"])
def test_broken_image_is_named(tmp_path, content):
    folder = write_voc(tmp_path / "set", "train", {"a": (SIZE, [])}, suffix=".jpg")
    path = folder / "JPEGImages" / "a.jpg"
    dataset = read(folder)
    path.write_bytes(path.read_bytes()[:700] if content == "cut" else content)
    with pytest.raises(LSHFMError, match=r"a\.jpg: .*Replace the file\."):
        dataset[0]


# Bad data: each message names the file and says what is wrong.


def test_an_image_that_is_listed_twice_is_read_once(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "train", ["a", "a"])
    log = FaultLog()
    assert len(VOCDetection([VOCSource(folder, "train")], log=log)) == 1
    (fault,) = log.faults
    assert fault.kind == "entry-repeated"
    assert "train.txt:2: 'a' is listed twice" in str(fault)


def test_unknown_class_suggests_the_closest(tmp_path):
    folder = one_image(tmp_path, object_xml("catt"))
    text = error_text(folder)
    assert "'catt'" in text
    assert "Did you mean 'cat'?" in text
    assert "a.xml" in text
    set_annotation(folder, annotation_xml([object_xml("submarine")]))
    assert "The classes are: cat, dog" in error_text(folder)


@pytest.mark.parametrize("is_link", [True, False])
def test_lines_that_lead_to_one_file_are_an_error_that_names_them(tmp_path, is_link):
    folder = write_voc(tmp_path / "set", "train", {name: (SIZE, [object_xml()]) for name in "abc"})
    (folder / "JPEGImages" / "b.png").unlink()
    if is_link:
        (folder / "JPEGImages" / "b.png").symlink_to("a.png")
    else:
        text = (folder / "Annotations" / "b.xml").read_text()
        (folder / "Annotations" / "b.xml").write_text(text.replace("b.png", "a.png"))
    with pytest.raises(LSHFMError, match=r"a\.png: is the image of several lines, set/a and set/b"):
        read(folder)
    log = FaultLog("skip")
    assert [record.image_id for record in read(folder, log=log).records] == ["set/c"]
    assert [fault.kind for fault in log.errors] == ["file-repeated"] * 2
