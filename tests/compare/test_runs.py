import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitkd.commands.compare import read_runs
from bitkd.compare import runs as records
from bitkd.data import task
from bitkd.errors import InputError
from bitkd.files import checksum


def write_run(run, folder):
    """A run folder as bitkd run leaves it, as far as a comparison reads it."""
    manifest = {
        "task": run.task,
        "pipeline": run.pipeline,
        "title": run.title,
        "seed": run.seed,
        "metric": run.metric,
        "processes": 1,
        "titles": {stage.name: stage.title for stage in run.stages},
        "planned": {stage.name: stage.key for stage in run.stages},
        "labels": run.labels,
        "metrics": run.metrics,
        "kinds": {stage.name: stage.kind for stage in run.stages},
        "upstream": {stage.name: stage.upstream for stage in run.stages},
        "hyperparameters": run.hyperparameters,
        "budget": run.budget,
        "settings": run.settings,
        "artifacts": {stage.name: stage.key for stage in run.stages},
    }
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for stage in run.stages:
        place = folder.parent / "store" / stage.key
        place.mkdir(parents=True)
        (folder / stage.name).symlink_to(place)
        sizes = {
            name: getattr(stage, name)
            for name in ("precision", "parameters", "encoder_bits", "word_tables", "paper_mib")
        }
        content = {
            "kind": stage.kind,
            "versions": run.versions,
            "size": sizes | {"file_mib": stage.packed_mib},
            "flops": {"student": stage.student_flops, "teacher": stage.teacher_flops},
            **{
                name: getattr(stage, name) for name in ("curve", "steps", "examples", "seconds", "device", "world_size")
            },
            "precision": stage.trainer_precision,
        }
        (place / "stage.json").write_text(json.dumps(content))
        (place / "metrics.json").write_text(json.dumps({"score": stage.score, **stage.dev}))
        (place / "model.safetensors").write_bytes(b"x" * 2**10)
        if stage.predictions:
            given = stage.predictions["dev"]
            logits = np.eye(len(run.labels), dtype=np.float32)[np.array(given.predicted, dtype=int)]
            labels = np.array(given.labels, dtype=np.int64)
            save_file({"dev.logits": logits, "dev.labels": labels}, place / "predictions.safetensors")
    return folder


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
    file.write_text(records.to_json([run]))
    assert read_runs(file) == [run]
    assert read_runs(tmp_path) == [run]  # its folder stands for it
    assert max(len(line) for line in file.read_text().splitlines()) > 408  # the rows are on one line


def test_numbers_survive_the_record_to_the_last_digit(run_of):
    runs = [run_of("singlestage", 1)]
    assert records.from_json(records.to_json(runs), "x") == runs


def test_the_name_of_the_holdout_is_the_data_modules(run_of):
    assert records.HOLDOUT == task.HOLDOUT


def test_a_run_of_an_older_version_is_refused(folder):
    change(folder / "manifest.json", hyperparameters=...)
    change(folder / "ternary" / "stage.json", flops=...)
    with pytest.raises(InputError, match=r"made by an older version: .*hyperparameters, ternary's flops; run it again"):
        read_runs(folder)


