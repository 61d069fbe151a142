import argparse
import copy
import hashlib
import io
import os
import zipfile

import pytest
import torch

from lshfm_pl.detectors import torch_files
from lshfm_pl.detectors.torch_files import UnsafeFileError, download_torch_file, read_torch_file
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
    message = r"evil\.ckpt: holds \w+\.mkdir, expected tensors and plain values only\. .* was not loaded\."
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
    [saved_bytes()[:2000], saved_bytes()[:300] + bytes(900)],
    ids=["truncated", "overwritten"],
)
def test_broken_files_are_reported_in_one_line(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(
        LSHFMError, match=rf"broken\.ckpt: not a whole file of torch\.save \({len(content)} bytes"
    ):
        read_torch_file(path)


def test_missing_files_and_folders_are_reported(tmp_path):
    with pytest.raises(LSHFMError, match=r"none\.ckpt: expected a file of weights, found nothing"):
        read_torch_file(tmp_path / "none.ckpt")
    with pytest.raises(LSHFMError, match="expected a file of weights, found a folder"):
        read_torch_file(tmp_path)


# Files that would exhaust the memory


def rewritten(path, change=lambda name, data: data, *, compression=zipfile.ZIP_STORED, before_the_end=None):
    """The zip file with changed entries and a changed table of contents."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, change(name, data))
        if before_the_end is not None:
            before_the_end(archive)


def with_pickle(path, pickled):
    torch.save({}, path)
    rewritten(path, lambda name, data: pickled if name.endswith("data.pkl") else data)


def compressed(path):
    torch.save({"weight": torch.zeros(2**20)}, path)
    rewritten(path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20 / 100


def same_bytes_a_hundred_times(path):
    torch.save({"weight": torch.zeros(1000)}, path)

    def list_again(archive):
        (info,) = (info for info in archive.filelist if info.filename.endswith("data/0"))
        for number in range(100):
            again = copy.copy(info)
            again.filename = f"{info.filename}{number}"
            archive.filelist.append(again)

    rewritten(path, before_the_end=list_again)


TEN, MANY = b"K\n", b"K\xff"
"""The pickled number of elements of a tensor of ten, and 255 instead."""


def more_elements_than_bytes(path):
    torch.save({"weight": torch.zeros(10)}, path)
    rewritten(path, lambda name, data: data.replace(TEN, MANY) if name.endswith("data.pkl") else data)


def more_elements_than_bytes_in_the_older_format(path):
    torch.save({"weight": torch.zeros(10, dtype=torch.float64)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(TEN, MANY))


def repeated_element(path):
    torch.save({"weight": torch.zeros(()).expand(2**20, 2**20)}, path)


def sparse(path):
    indices = torch.zeros(1, 0, dtype=torch.int64)
    torch.save({"weight": torch.sparse_coo_tensor(indices, torch.zeros(0), (2**40,))}, path)


def nested(path):
    torch.save(torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), path)


def without_storage(path):
    torch.save({"deep": [{"weight": torch.empty(2**40, device="meta")}]}, path)


def empty_array(path):
    with_pickle(path, b"\x80\x02cbuiltins\nbytearray\nI1000000000000\n\x85R.")


def empty_tensor(path):
    with_pickle(path, b"\x80\x02ctorch\nFloatTensor\nI1000000000000\n\x85R.")


ABSURD = {
    compressed: "holds compressed entries",
    same_bytes_a_hundred_times: r"has \d{4,5} bytes and says that 4\d{5} are in it",
    more_elements_than_bytes: "a tensor says that it has 1020 bytes, 40 are there",
    more_elements_than_bytes_in_the_older_format: r"its tensors say that they have 2040 bytes, the whole file has",
    repeated_element: "its tensors repeat their elements, 4398046511100 bytes of them",
    sparse: "holds a tensor .* without elements of its own",
    nested: "holds a nested tensor",
    without_storage: "holds a tensor .* without elements of its own",
    empty_array: "asks for an empty bytearray of 1000000000000",
    empty_tensor: "asks for an empty FloatTensor of 1000000000000",
}


@pytest.mark.parametrize("make", ABSURD, ids=lambda make: make.__name__)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*invariant")
def test_files_that_would_fill_the_memory_are_refused(tmp_path, make):
    path = tmp_path / "bomb.ckpt"
    make(path)
    message = rf"bomb\.ckpt: {ABSURD[make]}.*; no file of weights does that\. It was not loaded\.$"
    with pytest.raises(UnsafeFileError, match=message) as caught:
        read_torch_file(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_pickle_of_many_megabytes_is_refused(tmp_path, monkeypatch):
    torch.save({"names": "x" * 3000}, tmp_path / "names.ckpt")
    read_torch_file(tmp_path / "names.ckpt")
    monkeypatch.setattr(torch_files, "_LARGEST_PICKLE", 2999)
    with pytest.raises(UnsafeFileError, match=r"its data\.pkl has 3\d{3} bytes, above 2999"):
        read_torch_file(tmp_path / "names.ckpt")


def test_a_memo_of_billions_takes_no_memory(tmp_path):
    with_pickle(tmp_path / "memo.ckpt", b"\x80\x02}r\xff\xff\xff\x7f.")
    assert read_torch_file(tmp_path / "memo.ckpt") == {}


@pytest.mark.parametrize("zip_file", [True, False])
def test_what_training_saves_passes(tmp_path, zip_file):
    weight = torch.nn.Parameter(torch.rand(6, 4))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    halves = {
        dtype: torch.ones(5, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool)
    }
    content = {
        "state": optimizer.state_dict(),
        "views": [weight.detach()[2:], weight.detach().T, torch.zeros(0, 4)],
        "rng": torch.get_rng_state(),
        "kinds": list(halves.values()),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "complex": torch.ones(3, dtype=torch.complex64),
        "bytes": bytearray(b"abc"),
    }
    if not zip_file:
        del content["float8"]
    path = tmp_path / "state.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zip_file)
    found = read_torch_file(path)
    assert torch.equal(found["views"][1], content["views"][1])
    assert [value.dtype for value in found["kinds"]] == list(halves)
    assert torch.equal(found["state"]["state"][0]["exp_avg"], content["state"]["state"][0]["exp_avg"])


# Downloads


def served(monkeypatch, tmp_path, content):
    """Replaces the network: every URL returns `content`, whose hash is not checked."""
    asked = []

    def fetch(url, path, hash_prefix):
        asked.append((url, hash_prefix))
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(content)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    return asked


def download(name, check_hash=True):
    return download_torch_file(
        f"https://host.example/{name}", check_hash=check_hash, key="weights", advice="Stop."
    )


def test_a_download_is_checked_by_its_name_and_kept(monkeypatch, tmp_path):
    content = saved_bytes()
    prefix = hashlib.sha256(content).hexdigest()[:8]
    asked = served(monkeypatch, tmp_path, content)
    for _ in range(2):
        assert download(f"model-{prefix}.pth")["weight"].shape == (1000,)
    assert asked == [(f"https://host.example/model-{prefix}.pth", prefix)]


def test_a_file_in_the_cache_that_is_another_is_refused(monkeypatch, tmp_path):
    served(monkeypatch, tmp_path, saved_bytes())
    message = (
        r"^weights: .*model-01234567\.pth is not the file of https://host\.example.* begin with 01234567"
    )
    with pytest.raises(LSHFMError, match=message):
        download("model-01234567.pth")
    assert download("model-01234567.pth", check_hash=False)["weight"].shape == (1000,)


def test_files_of_one_name_from_two_addresses_are_kept_apart(monkeypatch, tmp_path):
    fetched = []

    def fetch(url, path, hash_prefix):
        fetched.append(url)
        torch.save({"from": url}, path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    addresses = ["mine/weights.pth", "yours/weights.pth", "file?name=mine", "file?name=yours", ""]
    for _ in range(2):
        for address in addresses:
            assert download(address, check_hash=False) == {"from": f"https://host.example/{address}"}
    assert len(fetched) == len(addresses)
    assert len(list((tmp_path / "hub" / "checkpoints").glob("*-weights.pth"))) == 2


def test_a_downloaded_payload_is_refused_too(monkeypatch, tmp_path):
    buffer = io.BytesIO()
    torch.save(RunsACommand(tmp_path / "witness"), buffer)
    served(monkeypatch, tmp_path, buffer.getvalue())
    with pytest.raises(UnsafeFileError, match="expected tensors and plain values only"):
        download("model.pth", check_hash=False)
    assert not (tmp_path / "witness").exists()
