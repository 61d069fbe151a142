"""Settings of a training that only change its speed."""

import pytest
import torch
from omegaconf import OmegaConf

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.settings_of_run import comparable, differing_keys
from lshfm_pl.training import faster
from lshfm_pl.training.faster import make_faster, refuse_unfit_graphs

CPU = torch.device("cpu")


def config_of(*, loss="l2", sizes=(64,), **trainer):
    model = {"min_size": None if sizes is None else list(sizes)}
    return OmegaConf.create({"trainer": trainer, "distill": {"name": loss}, "model": model})


@pytest.mark.parametrize(
    ("settings", "compiled", "captured"),
    [
        ({}, [], []),  # as in configs of older runs
        ({"compile": True}, ["student", "teacher"], []),
        ({"cuda_graphs": True}, [], ["teacher"]),
        ({"compile": True, "cuda_graphs": True}, ["student"], ["teacher"]),
    ],
)
def test_each_network_is_compiled_or_captured(settings, compiled, captured, monkeypatch):
    found = {"compiled": [], "captured": []}
    monkeypatch.setattr(faster, "compile_backbones", lambda *names, device: found["compiled"].extend(names))
    monkeypatch.setattr(faster, "capture_backbone", lambda name, device: found["captured"].append(name))
    make_faster(config_of(**settings), "student", "teacher", CPU)
    assert found == {"compiled": compiled, "captured": captured}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "none"},
            "trainer.cuda_graphs: expected a loss, whose teacher is captured, found distill=none",
        ),
        ({"sizes": (48, 64)}, r"found 2 in model.min_size; give for example model.min_size=\[64\]"),
    ],
)
def test_graphs_of_nothing_or_of_many_sizes_are_refused_in_one_line(changes, message):
    with pytest.raises(LSHFMError, match=message) as caught:
        refuse_unfit_graphs(config_of(cuda_graphs=True, **changes))
    assert "\n" not in str(caught.value)
    refuse_unfit_graphs(config_of(**changes))
    refuse_unfit_graphs(config_of(cuda_graphs=True))
    refuse_unfit_graphs(config_of(cuda_graphs=True, sizes=None))


@pytest.mark.parametrize(
    "saved", [{"trainer": {"compile": True, "cuda_graphs": True}}, {"compile": True, "trainer": {}}]
)
def test_runs_with_and_without_are_continued_by_each_other(saved):
    wanted = {"trainer": {"compile": False, "cuda_graphs": False}}
    assert differing_keys(comparable(saved), comparable(wanted)) == []
