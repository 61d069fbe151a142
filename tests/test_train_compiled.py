"""Trainings with `trainer.compile`: every family trains, and runs with and without it continue each other."""

import pytest
import torch
from detectors_over_timm import FAMILIES_OVER_TIMM, overrides_of, settings_of, write_teacher
from distilled_students import composed
from interruptions import Killed
from torch import nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.training.run import train

SMALL = (
    "data=shapes", "data.num_train=4", "data.num_val=2", "data.num_test=2", "data.batch_size=2",
    "model.min_size=[64]", "schedule=quickstart", "schedule.epochs=2", "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu", "distill.check_teacher=false", "data.num_workers=0",
)  # fmt: skip
"""Four steps of two images."""

STOP = "+callbacks.stop={_target_: interruptions.StopAt, batch: 2}"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def without_a_compiler(monkeypatch):
    """Bodies are traced as for the compiler, and then run by torch's own operations: no minutes of compiling."""
    calls = []

    def compile_without_backend(module, *args, **kwargs):
        calls.append(type(module).__name__)
        return original(module, *args, **kwargs, backend="eager")

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", compile_without_backend)
    monkeypatch.setattr("lshfm_pl.detectors.compiling._probe", lambda device: None)
    torch._dynamo.reset()
    yield calls
    torch._dynamo.reset()


def train_here(folder, data_root, family, teacher, *overrides):
    loss, settings = next(iter(settings_of(family).items()))
    chosen = [*overrides_of(family), f"distill={loss}", *settings, f"teacher.checkpoint={teacher}"]
    return train(composed(*chosen, *SMALL, f"data.root={data_root}", f"output_dir={folder}", *overrides))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", FAMILIES_OVER_TIMM)
def test_runs_with_and_without_compiled_bodies_continue_each_other(
    family, data_root, tmp_path, without_a_compiler
):
    teacher = write_teacher(tmp_path, family)
    ends = {}
    for first, then in ((False, False), (True, False), (False, True)):
        folder = tmp_path / f"{first}_{then}"
        with pytest.raises(Killed):
            train_here(folder, data_root, family, teacher, STOP, f"trainer.compile={first}")
        train_here(folder, data_root, family, teacher, "resume=auto", f"trainer.compile={then}")
        ends[first, then] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert len(without_a_compiler) == 4  # student and teacher of two of the six parts
    reference = ends.pop((False, False))
    for state in ends.values():
        assert state.keys() == reference.keys()
        for name, expected in reference.items():
            # Traced operations may be summed in another order.
            assert torch.allclose(state[name], expected, rtol=1e-3, atol=1e-4), name


def test_graphs_are_refused_on_the_cpu_before_anything_is_trained(data_root, tmp_path):
    teacher = write_teacher(tmp_path, "retinanet")
    with pytest.raises(LSHFMError, match="trainer.cuda_graphs: expected a CUDA device, found cpu"):
        train_here(tmp_path / "run", data_root, "retinanet", teacher, "trainer.cuda_graphs=true")
    assert not (tmp_path / "run" / "checkpoints").exists()
