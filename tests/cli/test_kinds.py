"""The allowed values are known for every key of every command."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf

from lshfm_pl.cli.kinds import KINDS, kind_of, kind_of_default
from lshfm_pl.cli.names import group_choices
from lshfm_pl.cli.ranges import AMONG_OTHERS, CHOICES, ITEM_RANGES, RANGES, choices_of, wrong_number
from lshfm_pl.cli.values import expand_home
from lshfm_pl.paths import CONFIG_DIR

GROUPS = ("data", "distill", "schedule")


def leaves(config, prefix=""):
    for key in config:
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
            yield from leaves(node, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", node


@pytest.fixture(scope="module")
def all_nodes():
    """(key, node) of every command, and of training with every choice."""
    lines = [(path.stem, []) for path in CONFIG_DIR.glob("*.yaml")]
    lines += [("train", [f"{group}={choice}"]) for group in GROUPS for choice in group_choices(group)]
    lines += [("train", [f"model={name}"]) for name in ("retinanet_resnet50fpn", "fasterrcnn_vgg16")]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return [
            found for command, overrides in lines for found in leaves(compose(command, overrides=overrides))
        ]


@pytest.fixture(scope="module")
def defaults(all_nodes):
    """(key, value) of those that have a value of their own."""
    found = []
    for key, node in all_nodes:
        if isinstance(node, ListConfig):
            found.append((key, OmegaConf.to_container(node)))
        elif not node._is_interpolation() and not node._is_missing():
            found.append((key, node._value()))
    return found


def test_every_default_is_of_the_kind_that_its_key_takes(defaults):
    wrong = [
        (key, value)
        for key, value in defaults
        if (kind := kind_of(key) or kind_of_default(value)) is not None and not kind.holds(value)
    ]
    assert wrong == []


#: Groups that are chosen, and not changed by key.
NO_VALUE = {"data", "debug", "experiment", "model"}


def test_kind_of_every_key_without_a_value_is_known(defaults):
    without = {key for key, value in defaults if value is None}
    assert {key for key in without if kind_of(key) is None} - NO_VALUE == set()


def test_every_listed_key_exists(all_nodes):
    keys = {key for key, _ in all_nodes} | {"hydra.run.dir", "hydra.sweep.dir"}
    parts = {key.rpartition(".")[2] for key in keys} | {"detector", "images"}
    assert [name for name in KINDS if name not in keys | parts and name != "callbacks.images"] == []
    for listed in (CHOICES, RANGES, ITEM_RANGES, AMONG_OTHERS):
        assert [name for name in listed if name not in keys | parts] == []


def test_choices_and_ranges_hold_every_default(defaults):
    for key, value in defaults:
        if choices_of(key) and isinstance(value, str):
            assert value in choices_of(key), key
        assert wrong_number(key, value) is None


def test_home_stands_for_the_tilde_in_paths_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = OmegaConf.create(
        {
            "data": {"root": "~/a", "class_names": ["~"]},
            "images": ["~/b", "c"],
            "checkpoints": {"teacher": "~/t.ckpt"},
            "role": "~",
            "resume": None,
        }
    )
    expand_home(config)
    assert OmegaConf.to_container(config) == {
        "data": {"root": "/home/me/a", "class_names": ["~"]},
        "images": ["/home/me/b", "c"],
        "checkpoints": {"teacher": "/home/me/t.ckpt"},
        "role": "~",
        "resume": None,
    }


def test_null_is_accepted_wherever_a_file_says_what_it_means():
    """Such a comment as `null: all` stands beside a key whose default is another value, too."""
    said = set()
    for path in (CONFIG_DIR / "distill").glob("*.yaml"):
        key = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            key = line.partition(":")[0] if line[:1].isalpha() else key if line.startswith(" ") else ""
            if key and "null: " in line.partition("#")[2]:
                said.add(key)
    assert {"levels", "reference_size", "until"} <= said
    refused = {key for key in said if (kind := kind_of(key)) is None or not kind.holds(None)}
    assert refused - {"balance"} == set()  # one of several texts
