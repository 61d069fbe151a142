import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2
from voc_files import BOX, annotation_xml, object_xml, write_image, write_split, write_voc

from lshfm_pl.data.sampler import Draw
from lshfm_pl.data.transforms import train_transform
from lshfm_pl.data.voc import (
    VOC_CLASSES,
    VOCDetection,
    VOCSource,
    decode_image,
    download_voc,
    read_class_names,
    resolve_source,
)
from lshfm_pl.errors import LSHFMError

SIZE = (64, 48)


def one_image(tmp_path, *objects, size=SIZE):
    return write_voc(tmp_path / "set", "train", {"a": (size, list(objects))})


def read(folder, split="train", **settings):
    return VOCDetection([VOCSource(folder, split)], ("cat", "dog"), **settings)


def error_text(folder, **settings):
    with pytest.raises(LSHFMError) as caught:
        read(folder, **settings)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    return text


def set_annotation(folder, text, image_id="a"):
    (folder / "Annotations" / f"{image_id}.xml").write_text(text)


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


def test_float_coordinates_are_kept(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(1.5, 2.25, 30.75, 40)))
    assert read(folder)[0][1]["boxes"].tolist() == [[0.5, 1.25, 30.75, 40.0]]


def test_a_box_of_one_pixel_has_area(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(5, 6, 5, 6)))
    assert read(folder)[0][1]["boxes"].tolist() == [[4, 5, 5, 6]]


def test_boxes_of_parts_are_not_objects(tmp_path):
    part = object_xml("cat", BOX).replace(
        "</object>",
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        "</object>",
    )
    assert read(one_image(tmp_path, part))[0][1]["boxes"].tolist() == [[10, 20, 30, 40]]


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


@pytest.mark.parametrize(
    "size_element", ["", "<size><width>0</width><height>0</height></size>", "<size><width>x</width></size>"]
)
def test_size_comes_from_the_image_when_the_annotation_lacks_it(tmp_path, size_element):
    folder = one_image(tmp_path)
    set_annotation(folder, f"<annotation>{size_element}</annotation>")
    record = read(folder).records[0]
    assert (record.width, record.height) == SIZE
    assert read(folder).aspect_ratios == [64 / 48]


def test_second_column_blank_lines_and_byte_order_mark_of_a_split_are_skipped(tmp_path):
    folder = write_voc(tmp_path / "set", "train", {"000005": (SIZE, []), "000007": (SIZE, [])})
    path = write_split(folder, "cat_train", [])
    path.write_bytes("\ufeff000005 -1\r\n\r\n000007  1\r\n".encode())
    assert [record.image_id for record in read(folder, "cat_train").records] == ["set/000005", "set/000007"]


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.JPG", "a.PNG"])
def test_common_image_extensions_are_found(tmp_path, name):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").unlink()
    write_image(folder / "JPEGImages" / name, SIZE)
    assert read(folder).records[0].image_path.name == name


def test_jpg_wins_over_png_of_the_same_id(tmp_path):
    folder = one_image(tmp_path)
    write_image(folder / "JPEGImages" / "a.jpg", SIZE)
    assert read(folder).records[0].image_path.name == "a.jpg"


def test_image_is_found_by_the_filename_of_its_annotation(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").rename(folder / "JPEGImages" / "photo.png")
    set_annotation(folder, annotation_xml(filename="photo.png"))
    assert read(folder).records[0].image_path.name == "photo.png"


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


def test_class_names_are_read_sorted_from_all_annotations(tmp_path):
    folder = write_voc(
        tmp_path / "set",
        "train",
        {"a": (SIZE, [object_xml("zebra"), object_xml("ant")]), "b": (SIZE, [object_xml("cow", BOX, 1)])},
    )
    sources = [VOCSource(folder, "train")]
    assert read_class_names(sources) == ("ant", "cow", "zebra")
    assert VOCDetection(sources).class_names == ("ant", "cow", "zebra")
    assert VOCDetection(sources)[0][1]["labels"].tolist() == [3, 1]


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


# Random transforms


def test_flip_mirrors_image_and_boxes_exactly(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(11, 21, 30, 40)), object_xml(box=(1, 1, 64, 48)))
    plain, _ = read(folder)[0]
    image, target = read(folder, transforms=train_transform(1.0))[0]
    assert torch.equal(image, plain.flip(-1))
    assert target["boxes"].tolist() == [[64 - 30, 20, 64 - 10, 40], [0, 0, 64, 48]]
    assert type(image) is torch.Tensor
    assert {type(value) for value in target.values()} == {torch.Tensor}


