"""Which images and checkpoints are drawn, and what the pictures show."""

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from small_detectors import ALL_LABELS, CLASS_NAMES, STUDENTS, TEACHER_OF, small_detector
from torchvision.transforms.v2.functional import pil_to_tensor
from voc_files import object_xml, write_voc

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors import detector_checkpoint
from lshfm_pl.drawing.agreement import agreement_picture
from lshfm_pl.drawing.colors import class_color
from lshfm_pl.errors import LSHFMError
from lshfm_pl.inference.initial import initial_detector
from lshfm_pl.mimic.agreement import AgreementMap
from lshfm_pl.training.build import build_module
from lshfm_pl.visualize import visualize

SIZE = (300, 260)
DATA = {
    "_target_": "lshfm_pl.data.voc.datamodule.VOCDataModule",
    "train_split": "train",
    "val_split": "test",
    "class_names": list(CLASS_NAMES),
    "seed": 7,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of six images; the second has a difficult object."""
    folder = tmp_path_factory.mktemp("set")
    images = {
        f"00000{number}": (SIZE, [object_xml("square", (41, 61, 160, 200), difficult=int(number == 1))])
        for number in range(6)
    }
    write_voc(folder, "test", images)
    return write_voc(folder, "train", {"000009": (SIZE, [object_xml("star", (41, 61, 160, 200))])})


@pytest.fixture(scope="module")
def checkpoints(folder, tmp_path_factory):
    """Title → a run's file: a RetinaNet student, its teacher, and a student with a hash of its own."""
    files = {}
    for title, name, seed in (("teacher", TEACHER_OF[STUDENTS[1]], 1), ("student", STUDENTS[1], 2),
                              ("hashed", STUDENTS[1], 3)):  # fmt: skip
        path = tmp_path_factory.mktemp("runs") / title / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        content = {**detector_checkpoint(small_detector(name, seed)), "data": {**DATA, "root": str(folder)}}
        if title == "hashed":
            content["state_dict"] |= {"mimic.weight": torch.randn(8, 64 * 9), "mimic.bias": torch.zeros(8)}
            state, data = content.pop("state_dict"), content.pop("data")
            names = {key: key if key.startswith("mimic.") else f"detector.{key}" for key in state}
            content = {
                "detector": content,
                "data": data,
                "state_dict": {names[key]: value for key, value in state.items()},
            }
        torch.save(content, path)
        files[title] = str(path)
    return files


def run(output_dir, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("visualize", overrides=[f"output_dir='{output_dir}'", "device=cpu", *overrides])
    return visualize(config)


def of_data(folder):
    return ["data=voc_folder", f"data.root='{folder}'", "data.val_split=test",
            f"data.class_names=[{','.join(CLASS_NAMES)}]"]  # fmt: skip


def read(path):
    return pil_to_tensor(Image.open(path))


def in_color(picture, label):
    return (picture == torch.tensor(class_color(label), dtype=torch.uint8)[:, None, None]).all(dim=0)


def test_ground_truth_of_an_image_has_its_box_dashed_if_difficult(folder, tmp_path):
    paths = [run(tmp_path, *of_data(folder), f"index={index}")[0] for index in (0, 1)]
    assert [path.name for path in paths] == [
        f"ground_truth_test_{folder.name}-00000{index}.png" for index in (0, 1)
    ]
    # Below the title (28 pixels) and the caption (18), right of the margin (6).
    edges = [in_color(read(path), 2)[46 + 200, 6 + 40 : 6 + 160] for path in paths]
    assert edges[0].all()
    assert 0.3 < edges[1].float().mean() < 0.8


def test_sheet_shows_training_pictures_as_they_are_in_a_batch(folder, tmp_path):
    def sheet(*overrides, to="a"):
        (path,) = run(tmp_path / to, *of_data(folder), "augment=strong", "seed=2", *overrides)
        return path

    first = sheet()
    assert first.name == f"augmented_train_{folder.name}-000009.png"
    assert first.read_bytes() == sheet(to="b").read_bytes() != sheet("epoch=1", to="c").read_bytes()
    with pytest.raises(LSHFMError, match="augment: only training pictures are augmented: give split=train"):
        sheet("split=test")


def test_images_are_chosen_by_position_name_or_seed(folder, tmp_path):
    def names(*overrides):
        return [
            path.name.split("-")[-1] for path in run(tmp_path, *of_data(folder), "grid=false", *overrides)
        ]

    assert names("index=[4,1]") == ["000004.png", "000001.png"]
    assert names("image_id=000003") == ["000003.png"]
    assert names(f"image_id=[{folder.name}/000005,'000000']") == ["000005.png", "000000.png"]
    assert names("split=train", "index=-1") == ["000009.png"]
    one, two, again = (names("random=3", f"seed={seed}") for seed in (0, 1, 0))
    assert one == again != two
    assert len(names("random=99")) == 6


def test_a_grid_holds_all_chosen_images(folder, tmp_path):
    (path,) = run(tmp_path, *of_data(folder), "index=[0,2,3]")
    assert path.name == f"ground_truth_test_{folder.name}-000000_and_2_more.png"
    assert read(path).shape[2] == 2 * (300 + 6) + 6


def test_checkpoints_stand_side_by_side_with_the_data_they_were_trained_with(checkpoints, tmp_path):
    listed = ",".join(f"'{checkpoints[title]}'" for title in ("teacher", "student"))
    (path,) = run(tmp_path, f"checkpoints=[{listed}]", "index=0", "score_threshold=0.9")
    assert path.name.startswith("detections_test_")
    assert read(path).shape[2] == 3 * (300 + 6) + 6
    (alone,) = run(tmp_path, f"checkpoint='{checkpoints['teacher']}'", "index=0")
    assert read(alone).shape[2] == 2 * (300 + 6) + 6


def test_the_background_that_a_retinanet_scores_is_not_drawn(folder, tmp_path):
    detector = small_detector(STUDENTS[1], **ALL_LABELS)
    torch.save(
        {**detector_checkpoint(detector), "data": {**DATA, "root": str(folder)}}, tmp_path / "low.ckpt"
    )
    (path,) = run(tmp_path, f"checkpoint='{tmp_path}/low.ckpt'", "index=0", "score_threshold=0")
    assert read(path).shape[2] == 2 * (300 + 6) + 6


def test_errors_mark_what_an_untrained_detector_misses(checkpoints, tmp_path):
    arguments = (f"checkpoint='{checkpoints['teacher']}'", "index=0", "score_threshold=0.9")
    plain, marked = (read(run(tmp_path, *arguments, f"errors={errors}")[0]) for errors in ("false", "true"))
    bottom = (slice(None), 46 + 200, slice(312 + 40, 312 + 160))
    dash, black = (in_color(marked, 2)[bottom[1:]], (marked[bottom] == 0).all(dim=0))
    assert 0.2 < dash.float().mean() < 0.8
    assert (dash | black).all()
    assert not in_color(plain, 2)[bottom[1:]].any()


def test_agreement_is_mapped_before_and_after_training(checkpoints, tmp_path, capsys):
    named = ", ".join(f"{title}: '{file}'" for title, file in checkpoints.items())
    paths = run(tmp_path, f"checkpoints={{{named}}}", "index=0", "agreement=true")
    assert [path.name.rpartition("_")[2] for path in paths[1:]] == ["student.png", "hashed.png"]
    # The image, and cosine and bits of the initial and the trained student.
    assert read(paths[1]).shape[2] == 4 * (160 + 6) + 6
    told = capsys.readouterr().out
    assert "student: bits by 1024 random hashes, seed 0" in told
    assert f"hashed: bits by the hash that {checkpoints['hashed']} was trained with" in told
    (_, alone, _) = run(tmp_path, f"checkpoints={{{named}}}", "index=0", "agreement=true", "before=false")
    assert read(alone).shape[2] == 2 * (160 + 6) + 6


def test_initial_weights_are_those_that_training_starts_with(checkpoints, tmp_path):
    overrides = ["model=retinanet_resnet10fpn_tiny", "data=shapes", f"data.root={tmp_path}", "data.num_train=2",
                 "data.num_val=1", "seed=7", f"output_dir={tmp_path}"]  # fmt: skip
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides=overrides)
    pl.seed_everything(config.seed, verbose=False)
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    expected = build_module(config, datamodule).detector
    torch.save({"data": {"seed": 7}}, tmp_path / "run.ckpt")
    state = torch.get_rng_state()
    fresh = initial_detector(expected, str(tmp_path / "run.ckpt"), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in expected.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    torch.save({}, tmp_path / "unknown.ckpt")
    other = initial_detector(expected, str(tmp_path / "unknown.ckpt"), seed=0)
    assert not torch.equal(
        next(iter(other.state_dict().values())), next(iter(expected.state_dict().values()))
    )


def test_picture_of_before_training_is_refused_where_a_whole_detector_was_the_start(tmp_path):
    torch.save({"detector": {"started_from": "COCO_V1"}}, tmp_path / "run.ckpt")
    with pytest.raises(LSHFMError, match=r"run\.ckpt started from the detector COCO_V1, .* before=false"):
        initial_detector(small_detector("retinanet_resnet10fpn_tiny"), str(tmp_path / "run.ckpt"), seed=0)


def test_maps_are_coloured_from_chance_to_one():
    image = torch.zeros(3, 320, 320, dtype=torch.uint8)
    corners = torch.tensor([[-1.0, 0.0], [0.5, 1.0]])
    maps = {"student": [AgreementMap("a", corners, (corners + 1) / 2), AgreementMap("b", None, None)]}
    picture = agreement_picture(image, maps)
    # The image, twice as large as a map, below its title; the maps below theirs, and the legend in lines.
    top = 28 + 320 + 6
    assert picture.shape[1] == top + 28 + 18 + 160 + 6 + 5 * 28
    assert picture.shape[2] == 2 * (160 + 6) + 6
    cosine, bits = (picture[:, top + 46 : top + 206, left : left + 160] for left in (6, 172))
    low, high = torch.tensor([68, 1, 84]), torch.tensor([253, 231, 36])  # the ends of viridis
    for shown in (cosine, bits):
        assert torch.equal(shown[:, 0, 0].long(), low)
        assert torch.equal(shown[:, 0, -1].long(), low)
        assert torch.equal(shown[:, -1, -1].long(), high)
        assert torch.equal(shown[:, -1, 0], shown[:, 81, 78])
    assert torch.equal(cosine, bits)


def test_maps_show_the_image_once_and_no_column_without_any_map():
    image = torch.zeros(3, 30, 40, dtype=torch.uint8)
    grids = [AgreementMap(f"grid {number}", torch.ones(2, 2), None) for number in range(10)]
    alone = agreement_picture(image, {"before training": grids, "LSHL2 student": grids})
    assert alone.shape[2] == 2 * (160 + 6) + 6
    assert alone.shape[1] < 10 * (120 + 6 + 18) + 2 * 120 + 250
    with pytest.raises(LSHFMError, match="no features that can be compared"):
        agreement_picture(image, {"student": [AgreementMap("a", None, None)]})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["index=6"], r"index: expected 0\.\.5, the images of test, found 6"),
        (["image_id=7"], r"image_id: no image 7 in test; expected one such as \S+/000000, "),
        (["index=1", "image_id=000001"], "give index or image_id, not both"),
        (["split=tests"], "split: expected one of train, val, test, found 'tests'"),
        (["random=0"], "random: expected at least one image, found 0 of 6"),
        (["agreement=true"], "expected a checkpoint named teacher among checkpoints, found none"),
        (["device=gpu"], "device: expected cpu"),
    ],
)
def test_what_cannot_be_drawn_is_reported(folder, tmp_path, overrides, message):
    with pytest.raises(LSHFMError, match=message):
        run(tmp_path, *of_data(folder), *overrides)


