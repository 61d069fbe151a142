import json
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from lshfm_pl.data.shapes import scenes as shapes
from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES, ShapesSpec, generate_shapes, shapes_folder
from lshfm_pl.data.voc.dataset import VOCDetection
from lshfm_pl.data.voc.layout import VOCSource
from lshfm_pl.errors import LSHFMError

SMALL = ShapesSpec(num_train=60, num_val=3, num_test=4)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), SMALL)


def read(folder, split="train"):
    return VOCDetection([VOCSource(folder, split)], SHAPE_CLASSES)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_equal_specs_give_equal_files_and_other_seeds_do_not(tmp_path, small_folder):
    again = contents(generate_shapes(tmp_path, SMALL))
    assert again == contents(small_folder)
    other = contents(generate_shapes(tmp_path, ShapesSpec(num_train=60, num_val=3, num_test=4, seed=1)))
    assert other["Annotations/train_000000.xml"] != again["Annotations/train_000000.xml"]


def test_more_scenes_leave_the_first_ones_as_they_were(tmp_path, small_folder):
    few = contents(generate_shapes(tmp_path, ShapesSpec(num_train=5, num_val=1, num_test=1)))
    many = contents(small_folder)
    assert all(many[name] == data for name, data in few.items() if name.endswith((".jpg", ".xml")))


def test_splits_are_read_back_with_the_numbers_asked_for(small_folder):
    assert [len(read(small_folder, split)) for split in ("train", "val", "test")] == [60, 3, 4]
    image, target = read(small_folder)[0]
    assert image.shape == (3, 128, 128)
    assert image.dtype == torch.uint8
    assert len(target["labels"]) >= 1


def test_all_kinds_and_some_but_few_difficult_objects_occur(small_folder):
    description = read(small_folder).describe()
    assert min(description["classes"].values()) >= 10
    assert 0.02 < description["difficult"] / description["objects"] < 0.25
    numbers = {len(record.labels) for record in read(small_folder).records}
    assert numbers == {1, 2, 3, 4, 5}


def test_boxes_are_inside_the_image_and_of_sensible_size(small_folder):
    boxes = np.concatenate([record.boxes for record in read(small_folder).records])
    assert boxes.min() >= 0
    assert boxes.max() <= 128
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 2
    assert sides.max() <= 61
    assert sides.max() > 50


def test_radii_scale_with_the_image(tmp_path):
    folder = generate_shapes(tmp_path, ShapesSpec(image_size=256, num_train=20, num_val=1, num_test=1))
    dataset = read(folder)
    assert dataset[0][0].shape == (3, 256, 256)
    sides = np.concatenate([record.boxes[:, 2:] - record.boxes[:, :2] for record in dataset.records])
    assert 80 < sides.max() <= 121


class ScriptedRandom(np.random.RandomState):
    """A random generator that always asks for five shapes and adds no noise."""

    def randint(self, low, high=None, **kwargs):
        return 5 if (low, high) == (1, 6) else super().randint(low, high, **kwargs)

    def standard_normal(self, size=None):
        return np.zeros(size)


@pytest.mark.parametrize("name", SHAPE_CLASSES)
def test_boxes_are_tight_around_what_is_drawn(name, monkeypatch):
    """Draws shapes of one kind on black, each in its own grey, and looks for the pixels of that grey."""
    monkeypatch.setattr(shapes, "SHAPE_CLASSES", (name,))
    monkeypatch.setattr(shapes, "_background", lambda random, size: np.zeros((size, size, 3)))
    monkeypatch.setattr(shapes, "_line", lambda random, size: np.zeros((size, size), dtype=bool))
    for seed in range(10):
        greys = iter([100, 130, 160, 190, 220])
        monkeypatch.setattr(shapes, "_colour", lambda *_, greys=greys: np.full(3, next(greys)))
        pixels, objects = shapes._draw_scene(ScriptedRandom(seed), 128)
        assert 1 <= len(objects) <= 5
        for grey, item in zip([100, 130, 160, 190, 220], objects, strict=False):
            rows, columns = np.nonzero(pixels[:, :, 0] == grey)
            assert item.name == name
            assert item.box == (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)


def scene_of_masks(monkeypatch, masks, faint_share):
    remaining = iter(masks)
    monkeypatch.setattr(shapes, "_place", lambda *_: next(remaining, None))
    monkeypatch.setattr(shapes, "_FAINT_SHARE", faint_share)
    return shapes._draw_scene(ScriptedRandom(0), 64)[1]