def test_damage_is_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"is no run: it has no manifest.json"):
        read_runs(tmp_path)
    with pytest.raises(InputError, match=r"comparison.json does not exist"):
        read_runs(tmp_path / "comparison.json")
    final = folder / "stage2_binary"
    for name, message in {
        "predictions.safetensors": r"^[^:]*predictions\.safetensors is damaged",
        "metrics.json": r"^[^:]*metrics\.json is damaged",
        "stage.json": r"^[^:]*stage\.json is damaged",
    }.items():
        content = (final / name).read_bytes()
        (final / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=message):
            read_runs(folder)
        (final / name).unlink()
        with pytest.raises(
            InputError, match=rf"^[^:]*stage2_binary(/{name} is missing| is .*: it has no {name}); run the stage again$"
        ):
            read_runs(folder)
        (final / name).write_bytes(content)
    for name, values, message in (
        ("metrics.json", {"score": ...}, r"stage2_binary/metrics\.json is damaged \(it has no score\)"),
        ("stage.json", {"curve": [["x"]]}, r"stage2_binary: its stage\.json or metrics\.json is damaged"),
        ("stage.json", {"size": None}, "made by an older version: .*stage2_binary's word_tables"),
        ("stage.json", {"size": {"word_tables": 2}}, "is damaged: its size has no precision, parameters, "),
        ("stage.json", {"steps": None}, "are damaged .the steps of stage stage2_binary of multistage-1 is None"),
        ("stage.json", {"flops": {"student": "9"}}, "are damaged .the student_flops of stage stage2_binary"),
        ("metrics.json", {"dev": ...}, r"are damaged \(.* without stages or dev sets\)"),
    ):
        content = (final / name).read_text()
        change(final / name, **values)
        with pytest.raises(InputError, match=message):
            read_runs(folder)
        (final / name).write_text(content)
    content = (folder / "manifest.json").read_text()
    for values, message in (
        ({"seed": "x"}, r"its manifest is damaged .*its seed is 'x'"),
        ({"titles": ...}, r"its manifest is damaged .*'titles'"),
        ({"labels": 5}, r"are damaged"),
        ({"budget": {}}, r"are damaged .the budget of multistage-1 is \{\}"),
        ({"budget": "x"}, r"are damaged .the budget of multistage-1 is 'x'"),
        ({"planned": ["x"]}, r"its manifest is damaged .planned: \['x'\]"),
    ):
        change(folder / "manifest.json", **values)
        with pytest.raises(InputError, match=message):
            read_runs(folder)
        (folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json is no comparison\.json; name a run folder"):
        read_runs(folder / "manifest.json")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(InputError, match=r"notes\.md is no comparison\.json; name a run folder"):
        read_runs(tmp_path / "notes.md")
    (final / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"stage2_binary is damaged: it has no model\.safetensors; run the stage again$"
    ):
        read_runs(folder)
    change(folder / "manifest.json", artifacts={})
    with pytest.raises(InputError, match="is not finished: teacher, general"):
        read_runs(folder)
    change(folder / "manifest.json", artifacts=...)
    with pytest.raises(InputError, match="is damaged"):
        read_runs(folder)


def test_a_file_that_is_not_what_was_written_is_named(folder):
    stage = folder / "stage1"  # its predictions are no part of a report, so nothing else would tell
    change(stage / "stage.json", checksums={"metrics.json": checksum(stage / "metrics.json")})
    read_runs(folder)
    change(stage / "metrics.json", score=0.99)
    with pytest.raises(
        InputError, match=r"stage1/metrics\.json is damaged \(it is another than its stage\.json tells\)"
    ):
        read_runs(folder)


def test_a_damaged_comparison_json_is_named(run_of, tmp_path):
    file = tmp_path / "comparison.json"
    text = records.to_json([run_of("singlestage", 1)])
    for content, message in {
        text[:-300]: "is damaged",
        text.replace('"format": 1', '"format": 9'): "has format 9, this version reads 1",
        "[]": "is no record of a comparison, or one of an older version",
        '{"format": 1, "runs": []}': "is damaged",
        text.replace('"seed"', '"sead"'): "is damaged",
        text.replace('"title"', '"tittle"'): "is damaged",
        text.replace('"seed": 1', '"seed": "x"'): "is damaged .*the seed of",
        text.replace('"seed": 1', '"seed": true'): "is damaged .*the seed of",
        re.sub(
            r'"steps": \d+', '"steps": null', text
        ): "is damaged .*the steps of stage teacher of singlestage-1 is None",
        text.replace('"versions": {', '"versions": {"x": 1, '): "is damaged .*the versions of",
        re.sub(r'"curve": \[\s+\[', '"curve": [["a", 0.5], [', text, count=1): "is damaged .*the curve of",
        re.sub(r'"predicted": \[\d', '"predicted": [7', text): "is damaged .*predictions of dev in stage teacher",
        re.sub(r'"labels": \[[\d., ]+\]', '"labels": []', text): "is damaged .*predictions of dev in stage teacher",
        text[: text.rindex('"score"')] + re.sub('"score": [0-9.]+', '"score": null', text[text.rindex('"score"') :]): (
            "is damaged .*final score"
        ),
    }.items():
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            read_runs(file)