def test_flip_uses_the_width_of_the_image_where_the_annotation_is_wrong(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(11, 21, 30, 40)))
    set_annotation(folder, annotation_xml([object_xml(box=(11, 21, 30, 40))], size=(48, 64)))
    assert read(folder, transforms=train_transform(1.0))[0][1]["boxes"].tolist() == [[34, 20, 54, 40]]


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


# Images


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_decoded_as_pillow_does(tmp_path, mode):
    path = tmp_path / "a.jpg"
    pixels = np.random.RandomState(0).randint(0, 256, (24, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=90)
    found = decode_image(path)
    assert found.shape == (3, 24, 36)
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    assert (found.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1"])
def test_png_of_any_mode_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(tmp_path / "a.png")
    image = decode_image(tmp_path / "a.png")
    assert image.shape == (3, 6, 8)
    assert image.dtype == torch.uint8
    assert image.unique().tolist() == [255]


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8 no jpeg", "cut"])
def test_broken_image_is_named(tmp_path, content):
    folder = write_voc(tmp_path / "set", "train", {"a": (SIZE, [])}, suffix=".jpg")
    path = folder / "JPEGImages" / "a.jpg"
    dataset = read(folder)
    path.write_bytes(path.read_bytes()[:700] if content == "cut" else content)
    with pytest.raises(LSHFMError, match=r"Can't read the image .*a\.jpg"):
        dataset[0]


# Bad data: each message names the file and says what is wrong.


def test_missing_voc_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(LSHFMError, match=r"(?s)VOC2007.*not found.*data\.root.*data\.download=true"):
        resolve_source(tmp_path, "VOC2007/trainval")
    with pytest.raises(LSHFMError, match=r"(?s)nowhere not found.*data\.root"):
        resolve_source(tmp_path / "nowhere", "train")


def test_folder_of_a_split_is_found_below_root_or_vocdevkit(tmp_path):
    below = write_voc(tmp_path / "VOCdevkit" / "VOC2007", "trainval", {"a": (SIZE, [])})
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        source = resolve_source(root, "VOC2007/trainval")
        assert source.folder.samefile(below)
        assert source.split == "trainval"
    assert resolve_source(below, "trainval") == VOCSource(below, "trainval")


def test_missing_split_lists_those_that_exist(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "val", ["a"])
    with pytest.raises(LSHFMError, match=r"test\.txt; its folder has: train, val"):
        read(folder, "test")


def test_missing_folder_of_images_is_named(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages").rename(folder / "images")
    assert "JPEGImages" in error_text(folder)


def test_empty_split_is_refused(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "train", ["", "  "])
    assert "train.txt is empty" in error_text(folder)


def test_missing_image_is_found_before_the_first_epoch(tmp_path):
    folder = one_image(tmp_path)
    (folder / "JPEGImages" / "a.png").unlink()
    text = error_text(folder)
    assert "No image 'a'" in text
    assert "train.txt" in text


def test_missing_annotation_is_named(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "train", ["a", "b"])
    assert str(folder / "Annotations" / "b.xml") in error_text(folder)


def test_image_listed_twice_is_refused(tmp_path):
    folder = one_image(tmp_path)
    write_split(folder, "train", ["a", "a"])
    assert "set/a is listed twice" in error_text(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><object></annotation>", "mismatched tag"),
        ("", "no element found"),
        ("<html></html>", "found <html>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "encoding"),
    ],
)
def test_broken_xml_is_named(tmp_path, content, reason):
    folder = one_image(tmp_path)
    set_annotation(folder, content)
    text = error_text(folder)
    assert str(folder / "Annotations" / "a.xml") in text
    assert reason in text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_type_and_entities_are_refused_unread(tmp_path, encoding):
    folder = one_image(tmp_path)
    bomb = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE annotation [<!ENTITY a "cat">]>'
        f"<annotation>{object_xml('&a;')}</annotation>"
    )
    (folder / "Annotations" / "a.xml").write_bytes(bomb.encode(encoding))
    text = error_text(folder)
    assert "<!DOCTYPE annotation" in text
    assert "a.xml" in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("<name>cat</name>", ""), "No <name> in object 1"),
        (("<name>cat</name>", "<name> </name>"), "No <name> in object 1"),
        (("bndbox", "box"), "No <bndbox> for object 1"),
        (("<xmin>11</xmin>", ""), "<xmin> of object 1"),
        (("<xmin>11</xmin>", "<xmin>left</xmin>"), "<xmin> of object 1"),
        (("<xmax>30</xmax>", "<xmax>nan</xmax>"), "'nan': expected a number"),
        (("<xmax>30</xmax>", "<xmax>inf</xmax>"), "'inf': expected a number"),
        (("<xmax>30</xmax>", "<xmax>10</xmax>"), "has no area"),
        (("<ymax>40</ymax>", "<ymax>5</ymax>"), "has no area"),
        (("<difficult>0</difficult>", "<difficult>maybe</difficult>"), "'maybe': expected 0 or 1"),
    ],
)
def test_bad_object_is_named(tmp_path, change, reason):
    folder = one_image(tmp_path)
    set_annotation(folder, annotation_xml([object_xml().replace(*change)]))
    text = error_text(folder)
    assert reason in text
    assert str(folder / "Annotations" / "a.xml") in text


