from lshfm_pl.runs.clock import Clock


def test_time_of_a_comparison_includes_the_time_before_an_interruption(tmp_path):
    with Clock(tmp_path):
        pass
    (tmp_path / "comparison.json").write_text('{"seconds": 600}')
    with Clock(tmp_path) as clock:
        assert 600 <= clock.seconds() < 660
    (tmp_path / "comparison.json").write_text("[" * 10)
    assert Clock(tmp_path).seconds() < 60
