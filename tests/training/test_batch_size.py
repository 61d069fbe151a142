"""The automatic batch size: the search, a memory that is too small, and runs without a GPU."""

import pytest
import torch
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.settings_of_run import comparable
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.batch_size import _device, _stored_batch_size, _trains, largest_batch_size


@pytest.mark.parametrize(
    ("first", "most", "room", "expected"), [(2, 100, 9, 8), (2, 100, 2, 2), (3, 100, 24, 24), (2, 5, 99, 4)]
)
def test_size_is_doubled_while_it_fits(first, most, room, expected):
    assert largest_batch_size(lambda size: size <= room, first, most) == expected


def test_memory_that_is_too_small_for_the_first_size_is_reported():
    with pytest.raises(LSHFMError, match="auto_batch_size: not even data.batch_size=2 fits"):
        largest_batch_size(lambda size: False, 2, 100)


class Exhausting(DetectionModule):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def losses(self, images, targets):
        raise self.error


def test_a_step_without_memory_does_not_fit_and_other_errors_are_raised(tmp_path):
    def trains(kind):
        module = kind(small_detector(STUDENTS[1]), short_schedule())
        return _trains(quiet_trainer(tmp_path, max_steps=1), module, RandomData(1))

    assert not trains(Exhausting)
    assert trains(DetectionModule)
    Broken = type("Broken", (Exhausting,), {"error": RuntimeError("sizes differ")})
    with pytest.raises(RuntimeError, match="sizes differ"):
        trains(Broken)


def test_cpu_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        LSHFMError, match="^auto_batch_size: needs a GPU, found the CPU; give data.batch_size=.+$"
    ):
        _device(quiet_trainer(tmp_path))


def test_resumed_run_has_the_size_of_its_checkpoint_and_may_be_asked_for_any(tmp_path):
    torch.save({"config": {"data": {"batch_size": 24}}}, tmp_path / "last.ckpt")
    assert _stored_batch_size(tmp_path / "last.ckpt") == 24
    torch.save({"config": {}}, tmp_path / "last.ckpt")
    with pytest.raises(LSHFMError, match="does not say its batch size"):
        _stored_batch_size(tmp_path / "last.ckpt")
    found, asked = ({"auto_batch_size": True, "data": {"batch_size": size}} for size in (24, 2))
    assert comparable(found) == comparable(asked)
    assert comparable({"data": {"batch_size": 2}}) == {"data.batch_size": 2}
