"""Reports of artificial runs, from their folders alone."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from run_files import DATA, VOC0712, make_results, results_of, write_begun, write_run

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError, without_controls
from lshfm_pl.reporting.published import published_of_run
from lshfm_pl.reporting.report import report
from lshfm_pl.reporting.runs import Run, read_run

FOUND = {"none": 0.4, "l2": 0.5, "lsh": 0.45, "lshl2": 0.6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine comparable runs at three depths, a failed and an interrupted one, and five foreign or broken ones."""
    top = tmp_path_factory.mktemp("all") / "runs"
    write_run(top / "teacher", role="teacher", found=0.8)
    for loss, found in FOUND.items():
        for seed in (0, 1):
            write_run(top / "sweep" / f"{seed}_job" / loss, loss, found=found, seed=seed)
    failed = write_begun(top / "failed", overrides=["distill=l2"])
    (failed / "error.txt").write_text("data.root: expected a folder, found none\n")
    write_begun(top / "interrupted", epochs=2)
    logged = write_begun(top / "crashed", epochs=0)
    (logged / "output.txt").write_text(
        "ok\nTraceback (most recent call last):\n  x\nRuntimeError: out of <memory>\n"
    )
    for name, text in {
        "foreign": '{"accuracy": 1}',
        "broken": "{",
        "list": "[1]",
        "odd": json.dumps({**make_results(), "metrics": {"AP": "high"}}),
        "huge": json.dumps({**make_results(), "metrics": {"AP": 1e9}}),
    }.items():
        (top / name).mkdir()
        (top / name / "results.json").write_text(text)
    (top / "not_a_run").mkdir()
    (top / "not_a_run" / "notes.json").write_text("{}")
    return top


@pytest.fixture(scope="module")
def made(folder):
    """Folder of the report."""
    return report(folder, resamples=200).parent


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_files_lie_in_the_folder_of_the_runs(folder, made):
    assert made == folder / "report"
    assert {path.name for path in made.iterdir()} == {
        "index.html", "report.md", "results.csv", "summary.csv",
        "comparison_1.png", "training_1.png", "precision_recall_1.png",
    }  # fmt: skip


def test_every_run_has_its_row_with_the_difference_to_the_plain_student_of_its_seed(folder, made):
    rows = rows_of(made / "results.csv")
    assert len(rows) == 9
    stored = {
        run["folder"]: json.loads((folder.parent / run["folder"]).joinpath("results.json").read_text())
        for run in rows
    }
    for row in rows:
        results = stored[row["folder"]]
        assert float(row["AP50"]) == pytest.approx(results["metrics"]["AP50"])
        assert (row["role"], row["distill"], row["seed"]) == (
            results["role"], results["distill"]["name"], str(results["seed"]),
        )  # fmt: skip
        assert row["command"].startswith("python -m lshfm_pl.train distill=")
        if row["role"] == "teacher" or row["distill"] == "none":
            continue
        (plain,) = [
            other for other in rows
            if (other["role"], other["distill"], other["seed"]) == ("student", "none", row["seed"])
        ]  # fmt: skip
        difference = float(row["AP50"]) - float(plain["AP50"])
        assert float(row["AP50_difference"]) == pytest.approx(difference)
        assert float(row["AP50_difference_low"]) < difference < float(row["AP50_difference_high"])


def test_lines_are_those_of_the_published_tables(made):
    rows = rows_of(made / "summary.csv")
    assert [row["line"] for row in rows] == ["Teacher", "Student (none)", "L2", "LSH", "LSHL2"]
    assert [row["seeds"] for row in rows] == ["1", "2", "2", "2", "2"]
    assert {row["group"] for row in rows} == {"1"}
    plain, l2 = rows[1], rows[2]
    assert float(l2["AP_difference"]) == pytest.approx(float(l2["AP"]) - float(plain["AP"]))
    gap = float(rows[0]["AP"]) - float(plain["AP"])
    assert float(l2["AP_gap_closed"]) == pytest.approx(float(l2["AP_difference"]) / gap)
    assert float(l2["step_ratio"]) == pytest.approx(0.8 / 0.5)
    assert (plain["AP_difference_low"], plain["published_AP50"]) == ("", "")