@pytest.mark.parametrize(("visible_share", "difficult"), [(0.5, True), (0.6, False), (1.0, False)])
def test_strongly_covered_shapes_are_difficult_and_boxed_where_visible(monkeypatch, visible_share, difficult):
    covered, cover = np.zeros((2, 64, 64), dtype=bool)
    covered[10:30, 10:30] = True
    width = round(20 * visible_share)
    cover[10:30, 10 + width : 40] = True
    first, second = scene_of_masks(monkeypatch, [covered, cover], faint_share=0.0)
    assert (first.difficult, second.difficult) == (difficult, False)
    assert first.box == (11, 11, 10 + width, 30)


def test_faint_shapes_are_difficult(monkeypatch):
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:30, 10:30] = True
    assert [item.difficult for item in scene_of_masks(monkeypatch, [mask], faint_share=1.0)] == [True]


def test_existing_scenes_are_used_again(tmp_path):
    spec = ShapesSpec(num_train=2, num_val=1, num_test=1)
    folder = generate_shapes(tmp_path, spec)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert generate_shapes(tmp_path, spec) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_other_parameters_have_another_folder(tmp_path):
    folders = {
        shapes_folder(tmp_path, ShapesSpec(**change))
        for change in (
            {},
            {"seed": 1},
            {"image_size": 96},
            {"num_train": 601},
            {"num_val": 5},
            {"num_test": 5},
        )
    }
    assert len(folders) == 6


@pytest.mark.parametrize("seed", [2**32, 2**70])
def test_a_seed_that_numpy_does_not_take_is_refused_in_one_line(tmp_path, seed):
    with pytest.raises(LSHFMError, match=rf"at most 4294967295 for seed, found {seed}\.$") as caught:
        generate_shapes(tmp_path, ShapesSpec(num_train=1, num_val=1, num_test=1, seed=seed))
    assert len(str(caught.value).splitlines()) == 1


def test_the_largest_seed_draws_scenes(tmp_path):
    spec = ShapesSpec(num_train=1, num_val=1, num_test=1, seed=2**32 - 1)
    assert len(read(generate_shapes(tmp_path, spec))) == 1


def test_folder_with_another_stamp_is_refused(tmp_path):
    spec = ShapesSpec(num_train=2, num_val=1, num_test=1)
    folder = generate_shapes(tmp_path, spec)
    stamp = folder / "shapes.json"
    assert json.loads(stamp.read_text())["num_train"] == 2
    stamp.write_text(json.dumps({"num_train": 3}))
    with pytest.raises(LSHFMError, match=r"(?s)shapes\.json says.*Delete that folder"):
        generate_shapes(tmp_path, spec)
    stamp.unlink()
    with pytest.raises(LSHFMError, match=r"shapes\.json says None"):
        generate_shapes(tmp_path, spec)


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    spec = ShapesSpec(num_train=3, num_val=1, num_test=1)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_annotation_text", stop)
        with pytest.raises(KeyboardInterrupt):
            generate_shapes(tmp_path, spec)
    assert list(tmp_path.iterdir()) == []
    assert len(read(generate_shapes(tmp_path, spec))) == 3


def test_processes_that_start_at_once_agree(tmp_path):
    spec = ShapesSpec(num_train=20, num_val=1, num_test=1)
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        folders = pool.starmap(generate_shapes, [(tmp_path, spec)] * 3, chunksize=1)
    assert set(folders) == {shapes_folder(tmp_path, spec)}
    assert len(read(folders[0])) == 20
    assert [path.name for path in tmp_path.iterdir()] == [folders[0].name]


def test_loser_of_the_race_takes_the_winners_folder(tmp_path, monkeypatch):
    spec = ShapesSpec(num_train=2, num_val=1, num_test=1)
    write_scenes = shapes._write_scenes

    def write_while_another_finishes(folder, spec):
        write_scenes(folder, spec)
        if not shapes_folder(tmp_path, spec).exists():
            write_scenes(shapes_folder(tmp_path, spec), spec)

    monkeypatch.setattr(shapes, "_write_scenes", write_while_another_finishes)
    folder = generate_shapes(tmp_path, spec)
    assert len(read(folder)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_unwritable_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LSHFMError, match=r"Can't write the shapes data set to .*file.*data\.root"):
        generate_shapes(tmp_path / "file", SMALL)


@pytest.mark.parametrize(
    "change", [{"num_train": 0}, {"image_size": 10}, {"seed": -1}, {"num_val": 1.5}, {"num_test": "many"}]
)
def test_impossible_numbers_are_refused(change):
    with pytest.raises(LSHFMError, match=f"{next(iter(change))}, found"):
        ShapesSpec(**change)


def test_images_are_jpeg_of_high_quality(small_folder):
    with Image.open(small_folder / "JPEGImages" / "train_000000.jpg") as image:
        assert image.format == "JPEG"
        assert image.mode == "RGB"
        assert np.mean(image.quantization[0]) < 10
