"""Rows of a table can be chosen like the files of a group."""

import copy

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.config_tables import pairs, registered
from lshfm_pl.cli.names import close_choices, group_choices


def composed(*overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train", overrides=["output_dir=x", *overrides])


def test_every_pair_is_of_detectors_that_have_files():
    models = group_choices("model")
    for student, pair in pairs().items():
        assert {student, pair["teacher"]} <= set(models)
        assert composed(f"model={student}").teacher.detector.name == pair["teacher"]


def test_lines_and_files_are_offered_together():
    experiments = group_choices("experiment")
    assert {"quickstart", "coco2017_24e_retinanet_vgg11fpn_vgg16fpn_lsh"} <= set(experiments)
    assert set(registered("experiment")) < set(experiments)
    assert close_choices("coco2017_24e_retinanet_vgg11fpn_vgg16_lsh", experiments)[0] == (
        "coco2017_24e_retinanet_vgg11fpn_vgg16fpn_lsh"
    )


def test_a_file_of_a_users_own_may_add_a_pair(tmp_path):
    (tmp_path / "teacher_of").mkdir()
    (tmp_path / "teacher_of/retinanet_resnet34fpn.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - /model@teacher.detector: fasterrcnn_resnet101fpn\n"
        "teacher:\n  checkpoint: mine.ckpt\n"
    )
    teacher = composed("model=retinanet_resnet34fpn", f"hydra.searchpath=[file://{tmp_path}]").teacher
    assert (teacher.detector.name, teacher.checkpoint) == ("fasterrcnn_resnet101fpn", "mine.ckpt")


def test_lines_are_not_copied_for_each_group_that_is_listed_and_yet_stay_as_they_are():
    assert (
        copy.deepcopy(ConfigStore.instance()) is ConfigStore.instance()
    )  # the listing of --help took five seconds
    experiment = "experiment=coco2017_24e_retinanet_resnet50fpn_resnet101fpn_l2"
    assert composed(experiment, "distill.beta=3").distill.beta == 3
    assert composed(experiment).distill.beta == 7
