import argparse
import io
import os
import pickle

import pytest
import torch

from lshfm_pl.detectors.torch_files import UnsafeFileError, read_torch_file
from lshfm_pl.errors import LSHFMError


class RunsACommand:
    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


@pytest.mark.parametrize("zip_file", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, zip_file):
    path, witness = tmp_path / "evil.ckpt", tmp_path / "witness"
    torch.save({"model": RunsACommand(witness)}, path, _use_new_zipfile_serialization=zip_file)
    message = r"evil\.ckpt: holds \w+\.mkdir, expected tensors and plain values only\. .* was not loaded\.$"
    with pytest.raises(UnsafeFileError, match=message):
        read_torch_file(path, allowed_types=[argparse.Namespace])
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()


def test_only_the_types_that_are_allowed_are_rebuilt(tmp_path):
    path = tmp_path / "args.ckpt"
    torch.save({"args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(UnsafeFileError, match=r"holds argparse\.Namespace"):
        read_torch_file(path)
    assert read_torch_file(path, allowed_types=[argparse.Namespace])["args"].lr == 0.1
    with pytest.raises(UnsafeFileError):
        read_torch_file(path)


def saved_bytes():
    buffer = io.BytesIO()
    torch.save({"weight": torch.rand(1000)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>404</html>\n" * 9,
        saved_bytes()[:2000],
        saved_bytes()[:300] + bytes(900),
        pickle.dumps([1], protocol=2),
    ],
    ids=["empty", "page", "truncated", "overwritten", "pickle"],
)
def test_broken_files_are_told_in_one_line(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(
        LSHFMError, match=rf"broken\.ckpt: not a whole file of torch\.save \({len(content)} bytes"
    ):
        read_torch_file(path)


def test_missing_files_and_folders_are_told(tmp_path):
    with pytest.raises(LSHFMError, match=r"none\.ckpt: expected a file of weights, found nothing"):
        read_torch_file(tmp_path / "none.ckpt")
    with pytest.raises(LSHFMError, match="expected a file of weights, found a folder"):
        read_torch_file(tmp_path)
