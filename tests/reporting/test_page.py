"""The page in a browser: sorting and filtering with mouse and keyboard, phone width, dark colours."""

import json
import re
import shutil
import subprocess

import pytest
from run_files import make_results, write_run

from lshfm_pl.reporting.finding import SetAside
from lshfm_pl.reporting.intervals import Resampled
from lshfm_pl.reporting.page import write_page
from lshfm_pl.reporting.runs import Run, read_run
from lshfm_pl.reporting.summary import group_runs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
METRICS = ("AP", "AP50")
AP = {"none": 9.5, "l2": 20.25, "lsh": 100.0, "lshl2": 20.75}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """One pair with four losses, another student with a teacher alone, and a folder in no table."""
    folder = tmp_path_factory.mktemp("page")
    runs = []
    for loss, ap in AP.items():
        results = make_results(loss, seed=3)
        results["metrics"]["AP"] = ap
        runs.append(Run(results, folder / loss, command=f"train distill={loss}"))
    other = make_results("kd", model="other_student_with_a_name_that_is_quite_long_for_a_phone")
    other["metrics"]["AP"] = None
    runs.append(Run(other, folder / "kd"))
    return write_page(
        folder / "index.html",
        title="Runs",
        made="Made here.",
        groups=group_runs(runs, METRICS),
        evaluations=[],
        aside=[SetAside(folder / "x" / ("long" * 40), "failed", "because\nof this")],
        pictures={},
        metrics=METRICS,
        resamples=0,
    )