def test_what_is_no_finished_run_is_set_apart_with_the_reason(made):
    text = (made / "report.md").read_text()
    told = dict(
        re.findall(r"^\| \S*?([^/\s]+) \| (.*) \|$", text.split("## Not in any table")[1], re.MULTILINE)
    )
    assert told.keys() - {"folder", "---"} == {
        "failed", "interrupted", "crashed", "foreign", "broken", "list", "odd", "huge",
    }  # fmt: skip
    assert told["failed"] == "failed | data.root: expected a folder, found none"
    assert told["crashed"] == "failed | RuntimeError: out of &lt;memory&gt; (in output.txt)"
    assert told["interrupted"].startswith("unfinished | no results.json; 2 of 3 epochs, last changed on ")
    assert told["interrupted"].endswith("perhaps still running")
    assert told["foreign"].startswith("not readable | results.json is not of a run: expected the key role, ")
    assert told["broken"].startswith("not readable | results.json is not valid JSON")
    assert "expected an object" in told["list"]
    assert "figures of 0 to 100" in told["odd"]
    assert "figures of 0 to 100" in told["huge"]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.text = [], set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids.add(attributes.get("id"))
        if tag == "a":
            self.links.add(attributes["href"])

    def handle_data(self, data):
        self.text += data


def test_page_needs_no_other_file_and_every_link_leads_to_a_place_in_it(made):
    page = Page((made / "index.html").read_text())
    sources = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "srcset")
    ]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base"}
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_every_figure_of_the_page_names_its_runs(folder, made):
    page = Page((made / "index.html").read_text())
    titles = [
        attributes["title"] for tag, attributes in page.tags
        if tag == "td" and attributes.get("title", "").startswith("AP50 from ")
    ]  # fmt: skip
    assert len(titles) == 5 * 3
    assert any("sweep/0_job/l2" in title and "sweep/1_job/l2" in title for title in titles)
    assert {f"#run-{number}" for number in range(1, 10)} <= page.links
    assert "COCO-style AP at IoU 0.5 (101-point), difficult objects dropped" in page.text
    assert "python -m lshfm_pl.train distill=lshl2 seed=1" in page.text
    assert "out of <memory>" in page.text


def test_names_from_run_folders_are_shown_and_never_run(tmp_path):
    evil = '"><script>alert(1)</script>$|`'
    write_run(tmp_path / "runs" / "<img src=x onerror=alert(2)>", model=evil)
    write_run(tmp_path / "runs" / "b", "l2", model=evil, teacher={"name": "<b>t</b>", "checkpoint": "{{ 7 * 7 }}"},
              data={**DATA, "root": "/d/<i>"}, distill={"name": "</style>", "x": "<u>"})  # fmt: skip
    failed = write_begun(tmp_path / "runs" / "c")
    (failed / "error.txt").write_text("<script>alert(3)</script>\n\ud800".encode("utf-8", "replace").decode())
    text = report(tmp_path / "runs", resamples=100).read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "b", "i", "u", "style")].count(
        "script"
    ) == 1
    assert not [tag for tag, _ in page.tags if tag in ("b", "i", "u")]
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert evil in page.text
    assert "<script>alert(3)</script>" in page.text
    assert "<script" not in (tmp_path / "runs/report/report.md").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": {**DATA, "test_split": "other"}}, None),
        ({"data": {**DATA, "root": "/elsewhere"}}, None),
        ({"data": {**DATA, "train_split": "small"}}, 'data.train_split="small"'),
        ({"settings": {"model": {}, "schedule": {"epochs": 9}, "trainer": {}}}, "schedule.epochs=9"),
        (
            {"settings": {"model": {"min_size": [64]}, "schedule": {"epochs": 3}, "trainer": {}}},
            "model.min_size=[64]",
        ),
        ({"world_size": 4}, "world_size=4"),
        ({"code_hash": "0ther"}, "code=code 0ther"),
        ({"code_hash": None}, "code=commit 0123456789"),
    ],
)
def test_runs_that_are_not_comparable_share_no_table(tmp_path, change, told):
    write_run(tmp_path / "teacher", role="teacher", found=0.8)
    write_run(tmp_path / "none", found=0.4)
    write_run(tmp_path / "l2", "l2")
    write_run(tmp_path / "other", "lsh", **change)
    made = report(tmp_path, resamples=100).parent
    rows = rows_of(made / "summary.csv")
    of_other = [row for row in rows if row["distill"] == "lsh"]
    assert [row["line"] for row in rows if row["group"] == "1"] == ["Teacher", "Student (none)", "L2"]
    assert [row["AP_difference"] for row in of_other] == [""]
    text = (made / "report.md").read_text()
    assert "There is no plain student with the same data, schedule and code version" in text
    if told is not None:
        assert told in text.split("## 2.")[1].split("> No plain")[0]


