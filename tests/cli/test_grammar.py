"""Characters of Hydra's grammar are ordinary characters in a value that is a text."""

import shlex

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lshfm_pl.cli.grammar import for_shell, parsed, quote_texts, quoted
from lshfm_pl.paths import CONFIG_DIR

#: Characters that occur in file names and class names.
ODD = [
    "runs/epoch=3-step=100.ckpt", "my set (1)", "it's", "a&b", "C(small)", "#1", "~/data", "a{b}", "a}",
    "käse", "日本", "1e3", "1_000", "007", "true", "nan", "-5", 'say "x"', "a!b", "a;b", "`x`", "a<b>",
    "^", "a$b", "100%", "a@b", "a|b", "[old] set", "(1)", "a\\b", "Straße (Süd)/bild=1", "O'Neil's",
    "int(3)", "x: y", "R&D [2]", "a'b'c", "..", "*.jpg",
]  # fmt: skip


def value_of(command, argument, key):
    """The value that a command gets for an argument."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(command, overrides=quote_texts([argument]))
    for part in key.split("."):
        config = config[part]
    return config


def is_left_to_hydra(text):
    """Quotes, escapes, lists, sweeps and references keep their meaning."""
    return (
        text.strip() in ("", "null")
        or text.strip()[0] in "'\"[{"
        or "\\" in text
        or "${" in text
        or ("," in text and parsed(text) is not None)
        or (parsed(text) is not None and text != text.strip())
    )


@pytest.mark.parametrize("text", ODD)
def test_paths_are_read_as_they_are_typed(text):
    (argument,) = quote_texts([f"checkpoint={text}"])
    assert parsed(argument.removeprefix("checkpoint=")).value() in (text, parsed(quoted(text)).value())


@pytest.mark.parametrize(
    ("command", "key", "text"),
    [
        ("evaluate", "checkpoint", "runs/epoch=3-step=100.ckpt"),
        ("train", "data.root", "my set (1)"),
        ("train", "resume", "true"),
        ("predict", "images", "in/**/*(1).jpg"),
        ("report", "runs", "it's/100%"),
        ("train", "model.backbone_weights", "käse=1.pth"),
    ],
)
def test_command_gets_the_path_that_is_typed(command, key, text):
    needed = ["data=voc_folder"] if key.startswith("data.") else []
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(command, overrides=[*needed, *quote_texts([f"{key}={text}"])])
    for part in key.split("."):
        config = config[part]
    assert config == text


def test_class_names_are_read_as_they_are_typed():
    typed = "data.class_names=[null,1e3,true,a&b,it's,käse,C(small),'in, quotes',x=1,\"y\", N/A ,007]"
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        names = compose("train", overrides=["data=voc_folder", *quote_texts([typed])]).data.class_names
    assert list(names) == [
        "null", "1e3", "true", "a&b", "it's", "käse", "C(small)", "in, quotes", "x=1", "y", "N/A", "007",
    ]  # fmt: skip


def test_items_of_lists_and_named_checkpoints_need_no_quotes_of_their_own():
    (argument,) = quote_texts(["common=[data=voc_folder,data.root=/a (1),model.min_size=[1,2]]"])
    assert parsed(argument.removeprefix("common=")).value() == [
        "data=voc_folder",
        "data.root=/a (1)",
        "model.min_size=[1,2]",
    ]
    named = "checkpoints={teacher: a/epoch=3.ckpt, LSHL2 student: b (2).ckpt}"
    assert dict(value_of("visualize", named, "checkpoints")) == {
        "teacher": "a/epoch=3.ckpt",
        "LSHL2 student": "b (2).ckpt",
    }


def test_what_hydra_can_read_keeps_its_meaning(tmp_path, monkeypatch):
    kept = [
        "checkpoint=null", "checkpoint=", 'checkpoint="a b"', "data.root=${oc.env:HOME}/x", "data.root=x,y",
        "images=[a,b]", "seed=1e3", "model=a", "~distill.lsh", "+trainer.x=1", "--multirun", "hydra.run.dir=out",
        "'quoted'", "data.train_split=[a,b]",
    ]  # fmt: skip
    assert quote_texts(kept) == kept
    assert quote_texts(["data.root=${oc.env:HOME}/a (1)"]) == ['data.root="${oc.env:HOME}/a (1)"']
    assert quote_texts(["--config-dir", "a=b (1)"]) == ["--config-dir", "a=b (1)"]
    # These are several values, unless a folder has this name.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x,y").mkdir()
    assert quote_texts(["data.root=x,y"]) == ['data.root="x,y"']
    assert quote_texts(["--multirun", "data.root=x,y"]) == ["--multirun", "data.root=x,y"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
@example("${x}")
@example("\\${x}")
@example("a\\")
@example('\\"')
def test_any_text_can_be_quoted_and_pasted_into_a_shell(text):
    typed = shlex.split(for_shell(f"data.root={quoted(text)}"))
    assert len(typed) == 1
    assert quote_texts(typed) == typed
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = (
            compose("check_data", overrides=["data=voc_folder", *typed])
            if "\\" in text or "$" in text
            else None
        )
    found = parsed(typed[0].removeprefix("data.root=")).value() if config is None else config.data.root
    assert found == text


@settings(max_examples=500, deadline=None)
@given(
    st.text(st.sampled_from("ab1.e-_/ =(),[]{}'\"#~&:$!ä\\\t") | st.characters(codec="utf-8"), max_size=12)
)
def test_any_path_is_read_as_it_is_typed_but_for_what_hydra_means(text):
    if is_left_to_hydra(text) or "\n" in text or "\0" in text:
        return
    (argument,) = quote_texts([f"checkpoint={text}"])
    assert parsed(argument.removeprefix("checkpoint=")).value() == text
