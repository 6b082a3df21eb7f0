"""Bad input of `bitkd compare` is refused at once."""

import json
import subprocess
import sys

import pytest

from bitkd.compare.record_file import to_json
from bitkd.errors import InputError
from bitkd.report.write import check_folder

SLOW = ("torch", "transformers", "datasets", "lightning", "torchmetrics", "matplotlib", "wandb", "jinja2")
CPU_SECONDS = 3.0
"""Half a second on a quiet machine."""

REFUSE_ALL = """
import json, resource, sys
from bitkd.cli import main
codes = [main(["compare", *arguments]) for arguments in json.loads(sys.argv[1])]
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([codes, usage.ru_utime + usage.ru_stime, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_bad_input_is_refused_before_slow_libraries_are_imported(run_of, tmp_path):
    record, file = tmp_path / "comparison.json", tmp_path / "file"
    record.write_text(to_json([run_of("singlestage", 1)]))
    file.write_text("")
    cases = [[str(tmp_path / "nowhere")], [str(file)], [str(record), "--out", str(file / "report")]]
    cases += [[str(record), str(tmp_path / "nowhere.json")]]
    done = subprocess.run(
        [sys.executable, "-c", REFUSE_ALL, json.dumps(cases)], capture_output=True, text=True, check=True, timeout=60
    )
    codes, seconds, modules = json.loads(done.stdout)
    assert codes == [2] * len(cases)
    for message in (
        "nowhere does not exist",
        "file is no comparison.json",
        "report is not writable",
        "nowhere.json does not",
    ):
        assert message in done.stderr
    assert not set(SLOW) & set(modules)
    assert seconds < CPU_SECONDS


def test_a_report_needs_a_folder_that_can_be_written(tmp_path):
    check_folder(tmp_path / "new" / "report")
    assert not (tmp_path / "new").exists()  # nothing is made before there is a report
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"report is not writable \(.*file is no folder\); choose another folder"):
        check_folder(tmp_path / "file" / "report")
