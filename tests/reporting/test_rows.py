import csv

import pytest
from table_runs import example_results

from lshfm_pl.reporting import summary_rows, write_csv

METRICS = ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP")


@pytest.fixture
def results():
    return example_results()


def test_csv_has_a_row_for_each_run(results, tmp_path):
    path = write_csv(summary_rows(results), tmp_path / "new" / "results.csv")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["role", "distill", "seed", "model", *METRICS, "train_seconds"]
    assert len(rows) == len(results)
    assert rows[1] == {
        "role": "student",
        "distill": "lsh",
        "seed": "1",
        "model": "small",
        "AP": "55.0",
        "AP50": "75.0",
        "AP75": "45.0",
        "voc07_mAP": "80.0",
        "voc_mAP": "81.0",
        "train_seconds": "101.0",
    }