def test_unknown_class_suggests_the_closest(tmp_path):
    folder = one_image(tmp_path, object_xml("catt"))
    text = error_text(folder)
    assert "'catt'" in text
    assert "Did you mean 'cat'?" in text
    assert "a.xml" in text
    set_annotation(folder, annotation_xml([object_xml("submarine")]))
    assert "The classes are: cat, dog" in error_text(folder)


# Download


class FakeDownload:
    """Stands in for torchvision.datasets.VOCDetection."""

    def __init__(self, error=None):
        self.error = error
        self.calls = []

    def __call__(self, root, year, image_set, download):
        assert download
        self.calls.append((root, year, image_set))
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error", [URLError("name resolution"), RuntimeError("File not found or corrupted."), EOFError("cut")]
)
def test_failed_download_is_one_clear_error(tmp_path, monkeypatch, error):
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", FakeDownload(error))
    with pytest.raises(LSHFMError) as caught:
        download_voc(tmp_path, ["VOC2007/test"])
    text = str(caught.value)
    assert "Downloading VOC2007 test failed (network or mirror)" in text
    assert "VOCtest_06-Nov-2007.tar (md5 b6e924de25625d8de591ea690078ad9f) by hand" in text
    assert str(tmp_path / "VOCdevkit" / "VOC2007") in text


def test_download_fetches_each_archive_once_next_to_vocdevkit(tmp_path, monkeypatch):
    fake = FakeDownload()
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", fake)
    splits = ["VOC2007/train", "VOC2007/val", "VOC2012/trainval", "VOC2007/test"]
    download_voc(tmp_path / "VOCdevkit", splits)
    expected = [("2007", "test"), ("2007", "trainval"), ("2012", "trainval")]
    assert fake.calls == [(str(tmp_path), *archive) for archive in expected]


def test_download_leaves_complete_data_alone_and_repairs_the_rest(tmp_path, monkeypatch):
    fake = FakeDownload()
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", fake)
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    write_voc(folder, "test", {"a": (SIZE, []), "b": (SIZE, [])}, suffix=".jpg")
    download_voc(tmp_path, ["VOC2007/test"])
    assert fake.calls == []
    (folder / "JPEGImages" / "b.jpg").unlink()
    download_voc(tmp_path, ["VOC2007/test"])
    assert len(fake.calls) == 1


def test_download_of_other_data_is_refused(tmp_path):
    with pytest.raises(LSHFMError, match=r"can't fetch 'mine/train'.*VOC2007/trainval"):
        download_voc(tmp_path, ["mine/train"])


def test_custom_transforms_get_boxes_that_follow_the_image(tmp_path):
    folder = one_image(tmp_path, object_xml(box=(11, 21, 30, 40)))
    image, target = read(folder, transforms=v2.Resize((96, 128)))[0]
    assert image.shape == (3, 96, 128)
    assert target["boxes"].tolist() == [[20, 40, 60, 80]]
