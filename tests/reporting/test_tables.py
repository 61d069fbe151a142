import math

import pytest
from table_runs import example_results, run

from lshfm_pl.errors import LSHFMError
from lshfm_pl.reporting import comparison_table, summary_rows, write_markdown

METRICS = ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP")


@pytest.fixture
def results():
    return example_results()


def table_of(text: str) -> list[dict[str, str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    header, _, *body = rows
    assert all(len(row) == len(header) for row in rows)
    return [dict(zip(header, row, strict=True)) for row in body]


def test_a_line_a_loss_with_mean_deviation_difference_and_share_of_the_gap(results):
    rows = table_of(comparison_table(results))
    assert [row[""] for row in rows] == ["Teacher", "Student (none)", "L2", "LSH", "LSHL2"]
    assert [row["seeds"] for row in rows] == ["1", "3", "2", "1", "1"]
    assert [row["model"] for row in rows] == ["big", "small", "small", "small", "small"]
    # sample deviation of 48, 50, 52: sqrt((4 + 0 + 4) / 2) = 2; of 52, 53: sqrt(0.5) = 0.707
    assert [row["AP"] for row in rows] == ["60.0", "50.0 ± 2.0", "52.5 ± 0.7", "55.0", "61.0"]
    # Over common seeds: of L2 4 and 3, of LSH 5, of LSHL2 13; of the teacher 12, 10, 8: 10 ± 4.303 · 2 / sqrt(3)
    assert [row["AP Δ"].partition(" ")[0] for row in rows] == ["+10.0", "–", "+3.5", "+5.0", "+13.0"]
    assert (rows[0]["AP Δ"], rows[2]["AP Δ"]) == ("+10.0 [+5.0, +15.0]", "+3.5 cannot tell")
    assert [row["AP gap closed"] for row in rows] == ["–", "–", "35 %", "50 %", "130 %"]
    assert [row["voc07_mAP"] for row in rows] == ["85.0", "75.0 ± 2.0", "77.5 ± 0.7", "80.0", "86.0"]


def test_every_metric_is_named_in_full(results):
    text = comparison_table(results)
    assert "- AP: COCO-style AP (mean over IoU 0.50:0.05:0.95, 101-point), difficult objects dropped" in text
    assert "- AP50: COCO-style AP at IoU 0.5 (101-point), difficult objects dropped" in text
    assert "- voc07_mAP: VOC07 11-point mAP at IoU 0.5, difficult objects and crowds ignored" in text
    assert "voc_mAP:" not in text
    assert "voc_mAP: VOC area mAP" in comparison_table(results, metrics=["voc_mAP"])


def test_no_share_of_a_gap_that_is_not_positive(results):
    for entry in results:
        if entry["role"] == "teacher":
            entry["metrics"]["AP"] = 49.0
    rows = table_of(comparison_table(results, metrics=["AP"]))
    assert [row["AP gap closed"] for row in rows] == ["–"] * 5
    assert rows[0]["AP Δ"] == "-1.0 [-6.0, +4.0]"


def test_no_share_of_a_gap_whose_interval_holds_0_or_is_not_known(results):
    for entry in results:
        if entry["role"] == "teacher":
            entry["metrics"]["AP"] = 54.0  # +4 [-1, +9]
    rows = table_of(comparison_table(results, metrics=["AP"]))
    assert [row["AP gap closed"] for row in rows] == ["–"] * 5
    rows = table_of(comparison_table([run("teacher", ap=60.0), run(ap=50.0), run(distill="l2")], ["AP"]))
    assert [row["AP gap closed"] for row in rows] == ["–"] * 3


LABELS = {"train_labels": "teacher", "pseudo_labels": {"score": 0.5, "soft": True}}


def taught(distill="none", **settings):
    """A student for whose training no labels were read."""
    return run(distill=distill, **{**LABELS, **settings}) | {"teacher": "big"}


def test_students_of_the_teachers_labels_are_compared_with_the_one_that_learns_from_labels_alone():
    text = comparison_table([taught(ap=40.0), taught("l2", ap=43.0), run("teacher", ap=60.0)])
    rows = table_of(text)
    titles = ["Teacher", "Student (none), labels by the teacher", "L2, labels by the teacher"]
    assert [row[""] for row in rows] == titles
    assert [row["AP Δ"].split()[0] for row in rows] == ["+20.0", "–", "+3.0"]
    assert "No labels of the training pictures were read" in text


def test_the_teachers_labels_are_compared_with_annotations_if_a_student_has_learned_from_these():
    text = comparison_table([run(ap=45.0), taught(ap=40.0), taught("l2", ap=43.0)])
    gains = {row[""].partition(" (pseudo")[0]: row["AP Δ"].split()[0] for row in table_of(text)}
    assert gains == {
        "Student (none)": "–",
        "Student (none), labels by the teacher": "-5.0",
        "L2, labels by the teacher": "-2.0",
    }
    assert "No labels of the training pictures were read" not in text


def test_students_with_different_labels_by_the_teacher_have_no_reference():
    other = {"score": 0.7, "soft": True}
    text = comparison_table([taught(ap=40.0), taught(ap=41.0, pseudo_labels=other), taught("l2", ap=43.0)])
    assert {row["AP Δ"] for row in table_of(text)} == {"–"}
    assert "There is no plain student" in text


NECK_AND_HEAD = ["neck", "head"]


def inheriting(distill="none", aps=(), parts=NECK_AND_HEAD):
    results = [run(distill=distill, seed=seed, ap=ap, inherit=parts) for seed, ap in enumerate(aps)]
    return [{**each, "teacher": "big"} for each in results]


def test_students_without_a_loss_that_inherit_the_same_are_the_base_line_where_no_student_is_plain():
    runs = [
        run("teacher", ap=60.0),
        *inheriting(aps=(50.0, 51.0, 52.0)),
        *inheriting("lsh", (53.0, 54.0, 55.2)),
    ]
    text = comparison_table(runs, ["AP"])
    teacher, base, lsh = table_of(text)
    assert base["AP Δ"] == "base line"
    assert lsh["AP Δ"].startswith("+3.1 [+2.8, +3.4] helps")
    assert (teacher["AP Δ"].partition(" ")[0], lsh["AP gap closed"]) == ("+9.0", "34 %")
    assert "There is no plain student" in text
    assert "started with these parts of the teacher: Student (none) [head,neck]." in text


def test_the_plain_student_is_the_base_line_of_all_lines_where_there_is_one():
    seeds = [run(seed=seed, ap=ap) for seed, ap in enumerate((40.0, 41.0, 42.0))]
    runs = [*seeds, *inheriting(aps=(50.0, 51.0, 52.0)), *inheriting("lsh", (53.0, 54.0, 55.0))]
    text = comparison_table(runs, ["AP"])
    assert [row["AP Δ"].partition(" ")[0] for row in table_of(text)] == ["–", "+10.0", "+13.0"]
    assert "base line" not in text.partition("- AP:")[0]


def test_each_line_is_compared_with_the_students_that_inherit_what_it_inherits():
    runs = [
        run("teacher", ap=60.0), *inheriting(aps=(50.0,)), *inheriting(aps=(45.0,), parts=["neck"]),
        *inheriting("lsh", (53.0,), ["head", "neck"]), *inheriting("l2", (46.0,), ["neck"]),
        *inheriting("kd", (47.0,), []),
    ]  # fmt: skip
    text = comparison_table(runs, ["AP"])
    found = {row[""]: row["AP Δ"] for row in table_of(text)}
    assert found == {
        "Teacher": "–",  # which of the two gaps is meant is not known
        "Student (none) (inherit=[neck,head])": "base line",
        "Student (none) (inherit=[neck])": "base line",
        "LSH (inherit=[head,neck])": "+3.0 cannot tell",
        "L2 (inherit=[neck])": "+1.0 cannot tell",
        "KD": "–",
    }


def test_title_of_a_sum_has_the_titles_of_its_losses_and_what_only_its_students_inherit():
    runs = [run(ap=40.0), run(distill="crosskd", ap=41.0), *inheriting("crosskd+pkd", (50.0,))]
    titles = [row[""] for row in table_of(comparison_table(runs, ["AP"]))]
    assert titles == ["Student (none)", "CrossKD", "CrossKD + PKD (inherit=[neck,head])"]


def test_without_plain_student_or_teacher_nothing_is_compared():
    distilled = run(distill="lsh", ap=55.0)
    assert table_of(comparison_table([distilled, run("teacher", ap=60.0)], ["AP"]))[1]["AP Δ"] == "–"
    row = table_of(comparison_table([distilled, run(ap=50.0)], ["AP"]))[1]
    assert (row["AP Δ"], row["AP gap closed"]) == ("+5.0 cannot tell", "–")


def test_teacher_and_plain_student_alone_are_compared():
    rows = table_of(comparison_table([run("teacher", ap=60.0), run(ap=50.0)], ["AP"]))
    assert [row["AP Δ"] for row in rows] == ["+10.0", "–"]
    assert [row[""] for row in table_of(comparison_table([run("teacher")], ["AP"]))] == ["Teacher"]


def test_runs_of_one_seed_count_as_one():
    runs = [run(seed=0, ap=40.0), run(seed=0, ap=44.0), run(seed=1, ap=48.0)]
    (row,) = table_of(comparison_table(runs, ["AP"]))
    assert (row["seeds"], row["AP"]) == ("2", "45.0 ± 4.2")  # of 42 and 48


def test_losses_with_different_settings_are_not_averaged():
    runs = [
        run(distill="lsh", seed=0, ap=50.0, beta=1.0, num_hashes=64),
        run(distill="lsh", seed=1, ap=52.0, beta=7.0, num_hashes=64),
    ]
    rows = table_of(comparison_table(runs, ["AP"]))
    assert [(row[""], row["AP"]) for row in rows] == [("LSH (beta=1.0)", "50.0"), ("LSH (beta=7.0)", "52.0")]


def test_title_omits_a_setting_that_is_not_set_and_writes_a_list_as_on_the_command_line():
    runs = [
        run(distill="l2", ap=50.0, point=None),
        run(distill="l2", ap=51.0, point="pyramid"),
        run(distill="pkd", ap=52.0),
        run(distill="pkd", ap=53.0, inherit=["neck", "head"]),
    ]
    rows = table_of(comparison_table(runs, ["AP"]))
    assert [row[""] for row in rows] == ["L2", "L2 (point=pyramid)", "PKD", "PKD (inherit=[neck,head])"]


def test_a_rule_without_effect_is_no_difference_and_a_switch_that_is_not_recorded_was_off():
    old, new = ({"limits": limits} for limits in ([1e-4, 1e4], [1e-8, 1e8]))
    entries = [
        run("teacher", ap=60.0),
        run(ap=50.0),
        run(distill="fgd", ap=51.0, balance="fixed", balance_rule=old),
        run(distill="fgd", ap=52.0, seed=1, balance="fixed", balance_rule=new, match_scale=False),
        run(distill="fgd", ap=53.0, balance="fixed", balance_rule=new, match_scale=True),
    ]
    rows = table_of(comparison_table(entries, metrics=["AP"]))
    assert {row[""]: row["seeds"] for row in rows[2:]} == {"FGD": "2", "FGD (match_scale=true)": "1"}


def test_the_seed_of_the_hash_is_no_different_setting():
    distilled = [run(distill="lsh", seed=seed, ap=50.0) for seed in range(2)]
    for seed, entry in enumerate(distilled):
        entry["distill"]["seed"] = seed
    assert [row["seeds"] for row in table_of(comparison_table(distilled, ["AP"]))] == ["2"]


def test_runs_by_a_sum_of_losses_that_differ_in_the_seed_alone_are_one_line():
    runs = []
    for seed, beta in ((0, 1.0), (1, 1.0), (2, 0.5)):
        terms = {
            "lsh": {"_target_": "a.LSH", "beta": 7.0, "seed": seed, "check_teacher": seed > 0},
            "kd": {"beta": beta},
        }
        runs.append(run(distill="lsh+kd", seed=seed, ap=50.0, terms=terms))
    assert [row["seeds"] for row in table_of(comparison_table(runs[:2], ["AP"]))] == ["2"]
    rows = table_of(comparison_table(runs, ["AP"]))
    assert sorted(row["seeds"] for row in rows) == ["1", "2"]
    assert any("kd.beta=0.5" in cell for row in rows for cell in row.values())


def test_pairs_of_models_get_tables_of_their_own():
    runs = [
        run("teacher", ap=60.0),
        *(run(seed=seed, ap=50.0) for seed in range(3)),
        run(distill="l2", ap=55.0, teacher={"name": "big", "checkpoint": "big.ckpt"}),
        *(run(seed=seed, ap=30.0, model="tiny") for seed in range(3)),
        run(distill="l2", ap=33.0, model="tiny"),
    ]
    text = comparison_table(runs, ["AP"])
    _, small, tiny = text.split("### ")
    assert small.startswith("small with teacher big")
    assert [row["AP gap closed"] for row in table_of(small)] == ["–", "–", "50 %"]
    assert tiny.startswith("tiny with teacher big")
    assert [row["AP gap closed"] for row in table_of(tiny)] == ["–", "–", "10 %"]


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_a_figure_that_a_run_does_not_have_is_left_out(unknown):
    runs = [run(seed=0, ap=40.0), run(seed=1)]
    runs[1]["metrics"]["AP"] = unknown
    (row,) = table_of(comparison_table(runs, ["AP"]))
    assert row["AP"] == "40.0"
    assert summary_rows(runs)[1]["AP"] is None


def test_markdown_file_holds_the_table(results, tmp_path):
    path = write_markdown(results, tmp_path / "new" / "results.md", metrics=["AP50"])
    assert comparison_table(results, metrics=["AP50"]) in path.read_text(encoding="utf-8")


def test_unusable_input_is_refused(results):
    with pytest.raises(LSHFMError, match="found mAP"):
        comparison_table(results, metrics=["mAP"])
    with pytest.raises(LSHFMError, match="at least one run"):
        comparison_table([])
    with pytest.raises(LSHFMError, match=r"a/b: expected the key model, seed, distill, metrics"):
        summary_rows([{"role": "student", "run": "a/b"}])
    with pytest.raises(LSHFMError, match=r"distill\.name"):
        summary_rows([{**run(), "distill": {}}])
    with pytest.raises(LSHFMError, match="teacher or student, found 'judge'"):
        summary_rows([run(role="judge")])
