"""The benchmark of the host's part of training: what it measures is there, in a table."""

import pytest

from benchmarks.host_training import measure, table


@pytest.mark.slow
def test_the_table_has_a_row_of_each_figure():
    figures = measure(pages=16, rounds=1)
    rows = table(figures).splitlines()
    assert len(rows) == 2 + len(figures) and all(value > 0 for figure in figures for value in figure.values)
    for words in ("conversion, one process, rate", "collating, CPU time", "two threads, speed-up"):
        assert any(row.startswith(f"| {words}") for row in rows), words
