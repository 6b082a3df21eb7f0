"""`bitkd compare` of real runs: files are packed and students timed."""

import json

from bitkd.cli import main
from bitkd.compare import loaded


def test_real_students_are_packed_and_timed_beside_their_teacher(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(loaded, "SECONDS", 0.01)
    arguments = ["compare", str(runs / "rte" / "multistage"), str(runs / "rte" / "singlestage"), "--json"]
    before = {file: file.stat().st_mtime_ns for file in (runs / "store").rglob("*")}
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "measuring file and latency of multistage, singlestage" in shown.err
    arms = json.loads(shown.out)["arms"]
    for arm in arms:
        assert arm["exported"]["missing"] == ""
        assert arm["packed_mib"] < arm["exported"]["file_mib"] < arm["disk_mib"]
        assert arm["teacher_mib"] > 0
        assert [(speed["batch"], speed["length"]) for speed in arm["exported"]["speeds"]] == [(1, 32), (8, 64)]
        assert all(speed["student_ms"] > 0 and speed["teacher_ms"] > 0 for speed in arm["exported"]["speeds"])
    assert {file: file.stat().st_mtime_ns for file in (runs / "store").rglob("*")} == before
    assert main([*arguments, "--no-latency"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert json.loads(again.out)["arms"] == arms
