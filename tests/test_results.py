"""experiments/results.py: the tables of a study stand for its records."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from bitkd.compare.comparison import Comparison
from bitkd.compare.record_file import to_json
from bitkd.errors import InputError
from bitkd.models.artifact import load_encoder
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.layout import layers_of
from bitkd.report.numbers import DASH, size_text
from bitkd.stages.base import Origin
from experiments import results
from experiments.quantizers import subln
from experiments.results import NO_RECORD, rebuild
from experiments.students import mean_table
from tests.compare.synthetic import make_all, make_one, with_measurement

STUDIES = sorted(Path(results.__file__).parent.glob("*/RESULTS.md"))


pytestmark = pytest.mark.usefixtures("kind_of_a_study")


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


PATTERNS = """# A study in cells

<!-- table: one/*/comparison.json means -->
<!-- end -->

<!-- table: one/*/comparison.json finals -->
<!-- end -->

<!-- picture: bytes.png */*/comparison.json -->
<!-- end -->
"""


def test_what_is_not_recorded_yet_is_said(tmp_path):
    (tmp_path / "RESULTS.md").write_text(PATTERNS)
    rebuild(tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text().count(NO_RECORD) == 3
    assert not (tmp_path / "bytes.png").exists()
    assert rebuild(tmp_path / "RESULTS.md", check=True) == "the same"


def test_a_pattern_takes_every_record_that_it_matches(tmp_path):
    runs = [with_measurement(make_one("singlestage", 1)), make_one("progressive", 1)]
    for task in ("mrpc", "rte"):
        (tmp_path / "one" / task).mkdir(parents=True)
        (tmp_path / "one" / task / "comparison.json").write_text(to_json([replace(run, task=task) for run in runs]))
    (tmp_path / "RESULTS.md").write_text(PATTERNS)
    rebuild(tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    scores = [run.final.score for run in runs]
    for run, score, mib in zip(runs, scores, ("3.25", f"{size_text(runs[1].final.packed_mib)} (counted)")):
        below = 100 * (max(scores) - score)
        row = f"| {run.pipeline} | {score:.4f} (1) | {score:.4f} (1) | {score:.4f} | {below:.2f} | {mib} | {mib} |"
        assert row in text
    assert text.count("| progressive | 1 |") == 2
    assert text.index("mrpc:") < text.index("rte:") < text.index("![")
    picture = (tmp_path / "bytes.png").read_bytes()
    assert rebuild(tmp_path / "RESULTS.md") == "the same"
    assert (tmp_path / "bytes.png").read_bytes() == picture


def test_an_arm_that_lacks_a_cell_has_no_mean():
    table = mean_table([Comparison.of([*make_all(["singlestage"]), make_one("progressive", 1)])])
    assert [row[2] == DASH for row in table.rows] == [False, True]


def test_a_counted_size_is_compared_with_counted_sizes():
    runs = [with_measurement(make_one("singlestage", 1)), make_one("progressive", 1)]
    counted = [run.final.packed_mib for run in runs]
    table = mean_table([Comparison.of(runs)])
    assert [float(row[-1]) for row in table.rows] == pytest.approx([one / min(counted) for one in counted], abs=5e-4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "json headline",
            "json headlin",
            "there is no table headlin; use one of headline, differences, sizes, exported, cost, stages, finals, power",
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


def test_subln_normalizes_what_the_output_projections_read(tiny_bert):
    """The kind of stage that the quantizers' study adds: its norms stand in training and leave no tensor in the artifact."""
    read = []
    module = subln.KIND.module_class
    origin = Origin(lambda: build_student(load_encoder(tiny_bert), ShapeSpec()), lambda model: None)
    student = module.start(origin)
    layers = layers_of(student)
    for linear in (*layers.parts("attention_output"), *layers.parts("down")):
        linear.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].square().mean(-1)))
    plain = set(student.state_dict())
    student(torch.arange(6).reshape(1, 6))
    assert len(read) == 2 * len(layers.modules)
    for square in read:
        assert_close(square, torch.ones_like(square), rtol=1e-3, atol=0)
    assert plain == set(load_encoder(tiny_bert).state_dict())