def test_checkpoints_that_do_not_fit_are_reported(folder, checkpoints, tmp_path):
    with pytest.raises(
        LSHFMError, match="expected a detector with the data's classes cat, square, star, …; it has circle"
    ):
        run(tmp_path, *of_data(folder)[:3], "data.class_names=[cat,square,star,x]", "index=0",
            f"checkpoint='{checkpoints['student']}'")  # fmt: skip
    with pytest.raises(LSHFMError, match="expected different names, found student, student"):
        run(tmp_path, f"checkpoints=['{checkpoints['student']}','{checkpoints['student']}']")
    with pytest.raises(LSHFMError, match="checkpoint=<file> or checkpoints=…, not both"):
        run(tmp_path, "checkpoint=a", "checkpoints=[b]")
    with pytest.raises(LSHFMError, match="no data are given: give data="):
        run(tmp_path)


def test_a_window_needs_a_display(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LSHFMError, match="show: there is no display"):
        run(tmp_path / "out", *of_data(folder), "show=true")
    assert not (tmp_path / "out").exists()
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("PIL.ImageShow.show", lambda image, title: shown.append((image.size, title)) or True)
    (path,) = run(tmp_path, *of_data(folder), "show=true", "index=0")
    assert shown == [(Image.open(path).size, path.name)]
