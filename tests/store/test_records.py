"""The JSON on disk: what a record reads, it writes again to the last character."""

import json
from pathlib import Path

import pytest

from bitkd.errors import InputError
from bitkd.store.records import MetricsRecord, RunManifest, StageRecord, parse_record

GOLDEN = Path(__file__).parent / "golden"
TYPES = {"stage": StageRecord, "metrics": MetricsRecord, "manifest": RunManifest}


@pytest.mark.parametrize("file", sorted(GOLDEN.iterdir()), ids=lambda file: file.stem)
def test_a_record_is_written_as_it_was_read(file):
    text = file.read_text()
    record = parse_record(TYPES[file.stem.split("_")[0]], text, file, "")
    assert json.dumps(record.as_data(), indent=2, ensure_ascii=False) + "\n" == text


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("stage_student", {"seconds": ...}, "seconds: Field required"),
        ("stage_student", {"steps": None}, "steps: Input should be a valid integer"),
        ("stage_student", {"steps": True}, "steps: Input should be a valid integer"),
        (
            "stage_student",
            {"flops": {"student": "9", "teacher": 1}},
            r"flops\.student: Input should be a valid integer",
        ),
        ("stage_student", {"curve": [["x"]]}, r"curve\.0"),
        ("metrics_student", {"score": ...}, "score: Field required"),
        ("metrics_student", {"dev": 1}, r"sets\.dev: Input should be"),
        ("manifest", {"planned": ["x"]}, "planned: Input should be"),
        ("manifest", {"budget": {}}, r"budget\.unit: Field required"),
        ("manifest", {"seed": "x"}, "seed: Input should be a valid integer"),
    ],
)
def test_a_wrong_field_is_named(name, changes, message):
    content = json.loads((GOLDEN / f"{name}.json").read_text()) | changes
    text = json.dumps({key: value for key, value in content.items() if value is not ...})
    with pytest.raises(
        InputError, match=rf"^a/file\.json is damaged or of another version \({message}.*\); run it again$"
    ):
        parse_record(TYPES[name.split("_")[0]], text, "a/file.json", "run it again")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"score"', b"\xff"])
def test_what_is_no_record_is_refused(text):
    for record in TYPES.values():
        with pytest.raises(InputError, match="x is damaged or of another version"):
            parse_record(record, text, "x", "")
