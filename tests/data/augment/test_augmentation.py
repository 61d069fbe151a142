"""Lists of transforms: checks after each of them, random numbers, processes, mistakes in a config."""

import random
import re

import numpy as np
import pytest
import torch
from compositions import composed
from data_modules import make
from omegaconf import OmegaConf
from torchvision import tv_tensors
from torchvision.transforms import v2
from voc_files import object_xml, write_voc

from lshfm_pl.cli import as_dict
from lshfm_pl.data.augment.build import build_augmentation
from lshfm_pl.data.augment.pipeline import Augmentation, Step
from lshfm_pl.data.auto import AutoDataModule
from lshfm_pl.data.sampler import AspectRatioBatchSampler, Draw
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.augmentation import describe_augmentation

V2 = "torchvision.transforms.v2"
OURS = "lshfm_pl.data.augment"


def augment(name):
    return as_dict(composed(f"augment={name}", "data=shapes", command="train").augment)


def sample(*boxes, height=100, width=200, area=None):
    image = tv_tensors.Image(
        torch.arange(3 * height * width).remainder(251).to(torch.uint8).reshape(3, height, width)
    )
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            format="XYXY",
            canvas_size=(height, width),
        ),
        "labels": torch.arange(1, len(boxes) + 1),
        "difficult": torch.zeros(len(boxes), dtype=torch.bool),
        "image_id": torch.tensor(5),
    }
    return image, target if area is None else {**target, "area": torch.tensor(area)}


