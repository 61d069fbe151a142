"""Every config file composes, and its objects can be built."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from small_detectors import STUDENTS, small_detector

from lshfm_pl.cli import CONFIG_DIR, inputs
from lshfm_pl.cli.inputs import refuse_lost_settings
from lshfm_pl.cli.names import group_choices
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import KD, build_losses
from lshfm_pl.training.optim import Schedule

OVERRIDES = ["output_dir=/tmp/run", "data.root=/tmp/data"]
FURTHER_NEEDS = {"data=coco_json": ["data.val_annotations=val.json", "data.val_images=val"]}
GROUPS = {
    path.name: group_choices(path.name)
    for path in CONFIG_DIR.iterdir()
    if path.is_dir() and path.name != "hydra"
}
COMMANDS = {
    "train": [],
    "benchmark": ["output_dir=x"],
    "evaluate": ["checkpoint=x.ckpt", "output_dir=x"],
    "export": ["checkpoint=x.ckpt", "output_dir=x"],
    "check_data": ["data=voc_folder", "data.root=x"],
    "compare": [],
    "import_checkpoint": ["dst=x.ckpt"],
    "visualize": ["output_dir=x"],
    "predict": ["checkpoint=x.ckpt", "images=x", "output_dir=x"],
    "report": ["runs=x"],
    "replay": ["file=step.json"],
    "selfcheck": ["output_dir=x"],
}


def composed(*overrides, name="train", needs=OVERRIDES):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(name, overrides=[*needs, *overrides])


def test_every_file_belongs_to_a_tested_group_or_command():
    assert {path.stem for path in CONFIG_DIR.glob("*.yaml")} == set(COMMANDS)
    assert set(GROUPS) == {
        "augment", "callbacks", "data", "debug", "distill", "experiment", "fit", "kernels", "logger", "model",
        "run_folder", "schedule", "teacher_of", "trainer",
    }  # fmt: skip
    assert all(GROUPS.values())
    nested = [path for path in CONFIG_DIR.rglob("*.yaml") if len(path.relative_to(CONFIG_DIR).parts) > 2]
    assert {path.relative_to(CONFIG_DIR).as_posix() for path in nested} == {
        "hydra/help/command.yaml",
        "hydra/hydra_logging/command.yaml",
        "hydra/job_logging/command.yaml",
        "hydra/launcher/slurm.yaml",
    }


def test_slurm_launcher_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="comes with the extra slurm")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        launcher = compose(
            "train", ["hydra/launcher=slurm", *OVERRIDES], return_hydra_config=True
        ).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.tasks_per_node, launcher.max_num_timeout) == (4, 10)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command):
    needs = OVERRIDES if command == "train" else COMMANDS[command]
    OmegaConf.resolve(composed(name=command, needs=needs))
    assert composed("debug=traceback", name=command, needs=needs).debug == "traceback"


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group in sorted(GROUPS)
        if group not in ("teacher_of", "run_folder", "fit")
        for name in GROUPS[group]
    ],
)
def test_every_file_of_a_group_composes_and_resolves(group, name):
    config = composed(f"{group}={name}", *FURTHER_NEEDS.get(f"{group}={name}", []))
    OmegaConf.resolve(config)
    assert OmegaConf.missing_keys(config) == set()


@pytest.mark.parametrize("student", GROUPS["teacher_of"])
def test_every_teacher_follows_its_student(student):
    config = composed(f"model={student}", "distill=lshl2")
    assert config.teacher.detector.architecture == config.model.architecture
    assert config.teacher.detector.name != config.model.name
    assert config.teacher.detector.get("fpn_channels") == config.model.get("fpn_channels")


def test_published_pairs_have_their_teachers_and_files():
    pairs = {
        "fasterrcnn_resnet50fpn": ("fasterrcnn_resnet101fpn", "voc0712_fasterrcnn_r101_83.6.ckpt"),
        "fasterrcnn_vgg11fpn": ("fasterrcnn_vgg16fpn", "voc0712_fasterrcnn_vgg16fpn_79.0.ckpt"),
        "retinanet_resnet50fpn": ("retinanet_resnet101fpn", "voc0712_retinanet_r101_83.0.ckpt"),
        "retinanet_vgg11fpn": ("retinanet_vgg16fpn", "voc0712_retinanet_vgg16fpn_76.6.ckpt"),
    }
    for student, (teacher, file) in pairs.items():
        config = composed(f"model={student}")
        assert config.teacher.detector.name == teacher
        assert config.teacher.checkpoint == f"pretrained/{file}"


def test_pairs_without_a_published_file_have_their_teachers_too():
    pairs = {
        "fasterrcnn_vgg11": "fasterrcnn_vgg16",
        "fasterrcnn_vgg11bnfpn": "fasterrcnn_vgg16bnfpn",
        "retinanet_vgg11bnfpn": "retinanet_vgg16bnfpn",
        "fasterrcnn_resnet50c4": "fasterrcnn_resnet101c4",
        "fasterrcnn_vgg11bnfpn_tiny": "fasterrcnn_vgg16bnfpn_small",
        "retinanet_vgg11bnfpn_tiny": "retinanet_vgg16bnfpn_small",
    }
    for student, teacher in pairs.items():
        config = composed(f"model={student}").teacher
        assert (config.detector.name, config.checkpoint) == (teacher, None)


def test_teacher_can_be_chosen_on_the_command_line():
    config = composed("model=retinanet_vgg11fpn", "model@teacher.detector=retinanet_resnet101fpn")
    assert config.teacher.detector.name == "retinanet_resnet101fpn"
    config = composed("model=retinanet_resnet18fpn", "+model@teacher.detector=retinanet_resnet34fpn")
    assert config.teacher.detector.name == "retinanet_resnet34fpn"


def test_student_without_a_published_teacher_has_none():
    config = composed("model=fasterrcnn_resnet34fpn")
    assert config.teacher.detector is None
    assert config.teacher.checkpoint is None


@pytest.mark.parametrize("model", ["fasterrcnn_resnet50fpn", "retinanet_resnet50fpn"])
def test_fine_tuning_is_short_and_its_rate_rises_and_ends_at_nothing(model):
    config = composed(f"model={model}", "schedule=finetune", "model.weights=COCO_V1")
    schedule = Schedule(**OmegaConf.to_container(config.schedule, resolve=True))
    assert schedule.epochs < 24
    steps = 50
    rates = [schedule.factor(step, steps) * schedule.scaled_lr(8) for step in range(schedule.epochs * steps)]
    assert rates[0] < 1e-6
    assert max(rates) == pytest.approx(5e-4, rel=0.02)
    assert rates.index(max(rates)) < steps
    assert rates[-1] < 1e-6


@pytest.mark.parametrize(("model", "lr"), [("fasterrcnn_vgg11fpn", 0.01), ("retinanet_vgg11fpn", 0.005)])
def test_published_schedule(model, lr):
    settings = OmegaConf.to_container(composed(f"model={model}").schedule, resolve=True)
    schedule = Schedule(**settings)
    assert (schedule.epochs, list(schedule.milestones), schedule.gamma) == (24, [18, 22], 0.1)
    assert (schedule.warmup_steps, schedule.warmup_factor) == (1000, 0.001)
    assert schedule.scaled_lr(4 * 2) == lr
    assert schedule.optimizer == {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
    assert Schedule(**OmegaConf.to_container(composed("schedule.lr=0.3").schedule, resolve=True)).lr == 0.3


@pytest.mark.parametrize("name", [name for name in GROUPS["distill"] if name != "none"])
@pytest.mark.parametrize("detector", STUDENTS)
def test_every_distill_file_makes_its_losses(name, detector):
    config = composed(f"distill={name}", f"model={detector}")
    settings = OmegaConf.to_container(config.distill, resolve=True)
    assert settings["check_teacher"] is True
    losses = {
        key: term.loss
        for key, term in build_losses(settings.pop("name"), small_detector(detector), **settings).named()
    }
    if name == "kd":
        expected = (1, 2) if detector.startswith("fasterrcnn") else (0.3, 1)
        assert list(losses) == ["kd"]
        assert (losses["kd"].beta, losses["kd"].temperature) == expected
        return
    if name not in ("l2", "lsh", "lshl2"):
        assert list(losses) == [name]
        return
    expected = {"l2": {"l2": 4}, "lsh": {"lsh": 7}, "lshl2": {"l2": 4 * 1, "lsh": 4 * 5}}[name]
    assert {key: loss.beta for key, loss in losses.items()} == expected
    if name != "l2":
        hashes, features = losses["lsh"].weight.shape
        assert hashes == 4 * features
        assert losses["lsh"].hash_loss == "bce"
        assert losses["lsh"].calibration_images == 0


FGD = {"reference_size": [800, 1333], "temperature": 0.5, "levels": 5, "beta": 1}
FGD_WEIGHTS = ("foreground_weight", "background_weight", "attention_weight", "relation_weight")
MGD = {"reference_size": [800, 1333], "levels": 5, "beta": 2e-5, "masked_share": 0.65}
PUBLISHED = {
    ("pkd", "retinanet"): {"beta": 10, "levels": 4},
    ("pkd", "fcos"): {"beta": 10, "levels": 4},
    ("pkd", "fasterrcnn"): {"beta": 6, "levels": 4},
    ("cwd", "retinanet"): {"beta": 10, "levels": 5, "temperature": 1},
    ("cwd", "fasterrcnn"): {"beta": 10, "levels": 5, "temperature": 1},
    ("fgd", "retinanet"): {**FGD, **dict(zip(FGD_WEIGHTS, (1e-3, 5e-4, 5e-4, 5e-6), strict=True))},
    ("fgd", "fasterrcnn"): {
        **FGD,
        "levels": 4,
        **dict(zip(FGD_WEIGHTS, (5e-5, 2.5e-5, 5e-5, 5e-7), strict=True)),
    },
    ("fgd", "fcos"): {
        **FGD,
        "temperature": 0.8,
        **dict(zip(FGD_WEIGHTS, (1.6e-3, 8e-4, 8e-4, 8e-6), strict=True)),
    },
    ("mgd", "retinanet"): MGD,
    ("mgd", "fasterrcnn"): {**MGD, "levels": 4, "beta": 5e-7, "masked_share": 0.45},
}
"""Loss and family → the settings of the papers' code for images of 800 × 1333 pixels."""


