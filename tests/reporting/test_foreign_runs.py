"""Damaged or malicious run folders: each is reported in one line, and all others are shown."""

import csv
import io
import json
import os
import random
import zipfile

import numpy as np
import pytest
from run_files import VOC0712, make_record, make_results, write_begun, write_run

from lshfm_pl.errors import LSHFMError
from lshfm_pl.reporting.finding import find_runs
from lshfm_pl.reporting.published import published_of_run
from lshfm_pl.reporting.report import report
from lshfm_pl.reporting.rows import write_csv
from lshfm_pl.reporting.runs import Run, read_run
from lshfm_pl.reporting.tables import comparison_table

DEEP = 50_000


def write_bomb(path):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    path.write_text("\n".join(lines))


def write_npz_of_a_huge_array(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(path, "w") as file:
        for name in ("class_names", "image_ids", "image", "format"):
            file.writestr(f"{name}.npy", header.getvalue())


def replaced(path, **changes):
    results = json.loads(path.read_text())
    for key, value in changes.items():
        holder = results
        *parents, last = key.split("__")
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
    path.write_text(json.dumps(results))


def linked(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def piped(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


UNREADABLE = {
    "config of many brackets": lambda run: (run / "config.yaml").write_text("[" * DEEP),
    "overrides of many brackets": lambda run: (run / ".hydra/overrides.yaml").write_text("[" * DEEP),
    "overrides of many dashes": lambda run: (run / ".hydra/overrides.yaml").write_text("- " * DEEP),
    "config of many braces": lambda run: (run / "config.yaml").write_text("{a: " * DEEP),
    "config of aliases": lambda run: write_bomb(run / "config.yaml"),
    "config with merged aliases": lambda run: (run / "config.yaml").write_text("a: &a {b: 1}\nc: {<<: *a}\n"),
    "config of a huge number": lambda run: (run / "config.yaml").write_text("a: " + "1:" * 400_000 + "1"),
    "config that is too large": lambda run: (run / "config.yaml").write_text("#" * 3_000_000),
    "config that is a pipe": lambda run: piped(run / "config.yaml"),
    "config that is a device": lambda run: linked(run / "config.yaml", "/dev/zero"),
    "config that leads out": lambda run: linked(run / "config.yaml", "/etc/hostname"),
    "results of many brackets": lambda run: (run / "results.json").write_text("[" * DEEP),
    "results of many levels": lambda run: replaced(run / "results.json", x=json.loads("[" * 90 + "]" * 90)),
    "results that are a pipe": lambda run: piped(run / "results.json"),
    "results that are a device": lambda run: linked(run / "results.json", "/dev/zero"),
    "results that are a folder": lambda run: ((run / "results.json").unlink(), (run / "results.json").mkdir()),
    "results that lead nowhere": lambda run: linked(run / "results.json", "nowhere"),
    "results of bytes": lambda run: (run / "results.json").write_bytes(bytes(range(256))),
    "overrides.json of many braces": lambda run: (run / "overrides.json").write_text('{"a":' * DEEP),
    "hash as a list": lambda run: replaced(run / "results.json", test_set__hash=[1]),
    "seed as a list": lambda run: replaced(run / "results.json", seed=[1]),
    "seed of many digits": lambda run: replaced(run / "results.json", seed=10**400),
    "figure without an end": lambda run: replaced(run / "results.json", metrics__AP=float("inf")),
    "time of many digits": lambda run: replaced(run / "results.json", timing__train_seconds=10**400),
    "cost without an end": lambda run: replaced(run / "results.json", cost__gflops=float("nan")),
    "data as a number": lambda run: replaced(run / "results.json", data=5),
    "settings as a list": lambda run: replaced(run / "results.json", settings=[1]),
    "trainer as a list": lambda run: replaced(run / "results.json", settings__trainer=[1]),
    "commit as a number": lambda run: replaced(run / "results.json", git_commit=7, code_hash=None),
    "code as a mapping": lambda run: replaced(run / "results.json", code_hash={"a": 1}),
    "name of a megabyte": lambda run: replaced(run / "results.json", model="m" * 1_000_000),
    "name with an escape": lambda run: replaced(run / "results.json", model="\x1b[31m"),
    "teacher as a list": lambda run: replaced(run / "results.json", teacher=["a"]),
    "versions as text": lambda run: replaced(run / "results.json", versions="1", code_hash=None, git_commit=None),
}  # fmt: skip

DAMAGED = {
    "huge array": lambda run: write_npz_of_a_huge_array(run / "evaluation.npz"),
    "record is a pipe": lambda run: piped(run / "evaluation.npz"),
    "record leads out": lambda run: linked(run / "evaluation.npz", "/etc/hostname"),
    "record is cut": lambda run: (run / "evaluation.npz").write_bytes((run / "evaluation.npz").read_bytes()[:-99]),
    "metrics is a pipe": lambda run: piped(run / "metrics.csv"),
    "metrics is a device": lambda run: linked(run / "metrics.csv", "/dev/zero"),
    "metrics has a long field": lambda run: (run / "metrics.csv").write_text("epoch,val/AP\n1," + "9" * 200_000),
}  # fmt: skip


@pytest.mark.timeout(60)
def test_each_unreadable_run_is_set_apart_in_one_line(tmp_path):
    for index, (name, change) in enumerate(UNREADABLE.items()):
        change(write_run(tmp_path / str(index), with_record=False))
        with pytest.raises(LSHFMError) as told:
            read_run(tmp_path / str(index))
        assert "\n" not in str(told.value), name
        assert len(str(told.value)) < 500, name
    write_run(tmp_path / "good")
    found = find_runs([tmp_path])
    assert [run.folder.name for run in found.runs] == ["good"]
    assert {(item.folder.name, item.kind) for item in found.aside} == {
        (str(index), "not readable") for index in range(len(UNREADABLE))
    }


@pytest.mark.timeout(60)
def test_figures_of_a_run_stand_where_another_file_of_it_is_damaged(tmp_path):
    for index, change in enumerate(DAMAGED.values()):
        change(write_run(tmp_path / str(index)))
    found = find_runs([tmp_path])
    assert len(found.runs) == len(DAMAGED)
    told = {item.folder.name: item.reason for item in found.aside}
    assert told.keys() == {str(index) for index in range(len(DAMAGED))}
    assert all(item.kind == "damaged file" for item in found.aside)
    assert all(
        reason.endswith("the run's metrics are not affected") and "\n" not in reason
        for reason in told.values()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"score": np.array([np.nan])},
        {"num_positives": np.array([[2**40]])},
        {"num_positives": np.array([[-1]])},
        {"label": np.array([1.5])},
        {"class_names": np.array(["a", "a"])},
        {"matched": np.array([2**20])},
        {"image": np.array([7])},
    ],
)
def test_a_record_whose_values_cannot_be_is_not_used(tmp_path, changes):
    whole = {
        "class_names": np.array(["a"]), "image_ids": np.array([1]), "num_objects": np.array([[1]]),
        "num_positives": np.array([[1]]), "image": np.array([0]), "label": np.array([1]),
        "score": np.array([0.5]), "matched": np.array([1]), "ignored": np.array([0]), "format": np.array(1),
    }  # fmt: skip
    folder = write_run(tmp_path / "run")
    np.savez(folder / "evaluation.npz", **whole)
    assert read_run(folder).record is not None
    np.savez(folder / "evaluation.npz", **{**whole, **changes})
    run = read_run(folder)
    assert run.record is None
    assert "do not fit together" in run.faults[0]


def test_names_that_would_be_a_path_are_looked_up_as_names():
    for name in ("m" * 200, "../../x", "nul\0"):
        results = make_results("l2", data=VOC0712, teacher={"name": name * 5, "checkpoint": None})
        assert published_of_run(Run(results | {"model": name})) is None


@pytest.mark.parametrize("text", ["hydra: {job: 5}", "hydra: [1]", "hydra: {job: {name: [train]}}", "5"])
def test_settings_of_hydra_of_another_type_are_no_training(tmp_path, text):
    folder = write_begun(tmp_path / "x")
    (folder / ".hydra" / "hydra.yaml").write_text(text)
    assert find_runs([tmp_path]).aside == []


@pytest.mark.parametrize("epoch", ["1e308", "9" * 5000, "²", "-1", ""])
def test_an_epoch_that_cannot_be_counts_for_nothing(tmp_path, epoch):
    folder = write_begun(tmp_path / "x")
    (folder / "metrics.csv").write_text(f"epoch,val/AP\n2,1.0\n{epoch},2.0\n")
    os.utime(folder / "metrics.csv", (1, 2**50))
    (aside,) = find_runs([tmp_path]).aside
    assert "3 of 3 epochs" in aside.reason


def test_a_log_is_read_at_its_end_alone_and_not_through_a_link_that_leads_out(tmp_path):
    (tmp_path / "secret").write_text("error: secret")
    top = tmp_path / "runs"
    big = write_begun(top / "big")
    with (big / "train.log").open("w") as stream:
        stream.seek(10**9)
        stream.write("\nerror: no room\n")
    for name in ("error.txt", "train.log", "output.txt"):
        linked(write_begun(top / name) / name, tmp_path / "secret")
    linked(write_begun(top / "zero") / "train.log", "/dev/zero")
    piped(write_begun(top / "pipe") / "output.txt")
    told = {item.folder.name: item.reason for item in find_runs([top]).aside}
    assert told["big"] == "no room (in train.log)"
    assert len(told) == 6
    assert "secret" not in json.dumps(told)


@pytest.mark.timeout(120)
def test_the_report_of_hostile_folders_stands_and_shows_nothing_of_other_folders(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    picture = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0" + b"TOPSECRET" * 9
    (secret / "a.png").write_bytes(picture)
    top = tmp_path / "runs"
    for seed in range(3):
        write_run(top / f"none{seed}", seed=seed)
        write_run(top / f"l2{seed}", "l2", seed=seed)
    linked(top / "none0" / "a.png", secret / "a.png")
    (top / "none1" / "b.png").write_text("TOPSECRET of another format")
    (top / "none2" / "pictures").symlink_to(secret)
    wide = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0TOPSECRET"
    (top / "l20" / "c.png").write_bytes(wide)
    piped(top / "l21" / "d.png")
    (top / "l22" / "e.png").mkdir()
    (top / "l22" / "metrics.csv").write_text(
        "epoch,train/loss,val/AP\n1e308,1,1\n0,1e308,-1e308\n1,nan,inf\n"
    )
    rows = "\n".join(f"{number},1,1" for number in range(9_999_990, 10_000_010))
    (top / "l20" / "metrics.csv").write_text(f"epoch,train/loss,val/AP\n{rows}\n")
    for index, change in enumerate(DAMAGED.values()):
        change(write_run(top / "damaged" / str(index), "lsh", seed=index))
    UNREADABLE["config of aliases"](write_run(top / "bad"))
    page = report(top, resamples=100)
    text = page.read_text()
    assert "TOPSECRET" not in text
    assert "VE9QU0VDUkVU" not in text  # its base64 encoding
    assert ".png" not in text
    assert "damaged file" in text
    with (page.parent / "results.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 6 + len(DAMAGED)


def test_what_stands_in_the_report_folder_is_replaced_and_no_link_is_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    write_run(tmp_path / "runs" / "none", with_record=False)
    (tmp_path / "runs" / "report").mkdir()
    for name in ("index.html", "report.md", "results.csv", "summary.csv", "training_1.png"):
        (tmp_path / "runs" / "report" / name).symlink_to(tmp_path / "mine")
    report(tmp_path / "runs")
    assert (tmp_path / "mine").read_text() == "mine"
    other = tmp_path / "other"
    write_run(other / "none", with_record=False)
    (other / "report").symlink_to(tmp_path / "mine_too")
    with pytest.raises(LSHFMError, match="a link that leads out of it; give output="):
        report(other)
    assert not (tmp_path / "mine_too").exists()


@pytest.mark.parametrize("output", ["a_file", "a_file/below", "n" * 300, "nul\0", "/proc/none/x"])
def test_an_output_that_cannot_be_is_reported_in_one_line(tmp_path, output):
    write_run(tmp_path / "none", with_record=False)
    (tmp_path / "a_file").write_text("")
    with pytest.raises(LSHFMError, match="output: expected a folder that can be made") as told:
        report(tmp_path, tmp_path / output)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("runs", ["n" * 6000, "nul\0", "~nobody_of_this_name/x", "\ud800"])
def test_impossible_paths_of_runs_are_reported(runs):
    with pytest.raises(LSHFMError, match="found nothing at"):
        report(runs)


def test_names_are_escaped_for_the_format_that_they_are_written_to(tmp_path):
    rows = [{"a": "=1+1", "b": "-1.5", "c": -1.5, "d": " @x", "e": "a=b", "f": "\t+2"}]
    with write_csv(rows, tmp_path / "a.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row == {"a": "'=1+1", "b": "'-1.5", "c": "-1.5", "d": "' @x", "e": "a=b", "f": "'\t+2"}
    runs = [
        make_results("l2", distill={"name": "l2", "x": f"a|b\\|c\nd`e[f](g){number}\x1b[31m"})
        for number in (1, 2)
    ]
    lines = [line for line in comparison_table(runs).splitlines() if line.startswith("|")]
    assert [line.count("|") for line in lines] == [lines[0].count("|")] * 4
    assert "\\" not in "".join(lines)
    assert "](" not in "".join(lines)
    assert "\x1b" not in "".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(4))
def test_mutated_run_folders_are_read_or_reported(tmp_path, seed):
    """Random changes to the bytes, values and types of a run's files give a run, or a line about it."""
    generator = random.Random(seed)
    odd = (
        None,
        True,
        -1,
        10**400,
        1e308,
        float("nan"),
        "",
        "x" * 5000,
        "\ud800\x1b",
        [],
        {},
        [[1]],
        {"a": {}},
    )
    for number in range(300):
        top = tmp_path / str(number)
        write_run(top / "run", with_record=False)
        make_record(images=3).save(top / "run" / "evaluation.npz")
        files = [path for path in (top / "run").rglob("*") if path.is_file()]
        path = generator.choice(files)
        content = bytearray(path.read_bytes())
        if path.name == "results.json" and generator.random() < 0.8:
            results = json.loads(content)
            holder = results
            while True:
                key = generator.choice(list(holder))
                if not isinstance(holder[key], dict) or not holder[key] or generator.random() < 0.4:
                    break
                holder = holder[key]
            holder[key] = generator.choice(odd)
            path.write_text(json.dumps(results))
        elif generator.random() < 0.1:
            generator.choice([piped, lambda at: linked(at, "/dev/zero"), lambda at: linked(at, at.parent)])(
                path
            )
        else:
            for _ in range(generator.randint(1, 20)):
                place = generator.randrange(len(content) + 1)
                content[place : place + generator.randint(0, 9)] = generator.randbytes(
                    generator.randint(0, 9)
                )
            path.write_bytes(content)
        found = find_runs([top])
        assert all(item.reason and len(item.reason) < 3000 for item in found.aside)
        if found.runs:
            comparison_table(found.runs)