def applied(transform, given, **rules):
    steps = transform if isinstance(transform, list) else [Step("augment.transforms[0] (It)", transform)]
    return Augmentation(steps, **rules)(*given, lambda: sample((10, 10, 60, 60)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two shapes with two objects each; those of val have other names."""
    folder = tmp_path_factory.mktemp("voc") / "set"
    for split, names in (("train", range(10)), ("val", range(20, 22))):
        images = {
            f"{name:03d}": (
                ((96, 80), (70, 100))[name % 2],
                [object_xml("cat", (5, 5, 30 + name, 38)), object_xml("dog", (35, 30, 66, 70))],
            )
            for name in names
        }
        write_voc(folder, split, images)
    return folder


def module_with(folder, config, **settings):
    module = make(folder, **settings)
    module.use_augmentation(config)
    module.setup("fit")
    return module


def items(module, epochs=(0, 1)):
    loader = module.train_dataloader()
    found = {}
    for epoch in epochs:
        loader.batch_sampler.set_epoch(epoch)
        for images, targets in loader:
            for image, target in zip(images, targets, strict=True):
                found[epoch, int(target["image_id"])] = (image, target)
    return found


def same(one, other):
    assert one.keys() == other.keys()
    return all(
        torch.equal(image, other[key][0])
        and target.keys() == other[key][1].keys()
        and all(torch.equal(value, other[key][1][name]) for name, value in target.items())
        for key, (image, target) in one.items()
    )


def test_published_is_the_flip_of_before_to_the_bit(folder):
    before = make(folder, flip_probability=0.5, seed=3)
    before.setup("fit")
    after = module_with(folder, augment("published"), seed=3)
    assert type(after.train_transform) is v2.RandomHorizontalFlip
    assert same(items(before), items(after))
    # The flip as torchvision draws it from a generator with the seed of the picture.
    flipped = items(after)
    plain = after.train_set.without_transforms()
    assert 0 < sum(torch.equal(image, plain[index][0]) for (_, index), (image, _) in flipped.items()) < 20
    assert as_dict(composed("data=shapes", command="train").augment) == augment("published")
    half = composed("data=shapes", "data.flip_probability=0.25", command="train")
    assert half.augment.transforms[0].p == 0.25


def test_none_leaves_the_pictures_as_they_are(folder):
    module = module_with(folder, augment("none"))
    plain = module.train_set.without_transforms()
    assert all(torch.equal(image, plain[index][0]) for (_, index), (image, _) in items(module).items())


def test_pictures_do_not_depend_on_workers_order_or_earlier_pictures(folder):
    config = augment("strong")
    config["transforms"][1]["p"] = config["transforms"][2]["p"] = 0.5
    module = module_with(folder, config, seed=1)
    whole = items(module)
    first = {key: item for key, item in whole.items() if key[0] == 0}
    assert same(first, items(module_with(folder, config, seed=1, num_workers=4), epochs=(0,)))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.manual_seed(7)
        backwards = {key: module.train_set[Draw(key[1], key[0])] for key in sorted(whole, reverse=True)}
        assert same(whole, backwards)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert not same(first, items(module_with(folder, config, seed=2), epochs=(0,)))
    assert any(not torch.equal(whole[0, index][0], whole[1, index][0]) for index in range(10))
    for image, target in whole.values():
        assert image.dtype == torch.uint8
        assert type(image) is type(target["boxes"]) is torch.Tensor
        assert len(target["boxes"]) == len(target["labels"]) == len(target["difficult"])
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 <= image.shape[2]).all()
        assert (y2 <= image.shape[1]).all()
        assert (x2 - x1 >= 2).all()
        assert (y2 - y1 >= 2).all()


def test_processes_share_the_pictures_of_one(folder):
    module = module_with(folder, augment("strong"), batch_size=4)
    (alone,) = shares(module, 1)
    module.batch_size = 2
    pair = shares(module, 2)
    assert [first + second for first, second in zip(*pair, strict=True)] == alone


def shares(module, world_size):
    """Process → batch → the sums of the pixels of its pictures."""
    samplers = [
        AspectRatioBatchSampler(
            module.train_set.aspect_ratios, module.batch_size, num_replicas=world_size, rank=rank
        )
        for rank in range(world_size)
    ]
    return [
        [[int(module.train_set[draw][0].sum()) for draw in batch] for batch in sampler]
        for sampler in samplers
    ]


def test_a_format_that_is_found_out_and_one_of_ones_own_are_augmented(folder):
    auto = AutoDataModule(root=folder, num_workers=0)
    auto.use_augmentation(one(f"{OURS}.Mosaic"))
    auto.setup("fit")
    assert auto.train_set.transforms is auto.train_transform

    class Forgetful(AutoDataModule):
        def read_set(self, split, faults):
            return super().read_set(split, faults).without_transforms()

    own = Forgetful(root=folder, num_workers=0)
    own.use_augmentation(one(f"{OURS}.Mosaic"))
    with pytest.raises(LSHFMError, match="augment: Forgetful does not use these transforms"):
        own.setup("fit")


def test_random_numbers_of_all_libraries_are_those_of_the_picture(folder):
    def noise(image, target):
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return image, {**target, "drawn": torch.tensor([drawn])[0, :].sum()}

    module = make(folder)
    module.train_transform = Augmentation([Step("noise", noise)])
    module.setup("fit")
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    first = [module.train_set[Draw(index, 0)][1]["drawn"] for index in (0, 1, 0)]
    assert first[0] == first[2] != first[1]
    assert (random.random(), np.random.rand()) == expected


def test_objects_are_cut_at_the_border_and_dropped_by_the_rules():
    # A crop of 100 x 100 at the middle: x from 50 to 150.
    boxes = (0, 0, 60, 100), (40, 20, 80, 60), (60, 10, 140, 90), (149, 0, 190, 50), (0, 0, 40, 40)
    image, target = applied(v2.CenterCrop(100), sample(*boxes, area=[1.0, 10.0, 100.0, 1.0, 1.0]))
    assert image.shape == (3, 100, 100)
    # A sixth of the first, three quarters of the second and all of the third are left.
    assert target["boxes"].tolist() == [[0, 20, 30, 60], [10, 10, 90, 90]]
    assert target["labels"].tolist() == [2, 3]
    assert target["difficult"].tolist() == [False, False]
    assert target["area"].tolist() == [7.5, 100]
    assert target["image_id"] == 5
    _, target = applied(v2.CenterCrop(100), sample(*boxes), least_visible=0)
    assert target["labels"].tolist() == [1, 2, 3, 4]
    _, target = applied(v2.CenterCrop(100), sample(*boxes), least_visible=0, smallest_side=2)
    assert target["labels"].tolist() == [1, 2, 3]


def test_a_picture_without_boxes_left_is_background():
    _, target = applied(v2.CenterCrop(20), sample((0, 0, 30, 30)))
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    crop = [
        Step("crop", v2.RandomIoUCrop()),
        Step("out", v2.RandomZoomOut(p=1)),
        Step("jitter", v2.ScaleJitter((99, 99))),
    ]
    _, target = applied(crop, sample())
    assert target["boxes"].shape == (0, 4)


def wrong(**changes):
    def transform(image, target):
        return image, {**target, **changes}

    return transform


def boxes_of(*corners, size=(100, 200)):
    return tv_tensors.BoundingBoxes(torch.tensor(corners), format="XYXY", canvas_size=size)


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (lambda image, target: image, r"expected \(picture, target\), found Image"),
        (lambda image, target: (image.float(), target), "expected a picture, uint8 .* found .*float32"),
        (lambda image, target: (image[..., :50], target), "has 50 x 100 pixels, but its boxes .* 200 x 100"),
        (wrong(boxes=None), "expected boxes as tv_tensors.BoundingBoxes, found none"),
        (wrong(boxes=boxes_of([1.0, 1, 9, 9])), "1 boxes, but 2 labels: expected the same number"),
        (wrong(boxes=boxes_of([1.0, 1, 9, 9], [float("nan"), 1, 9, 9])), "a box is not finite"),
        (wrong(boxes=boxes_of([1.0, 1, 9, 9], [9.0, 1, 3, 9])), "x1 < x2 and y1 < y2, found the box 9, 1, 3, 9"),
        (wrong(boxes=boxes_of([1.0, 1, 9, 9], [1.0, 1, 300, 9])), "1, 1, 300, 9 leaves the picture of 200 x 100"),
        (lambda image, target: (image, {"boxes": target["boxes"]}), "expected the keys of the target to stay, but"),
        (lambda image, target: 1 // 0, "cannot be applied to a picture of 200 x 100 pixels with 2 boxes .ZeroDiv"),
    ],
)  # fmt: skip
def test_a_transform_with_an_unfit_result_is_named(transform, told):
    with pytest.raises(LSHFMError, match=rf"augment.transforms\[0\] \(It\): .*{told}"):
        applied(transform, sample((10, 10, 60, 60), (20, 20, 90, 90)))


def test_other_pictures_have_been_through_the_earlier_transforms():
    seen = []

    def mark(image, target):
        seen.append(image.shape[-1])
        return image, target

    steps = build_augmentation(
        {"transforms": [{"_target_": f"{V2}.CenterCrop", "size": 90}, {"_target_": f"{OURS}.MixUp"}]}
    ).steps
    image, target = applied([steps[0], Step("mark", mark), steps[1]], sample((60, 10, 140, 60)))
    assert seen == [90, 90]
    assert image.shape == (3, 90, 90)
    assert len(target["boxes"]) == 1  # the other's, at the left border, is cut to less than a fifth
    assert target["boxes"].tolist() == [[5, 5, 85, 55]]


def one(target, **arguments):
    """A config with one transform; names without a dot are torchvision's."""
    return {"transforms": [entry(target, **arguments)]}


def entry(target, **arguments):
    return {"_target_": target if "." in target else f"{V2}.{target}", **arguments}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"transform": []}, "augment.transform: there is no such key; did you mean transforms?"),
        ({"transforms": "Mosaic"}, "augment.transforms: expected a list of transforms, found 'Mosaic'"),
        ({"transforms": [3]}, "augment.transforms[0]: expected a transform such as {_target_: torchv"),
        (
            {"transforms": [], "smallest_side": -1},
            "augment.smallest_side: expected a number of at least 0, found -1",
        ),
        (
            {"transforms": [], "least_visible": 2},
            "augment.least_visible: expected a number between 0 and 1, found",
        ),
        (one("RandomFlip"), "no class RandomFlip in torchvision.transforms.v2; did you mean torchvision"),
        (
            one("no_module.It"),
            "no_module.It cannot be imported (ModuleNotFoundError: No module named 'no_module'); ",
        ),
        (one(".It"), "expected an import path such as module.Class, found .It"),
        (one("RandomGrayscale", prob=1), "[0].prob: RandomGrayscale takes no such argument; it takes p"),
        (one(f"{OURS}.Mosaic", scales=1), "[0].scales: Mosaic takes no such argument; did you mean scale?"),
        (one(f"{OURS}.Mosaic", p=3), "augment.transforms[0].p: expected a number between 0 and 1, found 3"),
        (one("RandomZoomOut", side_range=[0, 1]), "RandomZoomOut cannot be built (ValueError: Invalid side"),
        (
            one("Normalize", mean=[0.5], std=[1.0]),
            "[0] (Normalize): it cannot be applied to a picture of 640 x 480",
        ),
        (
            one("ToDtype", dtype=entry("builtins.getattr")),
            "[0].dtype: getattr cannot be built (TypeError: getattr",
        ),
        (
            one("RandAugment"),
            "[0] (RandAugment): it cannot be applied to a picture of 640 x 480 pixels with 2 boxes",
        ),
        (
            one("MixUp", num_classes=3),
            "mixes batches for classification; for pictures with boxes there is lshfm_pl",
        ),
        (one("FiveCrop", size=30), "[0] (FiveCrop): it cannot be applied"),
        (one("ToPureTensor"), "[0] (ToPureTensor): expected boxes as tv_tensors.BoundingBoxes, found Tensor"),
        (
            one("torchvision.transforms.RandomVerticalFlip"),
            "did you mean torchvision.transforms.v2.RandomVerti",
        ),
        (one("SanitizeBoundingBoxes"), "leave SanitizeBoundingBoxes out: boxes are checked"),
        (one("RandomIoUCrop", sampler_options=[0.5]), "[0].sampler_options: expected 1.0 among them"),
        (
            one("RandomApply", transforms=[entry(f"{OURS}.Mosaic")]),
            "transforms.0: Mosaic cannot be inside of",
        ),
    ],
)
def test_a_mistake_in_a_config_is_told_in_one_line(config, told):
    with pytest.raises(LSHFMError, match=re.escape(told)) as caught:
        build_augmentation(config)
    assert "\n" not in str(caught.value)