def test_code_versions_share_a_table_if_asked_to_and_it_says_so(tmp_path):
    write_run(tmp_path / "none", found=0.4)
    write_run(tmp_path / "none_old", found=0.4, seed=1, code_hash=None)
    write_run(tmp_path / "l2", "l2", code_hash="0ther")
    made = report(tmp_path, strict_version=False, resamples=100).parent
    plain, l2 = rows_of(made / "summary.csv")
    assert (plain["seeds"], l2["seeds"]) == ("2", "1")
    versions = "code 0ther, code c0de, commit 0123456789"
    assert (
        f"This table has runs of different code versions, as requested: {versions}."
        in (made / "report.md").read_text()
    )


def test_losses_with_other_settings_and_another_teacher_are_not_averaged(tmp_path):
    write_run(tmp_path / "none", found=0.4)
    write_run(tmp_path / "b4", "l2", distill={"name": "l2", "beta": 4})
    write_run(tmp_path / "b7", "l2", distill={"name": "l2", "beta": 7})
    checkpoint = "/x/runs/teacher2/checkpoints/last.ckpt"
    write_run(tmp_path / "t2", "l2", teacher={"name": "vgg16", "checkpoint": checkpoint}, seed=1)
    rows = rows_of(report(tmp_path, resamples=100).parent / "summary.csv")
    assert [row["line"] for row in rows] == [
        "Student (none)", "L2 (beta=4)", "L2 (beta=7)", "Student (none)", "L2",
    ]  # fmt: skip


def test_the_teacher_is_the_run_that_taught(tmp_path):
    write_run(tmp_path / "runs" / "teacher", role="teacher", found=0.8)
    write_run(tmp_path / "other" / "teacher", role="teacher", found=0.9)
    write_run(tmp_path / "none", found=0.4)
    write_run(tmp_path / "l2", "l2")
    rows = rows_of(report(tmp_path, resamples=100).parent / "results.csv")
    groups = {row["folder"].rpartition(tmp_path.name)[2]: row["group"] for row in rows}
    assert groups == {"/runs/teacher": "1", "/none": "1", "/l2": "1", "/other/teacher": "2"}


def test_evaluation_of_a_teacher_that_was_trained_here_is_set_apart(tmp_path):
    write_run(tmp_path / "runs" / "teacher", role="teacher", found=0.8)
    write_run(tmp_path / "none", found=0.4)
    write_run(tmp_path / "l2", "l2")
    results = make_results(role="teacher", found=0.7)
    kept = {key: results[key] for key in ("model", "metrics", "test_set")}
    (tmp_path / "evaluate").mkdir()
    file = f"{tmp_path}/runs/teacher/checkpoints/last.ckpt"
    (tmp_path / "evaluate" / "results.json").write_text(json.dumps({"checkpoint": file, **kept}))
    rows = rows_of(report(tmp_path, resamples=50).parent / "summary.csv")
    assert [row["line"] for row in rows] == ["Teacher", "Student (none)", "L2"]


def test_command_is_the_one_that_made_the_run(tmp_path):
    folder = write_run(tmp_path / "l2", "l2", overrides=["distill=l2", "seed=5"])
    assert read_run(folder).command == "python -m lshfm_pl.train distill=l2 seed=5"
    older = write_run(tmp_path / "none")
    assert read_run(older).command == "python -m lshfm_pl.train distill=none seed=0"


