"""Final students are measured as exported, each beside its teacher, and what was measured is kept."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from bitkd.cli import main
from bitkd.compare import loaded, measure
from bitkd.compare.arms import make_arms
from bitkd.compare.comparison import Comparison, StudyComparison
from bitkd.compare.exported import Exported, Speed, processor_name
from bitkd.compare.load import artifact_folders, read_runs
from bitkd.compare.measure import measure_students
from bitkd.compare.record_file import from_json, to_json
from bitkd.errors import InputError
from tests.compare.synthetic import write_run


class Bench:
    """Stands for the loaded models: it counts what is asked for."""

    def __init__(self):
        self.exported, self.timed = [], []

    def export_and_load(self, artifact):
        self.exported.append(artifact.name)
        return artifact, 1.5

    def time_students(self, students, teacher):
        self.timed.append((sorted(students), teacher and teacher.name))
        return {name: [Speed(1, 32, 2.0, 8.0, 4.0)] for name in students}


@pytest.fixture
def bench(monkeypatch):
    bench = Bench()
    monkeypatch.setattr(loaded, "export_and_load", bench.export_and_load)
    monkeypatch.setattr(loaded, "load_teacher", lambda artifact: artifact)
    monkeypatch.setattr(loaded, "time_students", bench.time_students)
    monkeypatch.setattr(loaded, "runs_by", lambda student: "the engine")
    return bench


@pytest.fixture
def places(run_of, tmp_path):
    """The folders of three runs: one arm of two seeds, one of one; with a cache beside their store."""
    (tmp_path / "cache").mkdir()
    runs = [run_of("singlestage", 1), run_of("singlestage", 2), run_of("multistage", 1)]
    return [write_run(run, tmp_path / run.name) for run in runs]


def measured(places, **settings):
    arms = make_arms([run for place in places for run in read_runs(place)])
    folders = {key: folder for place in places for key, folder in artifact_folders(place).items()}
    return StudyComparison.of([measure_students(arms, folders, **settings)]).tasks[0]


def test_one_student_of_each_arm_is_measured_beside_its_teacher(bench, places):
    told = []
    comparison = measured(places, tell=told.append)
    assert bench.exported == ["single_binary", "stage2_binary"]
    assert bench.timed == [(["0", "1"], "teacher")]  # both take turns with their common teacher
    assert told == ["measuring file and latency of singlestage, multistage"]
    expected = Exported(1.5, [Speed(1, 32, 2.0, 8.0, 4.0)], f"{processor_name()}, one thread", "the engine")
    assert [run.exported for run in comparison.runs] == [expected, None, expected]
    assert [arm.exported for arm in comparison.arms] == [expected, expected]


def test_students_of_different_teachers_are_timed_apart(bench, run_of, tmp_path):
    places = [write_run(run_of(arm, seed), tmp_path / arm) for arm, seed in (("singlestage", 1), ("multistage", 2))]
    measured(places)
    assert bench.timed == [(["0"], "teacher"), (["1"], "teacher")]
    assert not (tmp_path / "cache").exists()


def test_a_measurement_is_kept_until_student_machine_or_library_changes(bench, places, monkeypatch, tmp_path):
    first = measured(places)
    assert measured(places) == first
    assert len(bench.timed) == 1
    measured(places, again=True)
    assert len(bench.timed) == 2
    monkeypatch.setattr(measure, "processor_name", lambda: "another")
    assert measured(places).arms[0].exported.machine == "another, one thread"
    monkeypatch.setattr(measure, "version", lambda name: f"another {name}")
    measured(places)
    assert len(bench.timed) == 4
    monkeypatch.setenv("BITKD_ENGINE", "off")
    measured(places)
    assert len(bench.timed) == 5
    record = places[0] / "single_binary" / "stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seed": 77}))
    measured(places)
    assert bench.timed[5:] == [(["0"], "teacher")]
    for file in (tmp_path / "cache" / "exported").iterdir():
        file.write_text('{"file_mib": "large"}')
    measured(places)
    assert len(bench.timed) == 7


def test_without_latency_only_the_file_is_measured(bench, places):
    exported = measured(places, latency=False).arms[0].exported
    assert exported == Exported(1.5, [], "", missing=measure.NO_LATENCY)
    assert bench.timed == []
    measured(places, latency=False)
    assert len(bench.exported) == 2
    full = measured(places).arms[0].exported
    assert full.speeds
    assert measured(places, latency=False).arms[0].exported == full  # what is known costs nothing


def test_what_cannot_be_measured_says_why(bench, places, monkeypatch):
    def refuse(artifact):
        if artifact.name == "single_binary":
            raise InputError("it has\nno weights")
        return bench.export_and_load(artifact)

    monkeypatch.setattr(loaded, "export_and_load", refuse)
    first, second = [arm.exported for arm in measured(places).arms]
    assert first == Exported(None, [], "", missing="not measured: it has")
    assert second.speeds
    monkeypatch.setattr(loaded, "export_and_load", bench.export_and_load)
    assert measured(places).arms[0].exported.file_mib == 1.5  # a failure is not kept
    monkeypatch.setattr(loaded, "time_students", lambda students, teacher: [][0])
    first = measured(places, again=True).arms[0].exported
    assert (first.file_mib, first.speeds) == (1.5, [])
    assert first.missing == "not measured: IndexError: list index out of range"


def test_measuring_the_file_again_keeps_the_latency(bench, places):
    full = measured(places).arms[0].exported
    assert measured(places, latency=False, again=True).arms[0].exported == full
    assert len(bench.exported) == 4
    assert measured(places).arms[0].exported == full
    assert len(bench.timed) == 1


def test_a_failure_to_measure_again_keeps_what_was_measured(bench, places, monkeypatch):
    full = measured(places).arms[0].exported
    with monkeypatch.context() as broken:
        broken.setattr(loaded, "time_students", lambda students, teacher: [][0])
        assert measured(places, again=True).arms[0].exported.speeds == []
    assert measured(places).arms[0].exported == full


def test_a_student_is_timed_also_without_its_teacher(bench, places, monkeypatch):
    def refuse(artifact):
        raise InputError("it is damaged")

    monkeypatch.setattr(loaded, "load_teacher", refuse)
    found = measured(places).arms[0].exported
    assert found.speeds
    assert found.missing == "the teacher was not measured: it is damaged"
    assert bench.timed == [(["0", "1"], None)]
    measured(places)
    assert len(bench.timed) == 2  # it may be repaired meanwhile


def test_a_teacher_that_is_not_at_hand_is_said_to_be_missing(bench, places):
    comparison = Comparison.of(read_runs(places[0]))
    teacher = comparison.runs[0].teacher.key
    folders = {key: folder for key, folder in artifact_folders(places[0]).items() if key != teacher}
    for _ in range(2):
        found = measure_students(comparison.arms, folders)[0].exported
        assert found.speeds
        assert found.missing == measure.NO_TEACHER
    assert bench.timed == [(["0"], None)]


@pytest.mark.parametrize("link", ["cache", "cache/exported"])
def test_nothing_is_kept_where_a_link_leads(bench, places, tmp_path, link):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if link == "cache":
        (tmp_path / "cache").rmdir()
    (tmp_path / link).symlink_to(elsewhere)
    assert measured(places).arms[0].exported.speeds
    assert list(elsewhere.iterdir()) == []


def test_a_record_keeps_what_was_measured_and_others_have_none(bench, places):
    runs = measured(places).runs
    assert from_json(to_json(runs), "it") == runs
    bare = [replace(run, exported=None) for run in runs]
    assert '"exported"' not in to_json(bare)
    again = Comparison.of(from_json(to_json([runs[2], *bare[:2]]), "it"))
    assert measure_students(again.arms, {}) == again.arms
    assert [arm.exported is None for arm in again.arms] == [False, True]
    with pytest.raises(InputError, match="damaged"):
        from_json(to_json(runs).replace('"student_ms": 2.0', '"student_ms": 1e40'), "it")


def test_a_comparison_that_was_measured_before_needs_no_torch(bench, places, capsys):
    arguments = ["compare", *map(str, places), "--json"]
    assert main(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    code = "import sys; from bitkd.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == shown
    assert done.stderr == ""
    assert [arm["exported"]["file_mib"] for arm in shown["arms"]] == [1.5, 1.5]
