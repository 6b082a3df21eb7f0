import json

import pytest

from bitkd.errors import InputError
from bitkd.store.exports import check_export, read_export, write_export
from bitkd.store.records import ExportRecord, TaskRecord

RECORD = ExportRecord(
    *(1, "packed", "rte", 2, "single", "abc", "", {}, {"dev": {"loss": None}}),
    measured_on=TaskRecord({}, 24, "files"),
    trained_for=TaskRecord({}, 32, "hub"),
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    (tmp_path / "README.md").write_text("card")
    write_export(tmp_path, RECORD)
    return tmp_path


def test_a_record_is_read_as_it_was_written(folder):
    record = check_export(folder)
    assert list(record.checksums) == ["model.safetensors"]
    assert record.metrics == RECORD.metrics
    assert (record.measured_on, record.trained_for) == (RECORD.measured_on, RECORD.trained_for)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"another version of bitkd \(format 2, this one reads 1\)"),
        ({"checksums": {"../../secret": "0"}}, "names the file ../../secret"),
        ({"checksums": {"model.safetensors": "0"}}, "has checksum"),
        ({"texts": "two"}, "damaged or of another version"),
    ],
)
def test_a_damaged_record_is_refused(change, message, folder):
    file = folder / "export.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        check_export(folder)


def test_a_folder_without_a_record_is_no_export(tmp_path):
    with pytest.raises(InputError, match="is no exported folder"):
        read_export(tmp_path)