def test_command_of_a_compared_student_names_the_teacher_where_it_is_now(tmp_path):
    folder = write_run(tmp_path / "moved" / "student")
    (folder / "overrides.json").write_text(json.dumps(["teacher.checkpoint='../teacher/last.ckpt'"]))
    assert read_run(folder).command.endswith(f" teacher.checkpoint='{tmp_path}/moved/teacher/last.ckpt'")


def test_evaluated_teacher_file_is_the_teacher_and_any_other_evaluation_is_set_apart(tmp_path):
    checkpoint = "/elsewhere/published.ckpt"
    write_run(tmp_path / "none", found=0.4)
    write_run(tmp_path / "l2", "l2", teacher={"name": "vgg16", "checkpoint": "published.ckpt"})
    for name, file in (("teacher", checkpoint), ("another", "another.ckpt")):
        results = make_results(role="teacher", found=0.8, record=None)
        kept = {key: results[key] for key in ("model", "metrics", "test_set", "code_hash")}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"checkpoint": file, **kept}))
    made = report(tmp_path, resamples=100).parent
    assert [row["line"] for row in rows_of(made / "summary.csv")] == ["Teacher", "Student (none)", "L2"]
    single = (made / "report.md").read_text().split("## Evaluations of single files")[1]
    assert "| another.ckpt | vgg16 |" in single
    assert checkpoint not in single


def test_results_of_older_versions_are_read_without_what_they_lack(tmp_path):
    for name, loss in (("none", "none"), ("l2", "l2")):
        folder = write_run(tmp_path / name, loss, with_record=False)
        results = json.loads((folder / "results.json").read_text())
        for key in ("status", "test_set", "cost", "code_hash", "settings"):
            del results[key]
        (folder / "results.json").write_text(json.dumps(results))
    made = report(tmp_path).parent
    _, l2 = rows_of(made / "summary.csv")
    assert l2["AP_difference"] != ""
    assert (l2["AP_difference_low"], l2["parameters"]) == ("", "")
    assert (
        "There are no intervals over test images: these runs have no evaluation.npz."
        in (made / "report.md").read_text()
    )
    (tmp_path / "l2" / "config.yaml").write_text("schedule:\n  epochs: 8\n")
    assert len({row["group"] for row in rows_of(report(tmp_path).parent / "summary.csv")}) == 2


def test_the_same_detections_differ_by_nothing_in_any_resample(tmp_path):
    write_run(tmp_path / "none")
    write_run(tmp_path / "l2", "l2")
    row = rows_of(report(tmp_path, resamples=50).parent / "summary.csv")[1]
    names = ("AP_difference", "AP_difference_low", "AP_difference_high", "AP50_difference_high")
    assert [float(row[name]) for name in names] == [0, 0, 0, 0]


def test_no_interval_between_different_or_damaged_records(tmp_path):
    write_run(tmp_path / "none")
    (write_run(tmp_path / "l2", "l2") / "evaluation.npz").write_bytes(b"PK broken")
    made = report(tmp_path, resamples=50).parent
    assert rows_of(made / "summary.csv")[1]["AP_difference_low"] == ""
    assert (
        "There are no intervals over test images for lines with a run that has no evaluation.npz: L2."
        in (made / "report.md").read_text()
    )


PAIR = "voc0712_retinanet_vgg11fpn_vgg16fpn"
OTHER_SETTINGS = {
    "augmentation": "augment=strong",
    "hashes": "distill.num_hashes=64",
    "weight": "distill.beta=4",
    "epochs": "schedule.epochs=2",
    "learning rate": "schedule.lr=0.1",
    "test-time rule": "model.postprocess=torchvision",
    "size": "model.min_size=[800]",
    "no backbone": "model.backbone_weights=null",
    "few batches": "trainer.limit_train_batches=3",
}
SAME_SETTINGS = [
    "seed=3", "model.backbone_weights=vgg11.pth", "trainer.precision=bf16-mixed", "distill.beta=8",
    "distill.check_teacher=false", "schedule.clip_grad_norm=null",
]  # fmt: skip


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_no_published_figure_beside_a_run_with_other_settings(name):
    run = Run(make_results("lshl2", **results_of(f"{PAIR}_lshl2", OTHER_SETTINGS[name])))
    assert published_of_run(run) is None


