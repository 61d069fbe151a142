"""Which implementation of the hash loss is used on which device, and how findings on a device are remembered."""

import os

import pytest
import torch

from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels import hash_choice
from lshfm_pl.kernels.hash_choice import memory_file, remember, uses_triton
from lshfm_pl.kernels.switches import override_switches, set_switches
from lshfm_pl.mimic import LSH

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def device_with_triton(tmp_path, monkeypatch):
    """A pretended CUDA device with Triton, and an empty cache folder; returns a dict with its key."""
    key = {"key": "device A"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hash_choice, "_is_installed", lambda: True)
    monkeypatch.setattr(hash_choice, "key_of_device", lambda device: key["key"])
    hash_choice._proven.cache_clear()
    yield key
    hash_choice._proven.cache_clear()


def test_auto_uses_triton_only_where_it_was_found_good(device_with_triton):
    assert not uses_triton("rows", GPU)
    remember(GPU, {"rows": True, "maps": False})
    assert uses_triton("rows", GPU)
    assert not uses_triton("maps", GPU)
    assert not uses_triton("rows", CPU)
    remember(GPU, {"rows": False, "maps": False})
    assert not uses_triton("rows", GPU)


def test_finding_does_not_count_for_another_device_or_version(device_with_triton):
    remember(GPU, {"rows": True})
    device_with_triton["key"] = "device B"
    hash_choice._proven.cache_clear()
    assert not uses_triton("rows", GPU)


def test_auto_uses_torch_in_the_deterministic_mode(device_with_triton):
    remember(GPU, {"rows": True})
    torch.use_deterministic_algorithms(True)
    try:
        assert not uses_triton("rows", GPU)
    finally:
        torch.use_deterministic_algorithms(False)


def test_auto_uses_torch_without_a_word_where_triton_is_missing(device_with_triton, monkeypatch):
    remember(GPU, {"rows": True})
    monkeypatch.setattr(hash_choice, "_is_installed", lambda: False)
    hash_choice._proven.cache_clear()
    assert not uses_triton("rows", GPU)


@pytest.mark.parametrize("content", ["", "[]", '{"device A": 1}', "[" * 100_000, None])
def test_damaged_file_of_findings_is_like_none(device_with_triton, content):
    memory_file().parent.mkdir(parents=True)
    if content is None:
        os.mkfifo(memory_file())
    else:
        memory_file().write_text(content)
    assert not uses_triton("rows", GPU)


def test_plain_never_uses_triton(device_with_triton):
    remember(GPU, {"rows": True})
    with override_switches(hash="plain"):
        assert not uses_triton("rows", GPU)


def test_triton_where_it_cannot_run_is_one_line(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    head = LSH(12, 20)
    with override_switches(hash="triton"):
        with pytest.raises(LSHFMError, match="kernels.hash=triton: expected a CUDA device and Triton, found"):
            head(torch.randn(3, 12), torch.randn(3, 12))
        maps = [torch.randn(1, 12 // 3, 4, 4)]
        with pytest.raises(LSHFMError, match="give kernels.hash=auto"):
            LSH(36, 20, point="pyramid")(maps, maps)
        monkeypatch.setattr(hash_choice, "_is_installed", lambda: False)
        with pytest.raises(LSHFMError, match="no Triton"):
            uses_triton("rows", GPU)


def test_settings_that_contradict_each_other_are_refused():
    with override_switches():
        with pytest.raises(LSHFMError, match="kernels.hash: expected auto, plain or triton, found True"):
            set_switches({"hash": True})
        with pytest.raises(LSHFMError, match="expected kernels.fused_hash_loss=true, found false"):
            set_switches({"hash": "triton", "fused_hash_loss": False})
