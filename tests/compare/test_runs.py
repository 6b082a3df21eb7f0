"""Runs as they are read from their folders, and from a comparison.json."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bitkd.compare.load import read_runs
from bitkd.compare.record_file import from_json, to_json
from bitkd.errors import InputError
from bitkd.files import checksum
from bitkd.store.records import BudgetRecord
from tests.compare.synthetic import write_run

RECORDED = sorted((Path(__file__).parents[2] / "experiments").glob("**/comparison.json"))


@pytest.fixture
def folder(run_of, tmp_path):
    return write_run(run_of("multistage", 1), tmp_path / "runs" / "multistage-1")


def change(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def test_a_run_folder_and_its_written_record_are_the_same_run(folder, run_of, tmp_path):
    (run,) = read_runs(folder)
    expected = run_of("multistage", 1)
    assert run.final.predictions == expected.final.predictions
    assert run.teacher.predictions == expected.teacher.predictions
    assert run.stages[3].predictions is None
    assert [stage.score for stage in run.stages] == [stage.score for stage in expected.stages]
    assert run.stages[1].score is None  # General KD
    assert run.final.word_tables == 2
    assert run.final.disk_mib == pytest.approx(2**10 / 2**20)
    assert run.final.upstream == {"student": "stage1_binary"}
    file = tmp_path / "comparison.json"
    file.write_text(to_json([run]))
    assert read_runs(file) == [run]
    assert read_runs(tmp_path) == [run]  # its folder stands for it
    assert max(len(line) for line in file.read_text().splitlines()) > 408  # the rows are on one line


def test_numbers_survive_the_record_to_the_last_digit(run_of):
    runs = [run_of("singlestage", 1)]
    assert from_json(to_json(runs), "x") == runs


@pytest.mark.parametrize("file", RECORDED, ids=[file.parent.name for file in RECORDED])
def test_a_record_is_read_and_written_again_to_the_byte(file, kind_of_a_study):
    text = file.read_text(encoding="utf-8")
    assert to_json(from_json(text, "x")) == text


def test_a_run_of_an_older_version_is_refused(folder):
    change(folder / "ternary" / "stage.json", flops=...)
    with pytest.raises(
        InputError, match=r"ternary was made by an older version: its record lacks size or flops; run it"
    ):
        read_runs(folder)
    change(folder / "manifest.json", hyperparameters=...)
    with pytest.raises(
        InputError, match=r"manifest.json is damaged or of another version \(hyperparameters: Field req"
    ):
        read_runs(folder)


def test_what_is_no_run_is_named(folder, tmp_path):
    (tmp_path / "notes.md").write_text("x")
    for path, message in (
        (tmp_path, r"is no run: it has no manifest.json"),
        (tmp_path / "comparison.json", r"comparison.json does not exist"),
        (folder / "manifest.json", r"manifest\.json is no comparison\.json; name a run folder"),
        (tmp_path / "notes.md", r"notes\.md is no comparison\.json; name a run folder"),
    ):
        with pytest.raises(InputError, match=message):
            read_runs(path)


@pytest.mark.parametrize("name", ["predictions.safetensors", "metrics.json", "stage.json", "model.safetensors"])
def test_damaged_and_missing_files_are_named(folder, name):
    file = folder / "stage2_binary" / name
    if name != "model.safetensors":  # whose content a comparison does not read
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(InputError, match=rf"^[^:]*{re.escape(name)} is damaged"):
            read_runs(folder)
    file.unlink()
    with pytest.raises(
        InputError, match=rf"^[^:]*stage2_binary(/{name} is missing| is .*: it has no {name}); run the stage again$"
    ):
        read_runs(folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("metrics.json", {"score": ...}, r"stage2_binary/metrics\.json is damaged .*\(score: "),
        ("metrics.json", {"dev": ...}, r"are damaged \(.* without stages or dev sets\)"),
        ("metrics.json", {"score": float("nan")}, r"are damaged \(the final score of multistage-1 is None"),
        ("stage.json", {"curve": [["x"]]}, r"stage2_binary/stage\.json is damaged .*\(curve\.0\.0: "),
        ("stage.json", {"size": None}, "made by an older version: its record lacks size or flops"),
        ("stage.json", {"size": {"word_tables": 2}}, r"is damaged .*\(size\.parameters: "),
        ("stage.json", {"steps": None}, r"is damaged .*\(steps: "),
        ("stage.json", {"flops": {"student": "9", "teacher": 0}}, r"is damaged .*\(flops\.student: "),
    ],
)
def test_damaged_records_of_a_stage_are_named(folder, name, values, message):
    change(folder / "stage2_binary" / name, **values)
    with pytest.raises(InputError, match=message):
        read_runs(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "x"}, r"manifest\.json is damaged .*\(seed: "),
        ({"titles": {}}, r"its manifest is damaged \(titles lacks teacher, general"),
        ({"labels": 5}, r"manifest\.json is damaged .*\(labels: "),
        ({"labels": ["only"]}, r"are damaged \(predictions of dev in stage teacher"),
        ({"budget": {}}, r"is damaged .*\(budget\.unit: "),
        ({"budget": {"unit": "steps", "total": -1}}, r"are damaged \(the budget of multistage-1 is -1"),
        ({"planned": ["x"]}, r"is damaged .*\(planned: "),
        ({"artifacts": {}}, "is not finished: teacher, general"),
        ({"planned": {}}, "is not finished: every stage"),
    ],
)
def test_a_damaged_manifest_is_named(folder, values, message):
    change(folder / "manifest.json", **values)
    with pytest.raises(InputError, match=message):
        read_runs(folder)


def test_a_file_that_is_not_what_was_written_is_named(folder):
    stage = folder / "stage1"  # its predictions are no part of a report, so nothing else would find it
    change(stage / "stage.json", checksums={"metrics.json": checksum(stage / "metrics.json")})
    read_runs(folder)
    change(stage / "metrics.json", score=0.99)
    with pytest.raises(InputError, match=r"stage1/metrics\.json is damaged \(its stage\.json has another checksum"):
        read_runs(folder)


def test_a_damaged_comparison_json_is_named(run_of, tmp_path):
    file = tmp_path / "comparison.json"
    text = to_json([run_of("singlestage", 1)])
    for content, message in {
        text[:-300]: "is damaged",
        text.replace('"format": 1', '"format": 9'): "has format 9, this version reads 1",
        "[]": "is no record of a comparison, or one of an older version",
        '{"format": 1, "runs": []}': "is damaged",
        text.replace('"seed"', '"sead"'): "is damaged",
        text.replace('"title"', '"tittle"'): "is damaged",
        text.replace('"seed": 1', '"seed": "x"'): r"is damaged \(runs\.singlestage-1\.seed: ",
        text.replace('"seed": 1', '"seed": true'): r"is damaged \(runs\.singlestage-1\.seed: ",
        re.sub(r'"steps": \d+', '"steps": null', text): r"is damaged \(runs\.singlestage-1\.stages\.teacher\.steps: ",
        text.replace('"versions": {', '"versions": {"x": 1, '): r"is damaged \(runs\.singlestage-1\.versions\.x: ",
        re.sub(r'"curve": \[\s+\[', '"curve": [["a", 0.5], [', text, count=1): "is damaged .*teacher.curve.0.0: ",
        re.sub(r'"predicted": \[\d', '"predicted": [7', text): "is damaged .*predictions of dev in stage teacher",
        re.sub(r'"labels": \[[\d., ]+\]', '"labels": []', text): "is damaged .*predictions of dev in stage teacher",
        text[: text.rindex('"score"')] + re.sub('"score": [0-9.]+', '"score": null', text[text.rindex('"score"') :]): (
            "is damaged .*final score"
        ),
    }.items():
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            read_runs(file)


def test_a_budget_that_is_none_is_damage(run_of, tmp_path):
    run = replace(run_of("singlestage", 1), budget=BudgetRecord("steps", 0))
    with pytest.raises(InputError, match=r"x is damaged \(the budget of singlestage-1 is 0\)"):
        from_json(to_json([run]), "x")


def test_a_kind_that_is_not_registered_is_named(run_of, folder):
    run = run_of("singlestage", 1)
    text = to_json([run]).replace('"kind": "single_stage"', '"kind": "own"')
    with pytest.raises(InputError, match=r"stage single of singlestage-1 is of kind own, .*; import the code that reg"):
        from_json(text, "x")
    change(folder / "ternary" / "stage.json", kind="own")
    with pytest.raises(
        InputError, match=r"stage ternary of .*multistage-1 is of kind own, .*; import the code that reg"
    ):
        read_runs(folder)
