"""experiments/results.py: the tables of a study stand for its records."""

from pathlib import Path

import pytest

from bitkd.compare.runs import to_json
from bitkd.errors import InputError
from experiments import results
from experiments.results import rebuild
from tests.compare.synthetic import make_one

STUDIES = sorted(Path(results.__file__).parent.glob("*/RESULTS.md"))

TEXT = """# A study

<!-- table: comparison.json headline -->
old
<!-- end -->

between

<!-- table: rows.csv -->
<!-- end -->
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "comparison.json").write_text(to_json([make_one("singlestage", 1)]))
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    (tmp_path / "RESULTS.md").write_text(TEXT)
    return tmp_path / "RESULTS.md"


def test_tables_are_rebuilt_to_the_same_bytes(study):
    assert rebuild(study) == "rebuilt, and it is another now"
    first = {file.name: file.read_bytes() for file in study.parent.iterdir()}
    text = study.read_text()
    assert "| 1 | 2 |" in text
    assert "| singlestage |" in text
    assert "old" not in text
    assert "between" in text
    assert "index.html" in first
    assert rebuild(study) == "the same"
    assert {file.name: file.read_bytes() for file in study.parent.iterdir()} == first


@pytest.mark.parametrize("file", STUDIES, ids=[file.parent.name for file in STUDIES])
def test_the_committed_tables_are_those_of_the_committed_records(file):
    assert rebuild(file, check=True) in ("the same", "no tables")


def test_what_a_reader_must_know_first_stands_above_the_table(study):
    rebuild(study)
    assert "**Note.** One seed: nothing here says" in study.read_text()
    assert rebuild(study, check=True) == "the same"
    study.write_text(study.read_text().replace("0.", "1.", 1))
    before = study.read_text()
    assert rebuild(study, check=True) == "another"
    assert study.read_text() == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "json headline",
            "json headlin",
            "there is no table headlin; use one of headline, differences, sizes, cost, stages, finals, power",
        ),
        ("rows.csv", "row.csv", "row.csv does not exist"),
    ],
)
def test_a_table_of_nothing_is_refused_and_nothing_is_written(study, old, new, message):
    study.write_text(TEXT.replace(old, new))
    with pytest.raises(InputError, match=message):
        rebuild(study)
    assert study.read_text() == TEXT.replace(old, new)


def test_records_without_a_place_for_their_tables_are_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "new" / "mrpc").mkdir(parents=True)
    (tmp_path / "new" / "mrpc" / "comparison.json").write_text("{}")
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    assert results.main() == 0
    assert "new: has records, but no RESULTS.md" in capsys.readouterr().out


def test_a_text_without_tables_stays(study):
    study.write_text("# Words alone\n")
    assert rebuild(study) == "no tables"
    assert study.read_text() == "# Words alone\n"
