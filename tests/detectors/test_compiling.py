"""Compiled backbones train like uncompiled ones."""

import pytest
import torch
from small_detectors import STUDENTS, TEACHER_OF, as_float, random_batch, small_detector

from lshfm_pl.detectors import compiling
from lshfm_pl.detectors.compiling import compile_backbones
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import build_losses
from lshfm_pl.training import DistillationModule


def module_of(student):
    """Detectors in float64, because in float32 the order of summation changes the sign at some ReLUs."""
    teacher = small_detector(TEACHER_OF[student], seed=1).double()
    losses = build_losses("lshl2", teacher, num_hashes=64)
    return DistillationModule(small_detector(student).double(), teacher, losses).train()


def losses_and_gradients(module, batch):
    torch.manual_seed(0)
    images, targets = batch
    losses = module.losses([image.double() for image in as_float(images)], targets)
    module.zero_grad()
    sum(losses.values()).backward()
    gradient = torch.cat(
        [value.grad.flatten() for value in module.detector.parameters() if value.grad is not None]
    )
    return {name: loss.item() for name, loss in losses.items()}, gradient


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("student", STUDENTS)
def test_losses_gradients_and_names_of_tensors_are_the_same(student):
    plain, compiled = module_of(student), module_of(student)
    try:
        compile_backbones(compiled.detector, compiled.teacher, device=torch.device("cpu"))
    except LSHFMError as error:
        pytest.skip(str(error))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for seed in range(2):
        images, targets = random_batch(seed)
        # A different size each time; the boxes lie within the smaller one.
        images = [image[:, :, : 128 - 8 * seed] for image in images]
        targets = [{**target, "boxes": target["boxes"].clamp(max=118)} for target in targets]
        (expected, gradient), (found, other) = (
            losses_and_gradients(module, (images, targets)) for module in (plain, compiled)
        )
        assert found == pytest.approx(expected, rel=1e-6)
        assert 0 < (other - gradient).norm() < 1e-6 * gradient.norm()


def test_want_of_a_compiler_is_reported_in_one_line(monkeypatch):
    def fail(device):
        raise RuntimeError("no working C++ compiler\nand much more")

    monkeypatch.setattr(compiling, "_probe", fail)
    with pytest.raises(LSHFMError, match="trainer.compile: torch.compile does not work here") as caught:
        compile_backbones(small_detector(STUDENTS[0]), device=torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert "RuntimeError: no working C++ compiler" in str(caught.value)
