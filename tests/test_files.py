"""Files that are not what they seem; and all files are written atomically."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lshfm_pl
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import fitting_file_name, open_regular, read_bytes, write_atomically


def test_a_regular_file_is_read_through_a_link_up_to_the_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("a")
    assert read_bytes(tmp_path / "b", limit=5, root=tmp_path) == b"12345"
    with open_regular(tmp_path / "a") as stream:
        assert stream.read(2) == b"12"
    with pytest.raises(LSHFMError, match="expected at most 4 bytes, found 5 bytes"):
        read_bytes(tmp_path / "a", limit=4)


def test_a_file_without_a_size_is_read_up_to_the_limit():
    with pytest.raises(LSHFMError, match="expected at most 10 bytes, found more"):
        read_bytes("/proc/self/status", limit=10)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    with pytest.raises(LSHFMError, match="expected a regular file, found a (named pipe|device|folder)"):
        read_bytes(path, limit=100)


@pytest.mark.parametrize("through", ["file", "folder"])
def test_a_link_out_of_the_root_is_not_followed(tmp_path, through):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a").write_text("s")
    root = tmp_path / "root"
    root.mkdir()
    if through == "file":
        (root / "a").symlink_to(tmp_path / "secret" / "a")
        path = root / "a"
    else:
        (root / "x").symlink_to(tmp_path / "secret")
        path = root / "x" / "a"
    with pytest.raises(LSHFMError, match="a link that leads out of it"):
        read_bytes(path, limit=100, root=root)


@pytest.mark.parametrize("name", ["a" * 6000, "a\0b", "a\ud800", "missing"])
def test_a_name_that_no_file_has_is_reported_in_a_line(tmp_path, name):
    with pytest.raises(LSHFMError, match="cannot be read: ") as told:
        read_bytes(tmp_path / name, limit=100)
    assert len(str(told.value)) < 400
    assert "\n" not in str(told.value)
    str(told.value).encode()


def test_a_loop_of_links_is_reported_in_a_line(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(LSHFMError, match="cannot be read: "):
        read_bytes(tmp_path / "a", limit=100)


def test_room_is_made_for_what_a_file_has_and_not_for_what_it_may_have(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12")
    # More than any machine has.
    assert read_bytes(path, limit=2**60) == b"12"
    assert read_bytes("/proc/self/cmdline", limit=2**60)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "x"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(FileExistsError, match="there is a (named pipe|folder) of this name"):
        write_atomically(path, b"1")
    assert not path.is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_name_that_is_too_long_is_cut_and_stays_its_own(tmp_path):
    names = ["a/" + "ü" * 125 + end for end in ("1.jpg", "2.jpg")]
    fitting = [fitting_file_name(name, ".png") for name in names]
    assert len(set(fitting)) == 2
    for name in fitting:
        assert name.startswith("a/ü")
        assert name.endswith(".png")
        write_atomically(tmp_path / name, b"")
    assert fitting_file_name("b/c.jpg", ".png") == "b/c.jpg.png"
    assert fitting_file_name("c.jpg", ".png") == "c.jpg.png"


USES_TEMPORARY = """
import os, signal, sys, time
from pathlib import Path
from lshfm_pl.files import atomic_file, temporary_folder
from lshfm_pl.signals import exit_on_signals

exit_on_signals()
parent = Path(sys.argv[1])
with temporary_folder("x", parent) as folder, atomic_file(parent / "whole") as file:
    (folder / "a").write_text("1")
    if sys.argv[2] == "in a fork":
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        os.waitpid(child, 0)
        assert (folder / "a").is_file() and file.is_file()
    else:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
"""


@pytest.mark.parametrize("where", ["in its process", "in a fork"])
def test_temporary_files_and_folders_end_with_the_process_that_made_them(tmp_path, where):
    done = subprocess.run([sys.executable, "-c", USES_TEMPORARY, tmp_path, where], timeout=100, check=False)
    is_here = where == "in its process"
    assert done.returncode == (128 + signal.SIGTERM if is_here else 0)
    assert [path.name for path in tmp_path.iterdir()] == ([] if is_here else ["whole"])


PACKAGE = Path(lshfm_pl.__file__).parent


def test_every_temporary_folder_is_deleted_on_a_signal():
    makers = re.compile("TemporaryDirectory|NamedTemporaryFile|mkdtemp|mkstemp")
    found = {path.name for path in PACKAGE.rglob("*.py") if makers.search(path.read_text(encoding="utf-8"))}
    assert found == {"files.py"}


WRITES_OF_ITS_OWN = {
    "files.py": "writes whole files",
    "benchmarking/data.py": "a data set in a temporary folder",
    "data/clean_copy.py": "a folder under another name, which is renamed when all of it is written",
    "data/shapes/scenes.py": "a folder under another name, which is renamed when all of it is written",
    "kernels/memory.py": "a file of the system",
    "benchmarking/timing.py": "a file of the system",
    "runs/folder.py": "a probe, which is removed",
    "runs/launch.py": "the standard streams",
    "runs/logs.py": "lines appended to a log, or below atomic_file",
    "scripts/measure_coco_size.py": "drawn data in a folder that is named for it",
    "scripts/run_table.py": "a remark appended to a table",
    "scripts/slurm_cluster.py": "files of the cluster in its own folder",
    "scripts/torture.py": "a disk that is filled on purpose",
    "scripts/torture_bench.py": "output of runs",
    "scripts/torture_nodes.py": "output of nodes",
    "scripts/torture_slurm.py": "a script for sbatch",
}
"""Modules that open a file for writing other than below `atomic_file`, and why they may."""


def opens_for_writing(node):
    """Whether a call writes to a path: `x.write_text(…)`, `open(x, "w")`, `x.open("wb")`."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("write_text", "write_bytes"):
        return True
    modes = [*node.args[:2], *(word.value for word in node.keywords if word.arg == "mode")]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return name == "open" and any(set(text) <= set("rwaxbt+") and set(text) & set("wax") for text in texts)


def is_below_atomic_file(node, parents):
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.With) and "atomic_file(" in "".join(map(ast.unparse, node.items)):
            return True
    return False


def test_every_file_is_written_whole_or_not_at_all():
    found = set()
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            is_write = isinstance(node, ast.Call) and opens_for_writing(node)
            if is_write and not is_below_atomic_file(node, parents):
                root = PACKAGE if path.is_relative_to(PACKAGE) else PACKAGE.parent
                found.add(path.relative_to(root).as_posix())
    assert found <= set(WRITES_OF_ITS_OWN)
