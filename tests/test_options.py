"""Every option of the published training script has an effect when it is typed like a user types it."""

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from small_detectors import CLASS_NAMES, as_float, random_batch, small_detector
from torchvision.models import vgg11
from voc_files import object_xml, write_voc

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.spelling import translate_arguments
from lshfm_pl.detectors import detector_checkpoint
from lshfm_pl.mimic import LSH
from lshfm_pl.mimic.calibration import sampled_features
from lshfm_pl.training.build import build_module, make_schedule
from lshfm_pl.training.optim import build_optimizer, build_scheduler

PUBLISHED_PAGE = (CONFIG_DIR.parent / "docs/published.md").read_text(encoding="utf-8")
#: The flags of the published script, except those of torch.distributed's launcher.
PUBLISHED_FLAGS = (
    "LSH-loss", "LSH-weight", "aspect-ratio-group-factor", "backbone-pretrained", "batch-size", "beta", "bias",
    "dataset", "device", "distill", "epochs", "freeze-BN-stat", "hash-num", "lr", "lr-gamma", "lr-step-size",
    "lr-steps", "lr-warmup", "min-size", "model", "momentum", "output-dir", "pretrained", "print-freq", "resume",
    "start-epoch", "std", "teacher-ckpt", "test-only", "weight-decay", "workers",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two aspect ratios in turn."""
    names = iter(CLASS_NAMES * 4)
    sizes = [(64, 48), (48, 64)] * 6
    images = {f"{n:02d}": (size, [object_xml(next(names))]) for n, size in enumerate(sizes)}
    root = write_voc(tmp_path_factory.mktemp("options"), "train", images)
    return write_voc(root, "val", {"99": ((64, 48), [object_xml(CLASS_NAMES[0])])})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.ckpt"
    torch.save(detector_checkpoint(small_detector("fasterrcnn_resnet18fpn_small", seed=1)), path)
    return path


@pytest.fixture
def composed(folder):
    def compose_training(*overrides):
        settings = ["model=fasterrcnn_resnet10fpn_tiny", "data=voc_folder", f"data.root={folder}"]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(
                "train", overrides=translate_arguments("train", [*settings, "output_dir=unused", *overrides])
            )

    return compose_training


def module_of(config):
    datamodule = instantiate(config.data)
    datamodule.setup("fit")
    return build_module(config, datamodule)


def test_every_published_flag_has_its_row_in_the_documentation():
    rows = re.findall(r"^\| `--([\w-]+)`", PUBLISHED_PAGE, flags=re.MULTILINE)
    assert sorted(rows) == sorted(PUBLISHED_FLAGS)


def test_min_size_is_drawn_in_training_and_fixed_in_evaluation(composed):
    detector = module_of(composed("model.min_size=[96,160]")).detector
    images, targets = random_batch()

    def short_sides():
        return {min(detector.transform(as_float(images), targets)[0].image_sizes[0]) for _ in range(30)}

    assert short_sides() == {96, 160}
    detector.eval()
    assert short_sides() == {160}


@pytest.mark.parametrize(
    ("norm", "statistics_change", "affine_trains"),
    [("bn", True, True), ("bn_frozen_stats", False, True), ("frozen_bn", False, False)],
)
def test_batch_norm_is_frozen_or_not(composed, norm, statistics_change, affine_trains):
    detector = module_of(composed(f"model.norm={norm}")).detector.train()
    images, targets = random_batch()
    norms = {key: part for key, part in detector.backbone.body.named_modules() if "bn" in key}
    before = {key: part.running_mean.clone() for key, part in norms.items()}
    detector(as_float(images), targets)
    changed = [key for key, part in norms.items() if not torch.equal(before[key], part.running_mean)]
    assert bool(changed) == statistics_change
    trained = [
        key for key, parameter in detector.named_parameters() if "bn" in key and parameter.requires_grad
    ]
    assert bool(trained) == affine_trains


def rates(config, steps_per_epoch):
    schedule = make_schedule(config)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([weight], schedule, images_per_step=8)
    scheduler = build_scheduler(optimizer, schedule, steps_per_epoch)
    found = []
    for _ in range(schedule.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_rate_warm_up_steps_and_gamma(composed):
    config = composed(
        "schedule.epochs=3",
        "schedule.lr=1",
        "schedule.warmup_steps=4",
        "schedule.warmup_factor=0.2",
        "schedule.milestones=[1,2]",
        "schedule.gamma=0.5",
    )
    assert rates(config, steps_per_epoch=6) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1, *[0.5] * 6, *[0.25] * 6]
    )
    no_warm_up = composed("schedule.epochs=1", "schedule.lr=1", "schedule.warmup_steps=0")
    assert rates(no_warm_up, 3) == [1, 1, 1]


def test_momentum_and_weight_decay(composed):
    config = composed("schedule.optimizer.momentum=0.8", "schedule.optimizer.weight_decay=0.01")
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], make_schedule(config), 8)
    assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (0.8, 0.01)


@pytest.mark.parametrize(("groups", "mixed"), [(3, False), (0, True)])
def test_batches_are_of_one_aspect_ratio_or_of_any(composed, groups, mixed):
    datamodule = instantiate(composed(f"data.aspect_ratio_groups={groups}").data)
    datamodule.setup("fit")
    shapes = [{image.shape for image in images} for images, _ in datamodule.train_dataloader()]
    assert any(len(of_batch) > 1 for of_batch in shapes) == mixed


def test_batch_size_and_workers(composed):
    datamodule = instantiate(composed("data.batch_size=3", "data.num_workers=1").data)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    assert loader.num_workers == 1
    assert {len(images) for images, _ in loader} == {3}


def test_backbone_weights_of_a_vgg_with_a_pyramid_come_from_a_file(composed, tmp_path):
    torch.manual_seed(5)
    weights = {key: value for key, value in vgg11().state_dict().items() if key.startswith("features.")}
    torch.save(weights, tmp_path / "vgg11.pth")
    config = composed("model=fasterrcnn_vgg11fpn", f"model.backbone_weights={tmp_path / 'vgg11.pth'}")
    detector = module_of(config).detector
    assert torch.equal(detector.backbone.body.layer2[0][0].weight, weights["features.3.weight"])
    assert str(tmp_path / "vgg11.pth") in detector.backbone_report


@pytest.mark.parametrize(("stages", "frozen"), [(5, set()), (3, {"conv1", "bn1", "layer1"})])
def test_trainable_stages(composed, stages, frozen):
    detector = module_of(composed(f"model.trainable_stages={stages}")).detector
    fixed = {
        key.split(".")[0]
        for key, parameter in detector.backbone.body.named_parameters()
        if not parameter.requires_grad
    }
    assert fixed == frozen


@pytest.fixture
def hash_of(composed, teacher):
    def mimic_head(*overrides):
        module = module_of(composed("distill=lsh", f"teacher.checkpoint={teacher}", *overrides))
        return module.mimic["lsh"].loss, module

    return mimic_head


def test_hash_number_std_and_beta(hash_of):
    default, _ = hash_of()
    changed, module = hash_of("distill.num_hashes=33", "distill.std=0.5", "distill.beta=3")
    assert default.weight.shape == (1024, 256)
    classifier = module.teacher.roi_heads.box_predictor.cls_score.weight
    assert default.weight.std().item() == pytest.approx(classifier.std().item(), rel=0.02)
    assert changed.weight.shape == (33, 256)
    assert changed.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert (default.beta, changed.beta) == (7, 3)


def test_hash_loss_is_bce_l1_or_l2(hash_of):
    student, teacher = torch.randn(4, 256), torch.randn(4, 256)
    for name, reference in {
        "bce": lambda s, t: torch.nn.functional.binary_cross_entropy_with_logits(s, (t > 0).float()),
        "l1": torch.nn.functional.l1_loss,
        "l2": torch.nn.functional.mse_loss,
    }.items():
        head, _ = hash_of("distill.num_hashes=16", f"distill.hash_loss={name}")
        expected = 7 * reference(student @ head.weight.T, teacher @ head.weight.T)
        assert head(student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


def test_hash_weights_come_from_a_file(hash_of, tmp_path):
    source = LSH(256, 9, seed=4)
    source.bias.fill_(0.25)
    torch.save(source.state_dict(), tmp_path / "hash.pt")
    head, _ = hash_of(f"distill.hash_weights={tmp_path / 'hash.pt'}")
    assert torch.equal(head.weight, source.weight)
    assert torch.equal(head.bias, source.bias)


@pytest.mark.parametrize("bias", ["0", "mean", "median"])
def test_bias_is_zero_or_the_teachers_centre(hash_of, composed, bias):
    head, module = hash_of("distill.num_hashes=64", f"distill.bias={bias}", "distill.bias_images=6")
    datamodule = instantiate(composed().data)
    datamodule.setup("fit")
    sample = list(datamodule.sample_dataloader(6))
    assert sum(len(images) for images, _ in sample) == 6
    if bias == "0":
        assert head.calibration_images == 0
        assert not head.bias.any()
        return
    module.mimic.calibrate(lambda _: sampled_features(module.teacher, sample), lambda tensor: tensor)
    assert head.bias.abs().min() > 0


@pytest.mark.parametrize(
    ("distill", "terms"),
    [
        ("l2", {"l2"}), ("lshl2", {"l2", "lsh"}), ("kd", {"kd"}),
        *((name, {name}) for name in ("pkd", "cwd", "fgd", "mgd")),
        ("[lshl2,pkd]", {"l2", "lsh", "pkd"}),
    ],
)  # fmt: skip
def test_distill_chooses_the_loss(composed, teacher, distill, terms):
    module = module_of(composed(f"distill={distill}", f"teacher.checkpoint={teacher}")).train()
    images, targets = random_batch()
    losses = module.losses(as_float(images), targets)
    assert {name.removeprefix("mimic_") for name in losses if name.startswith("mimic_")} == terms


def test_trainer_takes_device_epochs_print_frequency_and_folder(composed, tmp_path):
    config = composed(
        "trainer.accelerator=cpu", "trainer.devices=2", "schedule.epochs=5", "trainer.log_every_n_steps=7",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    trainer = instantiate(config.trainer, logger=False)
    assert (trainer.max_epochs, trainer.log_every_n_steps, trainer.num_devices) == (5, 7, 2)
    assert Path(trainer.default_root_dir) == tmp_path
