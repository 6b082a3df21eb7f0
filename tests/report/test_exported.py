"""What a report says of the students as exported, and of the large files that runs keep."""

import re
from dataclasses import replace

import pytest

from bitkd.cli import main
from bitkd.compare.comparison import Comparison
from bitkd.compare.exported import Exported
from bitkd.compare.load import read_runs
from bitkd.compare.record_file import to_json
from bitkd.report.glossary import captions, glossary, notes
from bitkd.report.tables import ONLY_A_RECORD, exported_table, measured_with, size_table
from bitkd.report.write import markdown, write_report
from tests.compare.synthetic import make_one, with_measurement


@pytest.fixture
def measured():
    return [
        with_measurement(make_one("multistage", 1), 3.25, 4.5),
        with_measurement(make_one("singlestage", 1), 3.0, 6.0),
    ]


def as_dict(table, row):
    return dict(zip(table.header, table.rows[row], strict=True))


def test_each_student_stands_beside_its_teacher(measured):
    comparison = Comparison.of(measured)
    cells = as_dict(exported_table(comparison), 0)
    teacher = measured[0].teacher.disk_mib
    assert cells["arm"] == "multistage"
    assert cells["MiB exported"] == "3.25"
    assert cells["MiB counted"] == f"{measured[0].final.packed_mib:.4g}"
    assert cells["MiB teacher"] == f"{teacher:.4g}"
    assert cells["times smaller"] == f"{teacher / 3.25:.3g}"
    assert [cells[f"{name} 8×128"] for name in ("ms", "teacher", "faster")] == ["40", "180", "4.5"]
    assert cells["faster 1×32"] == "4.5"
    assert measured_with(comparison) == ["Measured with a processor, one thread, the student run by the engine."]


def test_an_empty_cell_says_why(measured):
    first, second = measured
    runs = [
        first,
        replace(second, exported=None),
        replace(make_one("progressive", 1), exported=Exported(2.0, [], "", missing="broken")),
    ]
    comparison = Comparison.of(runs)
    table = exported_table(comparison)
    assert set(table.rows[1][3:4] + table.rows[1][6:]) == {"–"}
    assert as_dict(table, 2)["MiB exported"] == "2"
    assert as_dict(table, 2)["faster 8×128"] == "–"
    assert measured_with(comparison) == [
        "multistage: measured with a processor, one thread, the student run by the engine.",
        f"singlestage: {ONLY_A_RECORD}.",
        "progressive: broken.",
    ]


def test_nothing_is_shown_where_nothing_was_measured():
    comparison = Comparison.of([make_one("multistage", 1)])
    assert exported_table(comparison).rows == []
    assert measured_with(comparison) == []


def test_the_large_file_of_a_student_is_called_the_training_state(run_of):
    run = run_of("singlestage", 1)
    comparison = Comparison.of([run])
    assert as_dict(size_table(comparison), 0)["MiB of the training state"] == f"{run.final.disk_mib:.4g}"
    (sentence,) = [note for note in notes(comparison) if "training state" in note]
    assert f"{run.final.disk_mib:.4g} MiB" in sentence
    assert "`bitkd export ARTIFACT OUT` writes the low-bit student itself" in sentence
    assert "FP32 weights that training continues from" in dict(glossary(comparison))["MiB of the training state"]
    full = replace(run.final, precision="W32A32")
    assert not any(
        "training state" in note for note in notes(Comparison.of([replace(run, stages=[*run.stages[:-1], full])]))
    )


def test_a_report_has_the_measurements_and_keeps_them_in_its_record(measured, tmp_path, capsys):
    write_report(measured, tmp_path)
    page, text = ((tmp_path / name).read_text() for name in ("index.html", "report.md"))
    assert {'id="exported"', 'id="plot-speed"'} <= set(re.findall(r'id="[\w-]+"', page))
    assert "(speed.png)" in text
    assert (tmp_path / "speed.png").exists()
    for words in ("MiB exported", "training state", "a processor, one thread", "faster 8×128"):
        assert words in page
        assert words in text
    again = Comparison.of(read_runs(tmp_path))
    assert markdown(again) == text
    assert main(["compare", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "Measured with a processor, one thread, the student run by the engine." in shown.out
    assert "training state" in shown.out
    assert shown.err == ""  # nothing is measured again


def test_records_without_measurements_have_no_picture_of_them(run_of):
    comparison = Comparison.of([run_of("singlestage", 1)])
    assert "speed" not in captions(comparison)
    assert "speed" not in markdown(comparison)
    assert '"exported"' not in to_json(comparison.runs)


def test_without_a_speed_beside_a_teacher_there_is_no_picture_of_it(measured, tmp_path):
    runs = []
    for run in measured:
        alone = [replace(speed, teacher_ms=None, times_faster=None) for speed in run.exported.speeds]
        runs.append(replace(run, exported=replace(run.exported, speeds=alone, missing="no teacher")))
    write_report(runs, tmp_path)
    assert not (tmp_path / "speed.png").exists()
    assert "speed.png" not in (tmp_path / "report.md").read_text()
    assert "No teacher." in (tmp_path / "report.md").read_text()
