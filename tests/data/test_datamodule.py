from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from voc_files import object_xml, write_image, write_many, write_split, write_voc

from lshfm_pl.data.build import build_datamodule
from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.images import decode_image
from lshfm_pl.data.shapes.datamodule import ShapesDataModule
from lshfm_pl.data.voc.datamodule import VOCDataModule
from lshfm_pl.data.voc.dataset import VOC_CLASSES
from lshfm_pl.errors import LSHFMError

CONFIGS = Path(__file__).parents[2] / "conf" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc") / "set"
    write_many(folder, "train", 22)
    write_many(folder, "val", 7, first=100)
    write_many(folder, "test", 5, first=200)
    return folder


def make(folder, **settings):
    settings = {"train_split": "train", "val_split": "val", "num_workers": 0, **settings}
    datamodule = VOCDataModule(root=folder, **settings)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def flattened(loader):
    return [
        (image, target["image_id"].item(), target["boxes"])
        for images, targets in loader
        for image, target in zip(images, targets, strict=True)
    ]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and a[1] == b[1] and torch.equal(a[2], b[2])
        for a, b in zip(first, second, strict=True)
    )


class Recorder(pl.LightningModule):
    """Records the image ids of every batch by epoch, without learning."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_batches = {}
        self.val_ids = {}

    def training_step(self, batch, batch_idx):
        _, targets = batch
        box_sums = [target["boxes"].sum().item() for target in targets]
        ids = [target["image_id"].item() for target in targets]
        self.train_batches.setdefault(self.current_epoch, []).append((ids, box_sums))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        ids = [target["image_id"].item() for target in batch[1]]
        self.val_ids.setdefault(self.current_epoch, []).extend(ids)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def ids_of_epoch(self, epoch):
        return [image_id for ids, _ in self.train_batches[epoch] for image_id in ids]


def fit(datamodule, folder, epochs, checkpoint=None, **settings):
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **settings},
    )
    trainer.fit(recorder, datamodule=datamodule, ckpt_path=checkpoint)
    return recorder


def test_batch_is_two_lists(folder):
    datamodule = make(folder, batch_size=3)
    images, targets = next(iter(datamodule.train_dataloader()))
    assert isinstance(images, list)
    assert isinstance(targets, list)
    assert len(images) == len(targets) == 3
    assert all(image.dtype == torch.uint8 and image.shape[0] == 3 for image in images)


@pytest.mark.parametrize("epoch", [0, 1])
def test_batches_do_not_depend_on_the_workers(folder, epoch):
    loaded = []
    for num_workers in (0, 2):
        loader = make(folder, batch_size=4, num_workers=num_workers, seed=3).train_dataloader()
        assert loader.persistent_workers == (num_workers > 0)
        assert not loader.pin_memory
        loader.batch_sampler.set_epoch(epoch)
        loaded.append(flattened(loader))
    assert same(*loaded)
    # Unflipped boxes start at index % 20: some images were flipped, but not all.
    unflipped = [boxes[0, 0].item() == image_id % 20 for _, image_id, boxes in loaded[0]]
    assert 0 < sum(unflipped) < len(unflipped)


def test_persistent_workers_follow_the_epoch(folder):
    loaders = [make(folder, num_workers=number).train_dataloader() for number in (0, 1)]
    for epoch in range(2):
        for loader in loaders:
            loader.batch_sampler.set_epoch(epoch)
        assert same(*(flattened(loader) for loader in loaders))


def test_every_epoch_of_a_fit_has_another_order_and_all_images(folder, tmp_path):
    recorder = fit(make(folder, batch_size=4), tmp_path, epochs=2)
    epochs = [recorder.ids_of_epoch(epoch) for epoch in (0, 1)]
    assert [set(ids) for ids in epochs] == [set(range(22))] * 2
    assert [len(ids) for ids in epochs] == [24, 24]
    assert epochs[0] != epochs[1]
    assert recorder.val_ids == {0: list(range(7)), 1: list(range(7))}
    again = fit(make(folder, batch_size=4), tmp_path, epochs=2)
    assert again.train_batches == recorder.train_batches


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("save_on_train_epoch_end", [False, True])
def test_resumed_fit_sees_the_batches_of_the_uninterrupted_one(
    folder, tmp_path, num_workers, save_on_train_epoch_end
):
    whole = fit(make(folder), tmp_path, epochs=4)
    saver = pl.callbacks.ModelCheckpoint(
        dirpath=tmp_path, save_last=True, save_on_train_epoch_end=save_on_train_epoch_end
    )
    fit(make(folder), tmp_path, epochs=2, callbacks=[saver], enable_checkpointing=True)
    resumed = fit(make(folder, num_workers=num_workers), tmp_path, 4, checkpoint=tmp_path / "last.ckpt")
    assert resumed.train_batches == {epoch: whole.train_batches[epoch] for epoch in (2, 3)}


class FakeTrainer:
    """The attributes of a trainer that the data module uses, for one of several processes."""

    def __init__(self, rank, world_size):
        self.global_rank, self.world_size = rank, world_size
        self.overfit_batches = 0.0
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))
        progress = SimpleNamespace(current=SimpleNamespace(processed=0))
        self.fit_loop = SimpleNamespace(epoch_progress=progress, restarting=False)


def batches_by_process(folder, world_size, batch_size, loader_name):
    loaded = []
    for rank in range(world_size):
        datamodule = make(folder, batch_size=batch_size)
        datamodule.trainer = FakeTrainer(rank, world_size)
        loader = getattr(datamodule, loader_name)()
        loaded.append([[target["image_id"].item() for target in targets] for _, targets in loader])
    return loaded


def test_processes_share_the_global_batches(folder):
    (alone,) = batches_by_process(folder, 1, 4, "train_dataloader")
    first, second = batches_by_process(folder, 2, 2, "train_dataloader")
    assert [a + b for a, b in zip(first, second, strict=True)] == alone


def test_processes_share_the_evaluation_without_repeating(folder):
    assert batches_by_process(folder, 2, 2, "val_dataloader") == [
        [[0], [2], [4], [6]],
        [[1], [3], [5]],
    ]


def test_overfitting_sees_the_same_batches_every_epoch(folder):
    datamodule = make(folder, batch_size=2)
    datamodule.trainer = FakeTrainer(0, 1)

    def epochs():
        loader = datamodule.train_dataloader()
        for epoch in (0, 1):
            loader.batch_sampler.set_epoch(epoch)
            yield [[draw.index for draw in batch] for batch in loader.batch_sampler]

    first, second = epochs()
    assert first != second
    datamodule.trainer.overfit_batches = 1
    first, second = epochs()
    assert first == second


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [(1, [0]), (5, [0, 4, 8, 13, 17]), (22, list(range(22))), (1000, list(range(22)))],
)
def test_sample_is_evenly_spaced_and_the_same_for_every_process(folder, num_images, expected):
    samples = []
    for rank, num_workers in ((0, 0), (1, 1)):
        datamodule = make(folder, batch_size=4, flip_probability=1.0, num_workers=num_workers, seed=rank)
        datamodule.trainer = FakeTrainer(rank, 2)
        loader = datamodule.sample_dataloader(num_images)
        assert len(loader) == -(-len(expected) // 4)
        samples.append(flattened(loader))
    assert same(*samples)
    assert [image_id for _, image_id, _ in samples[0]] == expected
    # Unflipped boxes start at index % 20.
    assert [boxes[0, 0].item() for *_, boxes in samples[0]] == [index % 20 for index in expected]
    image, _, _ = samples[0][0]
    assert torch.equal(image, decode_image(datamodule.train_set.records[0].image_path))


def test_sample_has_training_targets_and_leaves_training_alone(tmp_path):
    objects = [object_xml("cat"), object_xml("dog", difficult=1)]
    folder = write_voc(tmp_path / "set", "train", {"a": ((64, 48), objects)})
    datamodule = make(folder, val_split="train", flip_probability=1.0)
    ((_, (target,)),) = datamodule.sample_dataloader(1)
    assert target["labels"].tolist() == [1]
    flipped = datamodule.train_set[0][1]["boxes"]
    assert not torch.equal(flipped, target["boxes"])


def test_sample_of_no_image_is_refused(folder):
    with pytest.raises(LSHFMError, match="at least one image, found 0"):
        make(folder).sample_dataloader(0)


def test_fewer_evaluation_images_than_processes_are_refused(folder):
    datamodule = make(folder)
    datamodule.trainer = FakeTrainer(0, 1000)
    with pytest.raises(LSHFMError, match="fewer than the 1000 processes"):
        datamodule.val_dataloader()


def test_pinned_memory_only_on_cuda(folder):
    datamodule = make(folder)
    datamodule.trainer = FakeTrainer(0, 1)
    assert not datamodule.train_dataloader().pin_memory
    datamodule.trainer.strategy.root_device = torch.device("cuda")
    assert datamodule.train_dataloader().pin_memory
    assert datamodule.val_dataloader().pin_memory


def test_class_names_come_from_the_training_annotations_in_every_stage(folder):
    for stage in ("fit", "validate", "test", None):
        datamodule = VOCDataModule(root=folder, train_split="train", val_split="val")
        with pytest.raises(RuntimeError, match="setup"):
            _ = datamodule.class_names
        datamodule.setup(stage)
        assert datamodule.class_names == ("cat", "dog")


def test_given_class_names_set_the_labels(folder):
    datamodule = make(folder, class_names=["dog", "cat", "horse"])
    assert datamodule.class_names == ("dog", "cat", "horse")
    assert datamodule.train_set.target(0)["labels"].tolist() == [2]


def test_stages_read_only_what_they_need_and_once(folder):
    datamodule = VOCDataModule(
        root=folder, train_split="missing", val_split="val", test_split="test", class_names=["cat", "dog"]
    )
    datamodule.setup("test")
    test_set = datamodule.test_set
    assert len(test_set) == 5
    with pytest.raises(RuntimeError, match="setup"):
        _ = datamodule.train_set
    datamodule.setup("validate")
    datamodule.setup("test")
    assert datamodule.test_set is test_set
    with pytest.raises(LSHFMError, match=r"(?s)missing\.txt.*has: test, train, val.*data\.train_split"):
        datamodule.setup("fit")


def test_the_test_split_is_the_sets_own_where_none_is_named(folder, tmp_path):
    datamodule = make(folder)
    assert len(datamodule.test_set) == 5
    assert not datamodule.test_is_validation
    assert datamodule.derived_settings() == {"test_split": ["test"]}
    below = make(folder.parent, train_split="set/train", val_split="set/val")
    assert below.splits["test"] == ["set/test"]
    given = make(folder, test_split="val")
    assert given.test_set is given.val_set
    assert given.test_is_validation
    assert given.derived_settings() == {}
    validated = make(folder, val_split="test")
    assert validated.test_is_validation


@pytest.mark.parametrize("content", [None, "", " \n", "unannotated\n", "/\n.\n"])
def test_the_validation_split_is_the_test_too_where_the_set_has_none(tmp_path, content):
    write_many(tmp_path / "set", "train", 2)
    write_many(tmp_path / "set", "val", 2, first=100)
    if content is not None:
        (tmp_path / "set" / "ImageSets" / "Main" / "test.txt").write_text(content)
    datamodule = make(tmp_path / "set")
    assert datamodule.test_set is datamodule.val_set
    assert datamodule.test_is_validation
    assert datamodule.splits_to_read() == {"train": "train_split", "val": "val_split"}


def test_a_test_split_that_is_trained_on_is_no_test(folder):
    assert make(folder, train_split=["train", "test"]).test_is_validation


def test_several_splits_are_merged(folder):
    datamodule = make(folder.parent, train_split=["set/train", "set/test"], val_split="set/val")
    assert len(datamodule.train_set) == 27


def test_training_drops_difficult_objects_and_describe_counts(tmp_path):
    objects = [object_xml("cat"), object_xml("dog", difficult=1)]
    folder = write_voc(tmp_path / "set", "train", {"a": ((64, 48), objects)})
    write_voc(folder, "val", {"b": ((64, 48), objects)})
    assert make(folder).describe() == {
        "train": {"images": 1, "objects": 1, "difficult": 1, "classes": {"cat": 1, "dog": 0}},
        "val": {"images": 1, "objects": 2, "difficult": 1, "classes": {"cat": 1, "dog": 1}},
        "test": {"images": 1, "objects": 2, "difficult": 1, "classes": {"cat": 1, "dog": 1}},
    }


def test_test_images_inside_the_training_set_are_warned_of(tmp_path, caplog):
    folder = write_many(tmp_path / "set", "train", 4)
    write_many(folder, "val", 2, first=100)
    for number in (100, 101):
        name = f"000{number}"
        write_image(
            folder / f"JPEGImages/{name}.png", Image.open(folder / f"JPEGImages/{name}.png").size, number
        )
    write_split(folder, "leaky", ["000100", "000003"])
    make(folder, val_split="leaky")
    told = [line for line in caplog.messages if "test-in-train" in line]
    assert len(told) == 1
    assert "000003" in told[0]
    assert "is one of 1 images of data.val_split that are training images too: " in told[0]
    caplog.clear()
    make(folder)
    assert not any("test-in" in line for line in caplog.messages)


def test_copies_of_training_images_are_warned_of_with_both_names(tmp_path, caplog):
    folder = write_many(tmp_path / "set", "train", 4)
    write_many(folder, "val", 2, first=100)
    for name, source in (("000100", "000002"), ("000101", None)):
        path = folder / f"JPEGImages/{name}.png"
        if source is None:
            write_image(path, Image.open(path).size, 101)
        else:
            (folder / f"Annotations/{name}.xml").write_bytes(
                (folder / f"Annotations/{source}.xml").read_bytes()
            )
            path.write_bytes((folder / f"JPEGImages/{source}.png").read_bytes())
    make(folder)
    (told,) = [line for line in caplog.messages if "test-in-train" in line]
    assert (
        "000002.png: is one of 1 images of data.val_split that are training images too (there it is " in told
    )
    assert "000100.png): the val results will look better than they are" in told


def test_test_images_that_are_validation_images_by_a_link_are_warned_of(tmp_path, caplog):
    folder = write_many(tmp_path / "set", "train", 4)
    write_many(folder, "val", 2, first=100)
    write_many(folder, "test", 2, first=200)
    linked = folder / "JPEGImages" / "000200.png"
    linked.unlink()
    linked.symlink_to("000100.png")
    make(folder, test_split="test")
    assert [line for line in caplog.messages if "test-in-val" in line]


def test_an_image_of_the_evaluation_that_cannot_be_read_is_found_before_training(tmp_path):
    folder = write_many(tmp_path / "set", "train", 4)
    write_many(folder, "val", 2, first=100)
    path = folder / "JPEGImages" / "000101.png"
    path.write_bytes(path.read_bytes()[:-200])
    message = r"000101\.png: is truncated.*\n.*on_bad_sample=skip does not change; .*check_data"
    for on_bad_sample in ("error", "skip"):
        with pytest.raises(LSHFMError, match=message):
            make(folder, on_bad_sample=on_bad_sample)


@pytest.mark.parametrize("name", [None, True, 1e3])
def test_class_names_that_are_no_text_are_reported_with_the_quotes_they_need(folder, name):
    with pytest.raises(LSHFMError, match=r"data\.class_names: expected text.*\[\"null\",\"1e3\"\]"):
        VOCDataModule(root=folder, train_split="train", val_split="val", class_names=["cat", name])


def test_training_without_any_object_is_refused(tmp_path):
    folder = write_voc(tmp_path / "set", "train", {"a": ((64, 48), [])})
    with pytest.raises(LSHFMError, match=r"train\.txt: No object is annotated"):
        make(folder, val_split="train")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size must be a whole number of at least 1, found 0"),
        ({"eval_batch_size": "many"}, r"data\.eval_batch_size must .* found 'many'"),
        ({"num_workers": -1}, r"data\.num_workers"),
        ({"aspect_ratio_groups": 1.5}, r"data\.aspect_ratio_groups"),
        ({"seed": -3}, r"data\.seed"),
        ({"flip_probability": 2}, r"data\.flip_probability"),
        ({"train_split": None}, r"data\.train_split must be the name of a split"),
        ({"val_split": []}, r"data\.val_split must be the name of a split"),
        ({"class_names": "cat"}, r"data\.class_names must be a list of names.*found 'cat'"),
        ({"class_names": []}, r"data\.class_names must be a list"),
        ({"class_names": ["cat", "dog", "cat"]}, r"data\.class_names has cat more than once"),
    ],
)
def test_impossible_settings_are_refused(folder, setting, message):
    with pytest.raises(LSHFMError, match=message):
        make(folder, **setting)


def test_data_module_is_built_from_a_stored_config(folder):
    config = {
        "_target_": "lshfm_pl.data.voc.datamodule.VOCDataModule",
        "root": str(folder),
        "train_split": "train",
        "val_split": "val",
    }
    assert build_datamodule(config).splits["train"] == ["train"]
    with pytest.raises(LSHFMError, match=r"found 'os\.system'"):
        build_datamodule({**config, "_target_": "os.system"})
    with pytest.raises(LSHFMError, match="colour"):
        build_datamodule({**config, "colour": "red"})


# The files of conf/data


def load_config(name, **changes):
    with initialize_config_dir(str(CONFIGS.parent), version_base="1.3"):
        composed = OmegaConf.to_container(compose(f"data/{name}"))
    return OmegaConf.create({"seed": 5, "data": {**composed["data"], **changes}}).data


OWN_FILES = {"coco_json": {"val_annotations": "val.json", "val_images": "val"}}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!_]*.yaml")), ids=lambda path: path.stem)
def test_every_config_makes_a_data_module(path, tmp_path):
    config = load_config(path.stem, root=str(tmp_path), **OWN_FILES.get(path.stem, {}))
    datamodule = instantiate(config)
    assert isinstance(datamodule, DetectionDataModule)
    assert datamodule.seed == 5
    assert datamodule.aspect_ratio_groups == 3
    stored = OmegaConf.to_container(OmegaConf.create({"seed": 5, "data": config}).data, resolve=True)
    assert type(build_datamodule(stored, drawn_below=tmp_path)) is type(datamodule)


@pytest.mark.parametrize(
    ("name", "train_splits"),
    [("voc0712", ["VOC2007/trainval", "VOC2012/trainval"]), ("voc07", ["VOC2007/trainval"])],
)
def test_voc_configs_are_those_of_the_paper(name, train_splits, tmp_path):
    datamodule = instantiate(load_config(name, root=str(tmp_path)))
    assert datamodule.splits == {"train": train_splits, "val": ["VOC2007/test"], "test": ["VOC2007/test"]}
    assert datamodule.class_names == VOC_CLASSES
    assert datamodule.batch_size == 2
    datamodule.prepare_data()
    with pytest.raises(LSHFMError, match=r"data\.download=true"):
        datamodule.setup("fit")


def test_voc_config_reads_the_devkit(tmp_path):
    for year, split in (("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test")):
        images = {f"{split}_{number}": ((64, 48), [object_xml("tvmonitor")]) for number in range(3)}
        write_voc(tmp_path / "VOCdevkit" / year, split, images, suffix=".jpg")
    datamodule = instantiate(load_config("voc0712", root=str(tmp_path), download=True))
    datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.train_set) == 6
    assert len(datamodule.test_set) == 3
    assert datamodule.train_set.target(0)["labels"].tolist() == [20]


def test_shapes_config_generates_and_reads_its_scenes(tmp_path):
    config = load_config("shapes", root=str(tmp_path), num_train=10, num_val=2, num_test=3, num_workers=0)
    datamodule = instantiate(config)
    assert isinstance(datamodule, ShapesDataModule)
    datamodule.prepare_data()
    datamodule.setup()
    assert [len(datamodule.train_set), len(datamodule.val_set), len(datamodule.test_set)] == [10, 2, 3]
    assert len(datamodule.class_names) == 6
    assert len(next(iter(datamodule.train_dataloader()))[0]) == 8


def test_shapes_are_the_same_pictures_whatever_the_training_seed(tmp_path):
    sizes = {"num_train": 4, "num_val": 1, "num_test": 1}
    for seed in (0, 1):
        ShapesDataModule(root=tmp_path, seed=seed, **sizes).prepare_data()
    assert len(list(tmp_path.iterdir())) == 1
    ShapesDataModule(root=tmp_path, scene_seed=1, **sizes).prepare_data()
    assert len(list(tmp_path.iterdir())) == 2


def test_classes_of_a_checkpoint_need_no_training_split(tmp_path):
    folder = write_voc(tmp_path / "new", "test", {"a": ((64, 48), [object_xml("dog")])})
    datamodule = VOCDataModule(root=folder, train_split="train", val_split="val", num_workers=0)
    datamodule.use_class_names(("cat", "dog"))
    datamodule.setup("test")
    assert datamodule.class_names == ("cat", "dog")
    assert datamodule.test_set.target(0)["labels"].tolist() == [2]
    other = VOCDataModule(root=folder, train_split="train", val_split="val", num_workers=0)
    other.use_class_names(("cat", "cow"))
    with pytest.raises(LSHFMError, match="the class 'dog' of object 1 is not one of the classes"):
        other.setup("test")
    given = VOCDataModule(root=folder, train_split="train", val_split="val", class_names=["dog"])
    given.use_class_names(("cat", "dog"))
    assert given.class_names == ("dog",)


def test_which_validation_set_a_test_set_is(folder, tmp_path):
    trained = VOCDataModule(root=folder, train_split="train", val_split="val")
    again = VOCDataModule(
        root=folder.parent, train_split="set/train", val_split="set/val", test_split="set/val"
    )
    assert again.tests_on_validation_of(trained)
    assert not trained.tests_on_validation_of(trained)
    elsewhere = VOCDataModule(root=tmp_path, train_split="train", val_split="val")
    assert elsewhere.test_is_validation
    assert not elsewhere.tests_on_validation_of(trained)


@pytest.mark.parametrize("difficult", [None, 1])
def test_a_set_without_anything_to_find_is_refused(tmp_path, difficult):
    objects = [] if difficult is None else [object_xml("cat", difficult=1)]
    folder = write_voc(tmp_path / "set", "train", {"a": ((64, 48), [object_xml("cat")])})
    write_voc(folder, "val", {"b": ((64, 48), objects)})
    with pytest.raises(LSHFMError, match=r"val\.txt: no image has an object that counts.*nothing to measure"):
        make(folder)


def test_a_training_set_of_difficult_objects_alone_stops(tmp_path):
    folder = write_voc(tmp_path / "set", "train", {"a": ((64, 48), [object_xml(difficult=1)])})
    write_voc(folder, "val", {"b": ((64, 48), [object_xml()])})
    with pytest.raises(LSHFMError, match="No image has an object to learn"):
        make(folder, class_names=["cat"])