OF_SHAPES = {"balance": "fixed", "share": None, "match_scale": False}
OF_VALUES = {"balance": "share", "share": 0.5, "match_scale": True}
"""How weights are set by default, for losses that compare the form of maps, and for those that compare values."""


@pytest.mark.parametrize(("loss", "family"), PUBLISHED)
def test_losses_on_maps_have_the_published_settings_of_the_family(loss, family):
    config = composed(f"distill={loss}", f"model={family}_resnet50fpn")
    settings = OmegaConf.to_container(config.distill, resolve=True)
    expected = {
        "name": loss,
        "check_teacher": True,
        "warmup_steps": 0,
        "until": None,
        "decay_from": None,
        **(OF_VALUES if loss in ("fgd", "mgd") else OF_SHAPES),
        **({"scale_weight": 1} if loss == "pkd" else {}),  # published: none
        **PUBLISHED[loss, family],
    }
    of_balance = {"_target_", "balance_rule", "pseudo_labels"}
    assert {key: settings[key] for key in settings if key not in of_balance} == expected


@pytest.mark.parametrize(
    ("key", "typed", "meant"),
    [
        ("balance_rule", "balance_rule.share=0.3", r"distill.balance_rule.<key>=…"),
        ("pseudo_labels", "pseudo_labels.score=0.5", r"distill.pseudo_labels.<key>=…"),
        ("check_teacher", "check_teacher=false", r"distill.check_teacher=…"),
    ],
)
def test_setting_of_all_losses_among_those_of_one_is_refused(key, typed, meant):
    losses = (
        "distill=_sum",
        "distill.name=pkd+mgd",
        "+distill@distill.terms.pkd=pkd",
        "+distill@distill.terms.mgd=mgd",
    )
    refuse_lost_settings(composed(*losses, "distill.terms.pkd.share=0.3", "distill.balance_rule.share=0.3"))
    with pytest.raises(LSHFMError, match=rf"^distill.terms.mgd.{key}: .* all losses together: give {meant}"):
        refuse_lost_settings(composed(*losses, f"distill.terms.mgd.{typed}"))