def test_published_figure_beside_a_run_whose_settings_do_not_define_the_row():
    assert published_of_run(Run(make_results("lshl2", **results_of(f"{PAIR}_lshl2", *SAME_SETTINGS)))) == 75.2
    untold = {**results_of(f"{PAIR}_lshl2"), "settings": None}
    assert published_of_run(Run(make_results("lshl2", **untold))) == 75.2


@pytest.mark.parametrize(
    ("config", "figure"),
    [({"postprocess": "published"}, 76.6), ({"postprocess": None}, 76.6), ({"postprocess": "torchvision"}, None),
     ({"model": {"postprocess": "torchvision"}}, None)],
)  # fmt: skip
def test_published_figure_beside_an_evaluated_file_depends_on_its_test_time_rule(config, figure):
    results = make_results(role="teacher", data=VOC0712, checkpoint="x.ckpt", settings=None)
    assert published_of_run(Run(results | {"model": "retinanet_vgg16fpn"}, config=config)) == figure


def test_published_figures_are_found_within_a_command_of_hydra():
    run = Run(make_results("l2", **results_of(f"{PAIR}_l2")))
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert published_of_run(run) is not None
        assert GlobalHydra.instance().hydra is outer


def test_published_figure_stands_beside_a_run_of_that_row(tmp_path):
    write_run(tmp_path / "none", found=0.4, **results_of("voc0712_retinanet_vgg11fpn"))
    write_run(tmp_path / "lshl2", "lshl2", **results_of(f"{PAIR}_lshl2"))
    write_run(tmp_path / "lsh", "lsh", **results_of(f"{PAIR}_lsh"))
    made = report(tmp_path, resamples=50).parent
    rows = rows_of(made / "summary.csv")
    assert [(row["distill"], row["published_AP50"]) for row in rows] == [
        ("none", "73.2"), ("lsh", ""), ("lshl2", "75.2"),
    ]  # fmt: skip
    assert "AP50 published" in (made / "report.md").read_text()
    assert rows[0]["data"] == "voc0712, tested on VOC2007/test"


def test_published_ap_of_another_method_stands_beside_a_run_of_that_row(tmp_path):
    row = "coco2017_24e_retinanet_resnet50fpn"
    data = yaml.safe_load((CONFIG_DIR / "data/coco2017.yaml").read_text())

    def write_row(name, distill, experiment, *overrides, **settings):
        results = {**results_of(experiment, *overrides), "data": data}
        write_run(tmp_path / name, distill, **settings, **results)

    write_row("none", "none", row, found=0.4)
    write_row("pkd", "pkd", f"{row}_resnext101fpn_pkd")
    write_row("other", "pkd", f"{row}_resnext101fpn_pkd", "distill.beta=5")
    write_row("short", "pkd", f"{row}_resnext101fpn_pkd", "schedule=coco_12e")
    made = report(tmp_path, resamples=50).parent
    rows = rows_of(made / "summary.csv")
    assert sorted((row["distill"], row["published_AP"], row["published_AP50"]) for row in rows) == [
        ("none", "37.4", ""), ("pkd", "", ""), ("pkd", "", ""), ("pkd", "40.8", ""),
    ]  # fmt: skip
    assert "AP published" in (made / "report.md").read_text()
    assert "AP published" in (made / "index.html").read_text()


def test_lists_of_splits_stand_in_titles_as_names(tmp_path):
    data = {"root": "set", "train_split": "train", "val_split": "val", "test_split": ["test", "more"]}
    write_run(tmp_path / "none", found=0.4, data=data)
    made = report(tmp_path, resamples=50).parent
    assert rows_of(made / "summary.csv")[0]["data"] == "set, tested on test, more"


def test_patterns_lists_and_single_folders_are_searched_once(folder, tmp_path):
    made = report([f"{folder}/sweep/0_*", f"{folder}/sweep/0_job/l2"], tmp_path / "here", resamples=50).parent
    assert made == tmp_path / "here"
    assert len(rows_of(made / "results.csv")) == 4


