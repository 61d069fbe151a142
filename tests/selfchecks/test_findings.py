"""Findings are judged by their limits, and written to a JSON file and a page."""

import json
import math

from lshfm_pl.selfchecks.findings import Findings, Line, judged


def test_error_above_its_limit_or_not_a_number_fails():
    limits = {"loss": 1e-3, "gradient": 1e-2}
    assert judged("a", {"loss": 1e-3, "gradient": 0.0}, limits).status == "passed"
    assert judged("a", {"loss": 1e-4, "gradient": 2e-2}, limits).status == "failed"
    assert judged("a", {"loss": math.nan, "gradient": 0.0}, limits).status == "failed"


def test_files_hold_every_line_and_say_what_failed(tmp_path, capsys):
    findings = Findings(tmp_path, {"minutes": 9})
    findings.machine = {"device": "a|b"}
    findings.add("hash", Line("rows", "failed", "loss 1", {"loss": 1.0, "gradient": math.nan}))
    findings.add("machine", Line("GPU", "not checked", "there is none"))
    assert capsys.readouterr().out.splitlines()[0].split() == ["failed", "hash:", "rows:", "loss", "1"]
    json_path, page_path = findings.write("interrupted")
    content = json.loads(json_path.read_text())
    assert (content["ended"], content["failed"]) == ("interrupted", ["hash: rows"])
    assert [line["status"] for line in content["lines"]] == ["failed", "not checked"]
    assert content["lines"][0]["figures"] == {"loss": 1.0, "gradient": None}
    page = page_path.read_text()
    assert "interrupted; 1 failed, 1 not checked" in page
    assert "- hash: rows" in page
    assert "a&#124;b" in page