def test_sum_that_nobody_has_changed_is_not_composed_again(monkeypatch):
    monkeypatch.setattr(inputs, "composed", None)
    losses = ("distill=_sum", "distill.name=pkd+mgd", "+distill@distill.terms.pkd=pkd")
    refuse_lost_settings(composed(*losses, "distill.terms.pkd.share=0.3"))


def test_logit_loss_is_added_to_a_feature_loss():
    overrides = ("distill=lshl2", "distill.kd_beta=0.5", "distill.temperature=4")
    settings = OmegaConf.to_container(composed(*overrides).distill, resolve=True)
    terms = build_losses(settings.pop("name"), small_detector(STUDENTS[1]), **settings)
    assert list(terms) == ["l2", "lsh", "kd"]
    kd = terms["kd"].loss
    assert isinstance(kd, KD)
    assert (kd.beta, kd.temperature, kd.activation) == (0.5, 4, "sigmoid")


@pytest.mark.parametrize("name", GROUPS["schedule"])
def test_every_schedule_file_makes_a_schedule(name):
    Schedule(**OmegaConf.to_container(composed(f"schedule={name}").schedule, resolve=True))


@pytest.mark.parametrize("name", GROUPS["data"])
def test_every_data_file_makes_a_data_module(name):
    datamodule = instantiate(composed(f"data={name}", *FURTHER_NEEDS.get(f"data={name}", [])).data)
    assert datamodule.batch_size in (2, 8)


def test_trainer_callbacks_and_loggers_are_made(tmp_path):
    config = composed(f"output_dir={tmp_path}", "trainer.accelerator=cpu")
    loggers = [instantiate(logger) for logger in config.logger.values()]
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
    assert trainer.max_epochs == 24
    assert Path(loggers[1].log_dir) == tmp_path


@pytest.mark.parametrize(
    "override",
    ["distill.betta=1", "schedule.learning_rate=1", "model.fpn_chanels=1", "data.rooot=x", "distill=l3"],
)
def test_wrong_keys_and_choices_are_refused(override):
    with pytest.raises(Exception, match=r"betta|learning_rate|fpn_chanels|rooot|l3"):
        composed("distill=l2", override)