def test_report_without_pictures_of_detections_does_without_torch(tmp_path):
    """Importing torch and Lightning takes longer than such a report."""
    for loss in ("none", "l2"):
        write_run(tmp_path / "runs" / loss, loss)
    code = (
        "import sys; from lshfm_pl.reporting.report import report; report('runs', 'out');"
        "print({'torch', 'torchvision', 'pytorch_lightning'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
    assert (tmp_path / "out" / "precision_recall_1.png").exists()


def test_nothing_to_report_is_reported(tmp_path):
    with pytest.raises(LSHFMError, match="found nothing at .*/no"):
        report(tmp_path / "no")
    with pytest.raises(LSHFMError, match="expected folders with results.json of this project"):
        report(tmp_path)
    with pytest.raises(LSHFMError, match="found mAP"):
        report(tmp_path, metrics=["mAP"])


def test_only_failed_runs_make_a_report_too(tmp_path):
    write_begun(tmp_path / "failed")
    text = report(tmp_path).read_text()
    assert "0 runs in 0 tables, 1 folder in no table." in text


def test_pictures_that_were_left_are_shown_and_large_ones_not(tmp_path):
    write_run(tmp_path / "none")
    png = next((CONFIG_DIR.parent / "docs").glob("*.png")).read_bytes()
    (tmp_path / "detections.png").write_bytes(png)
    (tmp_path / "none" / "large.png").write_bytes(png + bytes(4_000_000))
    text = report(tmp_path).read_text()
    assert "detections.png</figcaption>" in text
    assert "large.png" not in text


def test_command_takes_what_the_function_does():
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("report", overrides=["runs=x"])
    given = set(config) - {"debug"}
    names = report.__code__.co_varnames[: report.__code__.co_argcount + report.__code__.co_kwonlyargcount]
    assert given == set(names)
    assert list(config.metrics) == list(report.__defaults__ and ("AP", "AP50", "voc07_mAP"))
    assert {key: config[key] for key in report.__kwdefaults__ if key != "metrics"} == {
        key: value for key, value in report.__kwdefaults__.items() if key != "metrics"
    }


def test_line_of_many_runs_names_the_first_and_links_to_all(tmp_path):
    for seed in range(25):
        write_run(tmp_path / f"none{seed}", seed=seed, with_record=False, epochs=1)
    page = report(tmp_path, picture_images=0, resamples=0).read_text()
    (line,) = re.findall(r"<tr data-table.*?</tr>", page, flags=re.DOTALL)
    assert line.count('href="#run-') == 10
    assert 'href="#runs" title="15 more runs of this line">+15</a>' in line
    assert page.count('<tr id="run-') == 25
    assert len(line) < 10_000


@pytest.mark.parametrize("where", ["run", "."])
def test_files_of_runs_and_comparisons_are_not_replaced(tmp_path, where):
    write_run(tmp_path / "run")
    (tmp_path / "results.csv").write_text("of a comparison")
    with pytest.raises(LSHFMError, match=r"output: .*replaced|overwritten: give another output folder"):
        report(tmp_path, tmp_path / where, picture_images=0)
    assert (tmp_path / "results.csv").read_text() == "of a comparison"


def test_nothing_that_a_terminal_obeys_comes_from_a_run_into_the_report(tmp_path):
    run = write_run(
        tmp_path / "run", overrides=["\x1b[31m", "\x9b1m"], settings={"model": {"\x1b[2J": "\x07"}}
    )
    (run / ".hydra" / "overrides.yaml").write_text('["\\e[31m"]')
    page = report(tmp_path, tmp_path / "out", picture_images=0)
    for name in ("index.html", "report.md", "results.csv", "summary.csv"):
        text = (page.parent / name).read_text()
        assert text == without_controls(text), name


def test_a_report_is_made_again_in_its_folder(tmp_path):
    write_run(tmp_path / "run")
    for _ in range(2):
        assert report(tmp_path, tmp_path, picture_images=0, resamples=10).is_file()