def ask(page, tmp_path, expression, *options):
    """The value of a JavaScript expression in the loaded page."""
    script = f"<script>document.title = JSON.stringify((() => {{ {expression} }})());</script></body>"
    asked = tmp_path / "asked.html"
    asked.write_text(page.read_text().replace("</body>", script))
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'browser'}",
    ]
    done = subprocess.run(
        [*command, *options, "--dump-dom", asked.as_uri()],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    answer = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    return json.loads(answer.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


HELPERS = """
    const table = document.getElementById("lines");
    const heads = [...table.tHead.rows[0].cells];
    const head = (title) => heads.find((item) => item.textContent.trim() === title);
    const column = (title) => [...table.tBodies[0].rows].filter((row) => !row.hidden)
        .map((row) => row.cells[heads.indexOf(head(title))].textContent.trim());
    const states = () => heads.map((item) => item.getAttribute("aria-sort")).filter(Boolean);
    const choose = (key, value) => {
        const select = document.querySelector(`select[data-key="${key}"]`);
        select.value = value;
        select.dispatchEvent(new Event("input", {bubbles: true}));
    };
    const type = (text) => {
        const input = document.getElementById("text");
        input.value = text;
        input.dispatchEvent(new Event("input", {bubbles: true}));
    };
"""


@needs_browser
def test_headings_sort_by_value_either_way_with_unknown_last(page, tmp_path):
    asked = """
        const seen = [];
        for (const title of ["AP", "AP", "loss", "loss"]) {
            head(title).querySelector("button").click();
            seen.push([column(title), states()]);
        }
        return seen;
    """
    high, low, first, last = ask(page, tmp_path, HELPERS + asked)
    assert high == [["100.0", "20.8", "20.2", "9.5", "–"], ["descending"]]
    assert low == [["9.5", "20.2", "20.8", "100.0", "–"], ["ascending"]]
    assert first == [["KD", "L2", "LSH", "LSHL2", "Student (none)"], ["ascending"]]
    assert last == [first[0][::-1], ["descending"]]


@needs_browser
def test_headings_are_reached_and_pressed_by_keyboard(page, tmp_path):
    asked = """
        const button = head("AP").querySelector("button");
        button.focus();
        const focused = document.activeElement === button && button.tabIndex === 0;
        const all = heads.every((item) => item.querySelector("button") && item.scope === "col");
        return [focused, button.tagName, all];
    """
    assert ask(page, tmp_path, HELPERS + asked) == [True, "BUTTON", True]


@needs_browser
def test_lines_are_filtered_by_text_and_by_choice(page, tmp_path):
    asked = """
        const shown = () => [column("loss"), document.getElementById("shown").textContent];
        const seen = [shown()];
        type("LSH vgg11"); seen.push(shown());
        choose("loss", "lshl2"); seen.push(shown());
        type(""); seen.push(shown());
        choose("loss", ""); choose("student", "vgg11"); seen.push(shown());
        type("nothing like it"); seen.push(shown());
        return seen;
    """
    everything, text, both, choice, student, nothing = ask(page, tmp_path, HELPERS + asked)
    assert everything == [["Student (none)", "L2", "LSH", "LSHL2", "KD"], "5 of 5 lines"]
    assert text == [["LSH", "LSHL2"], "2 of 5 lines"]
    assert both == choice == [["LSHL2"], "1 of 5 lines"]
    assert student == [["Student (none)", "L2", "LSH", "LSHL2"], "4 of 5 lines"]
    assert nothing == [[], "0 of 5 lines"]


@needs_browser
@pytest.mark.parametrize("width", [390, 500, 1300])
def test_page_and_its_tables_are_no_wider_than_the_screen(page, tmp_path, width):
    # A headless window is at least 500 pixels wide; a frame can be narrower.
    asked = f"""
        const frame = document.createElement("iframe");
        frame.style.cssText = "width: {width}px; height: 20000px; border: 0";
        frame.srcdoc = document.documentElement.outerHTML.replace(/<script>[^]*?<.script>/g, "");
        document.body.replaceChildren(frame);
        frame.onload = () => {{
            const root = frame.contentDocument.documentElement;
            const boxes = [...frame.contentDocument.querySelectorAll(".scroll")];
            const cut = boxes.filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.ariaLabel);
            document.title = JSON.stringify([root.clientWidth, root.scrollWidth, cut]);
        }};
    """
    size = ("--window-size=1600,1000", "--virtual-time-budget=3000")
    inner, needed, cut = ask(page, tmp_path, asked + "return [0, 0, []];", *size)
    assert inner == width
    assert needed <= inner
    assert cut == []


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    """Three metrics with intervals, three seeds a line, a published model's name."""
    folder = tmp_path_factory.mktemp("full")
    model = "fasterrcnn_resnet10fpn_tiny"
    runs = [read_run(write_run(folder / "teacher", role="teacher", found=0.8))]
    for loss in AP:
        runs += [
            read_run(write_run(folder / f"{loss}{seed}", loss, seed=seed, model=model)) for seed in range(3)
        ]
    metrics = ("AP", "AP50", "voc07_mAP")
    return write_page(
        folder / "index.html",
        title="Runs",
        made="Made here.",
        groups=group_runs(runs, metrics, resampled=Resampled(runs, 50, seed=0)),
        evaluations=[],
        aside=[],
        pictures={},
        metrics=metrics,
        resamples=50,
    )


@needs_browser
@pytest.mark.parametrize("width", [500, 1300])
def test_every_figure_of_a_full_table_is_within_the_screen(full_page, tmp_path, width):
    asked = """
        const cells = [...document.querySelectorAll("#lines td, #costs td")];
        const right = Math.max(...cells.map((cell) => cell.getBoundingClientRect().right));
        return [innerWidth, right, cells.filter((cell) => cell.textContent.includes("cannot tell")).length > 0];
    """
    inner, right, told = ask(full_page, tmp_path, asked, f"--window-size={width},1000")
    assert inner == width
    assert right <= width
    assert told


@needs_browser
def test_colours_follow_the_system(page, tmp_path):
    asked = "return getComputedStyle(document.body).backgroundColor;"
    assert ask(page, tmp_path, asked, "--blink-settings=preferredColorScheme=1") == "rgb(255, 255, 255)"
    assert ask(page, tmp_path, asked, "--blink-settings=preferredColorScheme=0") == "rgb(20, 23, 27)"


def test_without_a_browser_the_table_is_still_there(page):
    text = page.read_text()
    assert re.findall(r'<th scope="row"[^>]*>([^<]+)</th>', text)[:4] == [
        "Student (none)",
        "L2",
        "LSH",
        "LSHL2",
    ]
    assert "because\nof this" in text