def test_transforms_of_torchvision_that_move_boxes_are_accepted():
    names = {
        "RandomPhotometricDistort": {}, "RandomZoomOut": {"fill": 114}, "RandomIoUCrop": {},
        "ScaleJitter": {"target_size": [320, 320]}, "RandomCrop": {"size": [320, 320], "pad_if_needed": True},
        "RandomAffine": {"degrees": 20}, "RandomRotation": {"degrees": 90, "expand": True},
        "RandomPerspective": {}, "RandomVerticalFlip": {}, "RandomResizedCrop": {"size": [100, 200]},
        "RandomShortestSize": {"min_size": [200, 300]}, "RandomGrayscale": {"p": 0.1},
        "GaussianBlur": {"kernel_size": 3}, "JPEG": {"quality": [20, 60]}, "RandomEqualize": {},
        "ClampBoundingBoxes": {},
    }  # fmt: skip
    entries = [{"_target_": f"{V2}.{name}", **settings} for name, settings in names.items()]
    nested = {"_target_": f"{V2}.RandomApply", "p": 0.5, "transforms": entries[:2]}
    built = build_augmentation({"transforms": [*entries, nested]})
    assert [step.name.split()[0] for step in built.steps][-1] == "augment.transforms[16]"


def test_a_file_of_others_may_only_name_known_transforms():
    build_augmentation(
        {"transforms": [{"_target_": f"{OURS}.MixUp"}, {"_target_": f"{V2}.RandomInvert"}]}, is_trusted=False
    )
    for path in (
        "antigravity.Fly",
        "os.system",
        f"{V2}.functional.resize",
        f"{OURS}.build.build_augmentation",
    ):
        with pytest.raises(
            LSHFMError, match=f"the file names {path}, which is not a transform of torchvision"
        ):
            build_augmentation({"transforms": [{"_target_": path}]}, is_trusted=False)
        inside = {"_target_": f"{V2}.RandomApply", "transforms": [{"_target_": path}]}
        with pytest.raises(LSHFMError, match=f"the file names {path}"):
            build_augmentation({"transforms": [inside]}, is_trusted=False)


def test_a_run_is_described_by_its_transforms():
    def described(*arguments):
        config = composed("data=shapes", *arguments, command="train")
        return describe_augmentation(
            OmegaConf.to_container(OmegaConf.masked_copy(config, ["data", "augment", "seed"]), resolve=True)
        )

    assert (
        described()
        == described("data.flip_probability=0.2")
        == describe_augmentation({"data": {}})
        == "published"
    )
    assert described("augment=none") == "none"
    assert described("augment.transforms.0.p=0.3") == "RandomHorizontalFlip(p=0.3)"
    strong = described("augment=strong")
    assert strong.startswith(
        "CopyPaste(p=0.3, objects=3), Mosaic(p=0.3), MixUp(p=0.1), ColorJitter(brightness=0.2"
    )
    assert strong.endswith("RandomHorizontalFlip(p=0.5), smallest_side=2, least_visible=0.2")
