import math

from lshfm_pl.metrics import DetectionMetrics
from lshfm_pl.reporting.metric_table import METRIC_DESCRIPTIONS, metrics_table


def test_table_shows_every_mean_with_its_meaning_and_the_classes_with_ground_truth():
    figures = dict.fromkeys(METRIC_DESCRIPTIONS, 12.345) | {"APs": math.nan}
    for column in ("AP", "AP50", "voc07_AP", "voc_AP"):
        figures |= {f"{column}/cat": 1.0, f"{column}/unused_2": math.nan}
    lines = metrics_table(figures).splitlines()
    for name, description in METRIC_DESCRIPTIONS.items():
        value = "–" if name == "APs" else "12.35"
        assert f"| {name} | {value} | {description} |" in lines
    assert "| cat | 1.00 | 1.00 | 1.00 | 1.00 |" in lines
    assert lines[-1] == "Without ground truth: unused_2"


def test_every_mean_has_a_description():
    means = [key for key in DetectionMetrics(["cat"]).compute() if "/" not in key]
    assert means == list(METRIC_DESCRIPTIONS)


def test_any_class_name_is_one_row_of_the_table():
    figures = dict.fromkeys(METRIC_DESCRIPTIONS, 1.0)
    columns = ("AP", "AP50", "voc07_AP", "voc_AP")
    for name in ("a\nb", "c|d", "e"):
        figures |= {f"{column}/{name}": math.nan if name == "e" else 2.0 for column in columns}
    table = metrics_table(figures).splitlines()
    assert table[-4:] == [
        "| a b | 2.00 | 2.00 | 2.00 | 2.00 |",
        "| c\\|d | 2.00 | 2.00 | 2.00 | 2.00 |",
        "",
        "Without ground truth: e",
    ]


def test_long_class_names_are_cut():
    figures = dict.fromkeys(METRIC_DESCRIPTIONS, 1.0)
    figures |= {f"{column}/{'x' * 5000}": 2.0 for column in ("AP", "AP50", "voc07_AP", "voc_AP")}
    assert max(map(len, metrics_table(figures).splitlines())) < 300
