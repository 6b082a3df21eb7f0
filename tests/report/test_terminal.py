"""What commands print on a terminal: everything fits the width, and no name and no score is cut."""

import io

import pytest

from bitkd.compare.comparison import Comparison
from bitkd.compare.rows import rows_of
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable
from bitkd.report.numbers import p_text
from bitkd.report.tables import difference_table, exported_table, headline
from bitkd.report.terminal import render, render_text
from tests.compare.synthetic import with_measurement

WIDTHS = [40, 60, 80, 120]


def printed(shown, width=None, monkeypatch=None):
    """What a console of this width prints; without a width it is no terminal."""
    console = Console(file=io.StringIO(), color_system=None, force_terminal=width is not None)
    if width is not None:
        console.width = width
    console.print(shown)
    return console.file.getvalue()


def check_fits(text, width):
    assert all(len(line) <= width for line in text.splitlines()), text
    assert "…" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_runs_table_shows_every_stage_and_score_in_any_width(runs_of, width):
    run = runs_of()[0]
    text = printed(render(rows_of(run)), width)
    check_fits(text, width)
    for stage in run.stages:
        assert stage.name in text
        assert stage.score is None or f"{stage.score:.4f}" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparisons_tables_fit(runs_of, width):
    comparison = Comparison.of(runs_of())
    measured = Comparison.of([with_measurement(run) for run in runs_of()])
    # Each with a column that is never left out.
    for table, told in ((headline(comparison), 1), (difference_table(comparison), 1), (exported_table(measured), 3)):
        text = printed(render_text(table), width)
        check_fits(text, width)
        for row in table.rows:
            assert row[0] in text.replace("\n", "")
            assert row[told] in text
    rows = printed(render([row for _, row in comparison.rows], [arm for arm, _ in comparison.rows]), width)
    check_fits(rows, width)
    assert all(f"{row.score:.4f}" in rows for _, row in comparison.rows if row.score is not None)


def test_differences_are_one_table_on_a_terminal_of_80_columns(runs_of):
    lines = printed(render_text(difference_table(Comparison.of(runs_of()))), 80).splitlines()
    assert any("multistage − singlestage" in line and line.count(" to ") == 1 for line in lines)


@pytest.mark.parametrize("width", [30, 80])
def test_a_name_that_is_longer_than_the_terminal_is_shown_whole(width):
    name = "a_stage_with_a_long_name_" * 5
    text = printed(FittedTable(["stage", "score"], [[name, "0.1234"], ["short", "1.0000"]]), width)
    check_fits(text, width)
    assert name in text.replace("\n", "").replace(" ", "")
    assert "score 0.1234" in text


def test_columns_go_in_the_given_order_and_are_named():
    table = FittedTable(
        ["stage", "score", "seconds", "size"], [["teacher", "0.5", "12", "100 MiB"]], ("size", "seconds")
    )
    assert "not shown" not in printed(table, 60)
    text = printed(table, 26)
    assert "seconds" in text
    assert "size" not in text.splitlines()[0]
    assert "not shown in 26 columns:" in text
    text = printed(table, 16)
    assert "seconds" not in text.splitlines()[0]
    assert "teacher" in text
    assert "0.5" in text


def test_numbers_are_aligned_at_their_ends():
    lines = printed(FittedTable(["stage", "steps"], [["a", "5"], ["b", "1500"], ["c", "–"]])).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert [line[-1] for line in lines] == ["s", "5", "0", "–"]


def test_an_output_that_is_no_terminal_is_not_wrapped(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "word " * 100 + "end"
    assert printed(long) == long + "\n"
    assert "not shown" not in printed(FittedTable(["name", "x"], [["n" * 500, "1"]], ("x",)))


def test_text_is_wrapped_between_words_and_paths_stay_whole():
    path = "/a/long/path/" * 6
    lines = printed(f"the report of this run is in {path} now\nnext", 40).splitlines()
    assert path in lines
    assert lines[-1] == "next"
    assert all(len(line) <= 40 for line in lines if line != path)


@pytest.mark.parametrize("text", ["[/data/wiki.txt]", "[bold]x[/bold]", ":smile:", "  two  spaces"])
def test_text_is_printed_as_it_is(text):
    assert printed(text, 80) == text + "\n"
    assert text.strip() in printed(FittedTable(["a", "b"], [["x", text]]), 80)


@pytest.mark.parametrize(
    ("p", "text"), [(None, "–"), (0.0004, "< 0.001"), (0.0502, "0.0502"), (0.0096, "0.010"), (0.42, "0.420")]
)
def test_a_p_value_has_one_more_digit_near_its_bound(p, text):
    assert p_text(p) == text
