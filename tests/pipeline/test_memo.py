"""A plan is made once: `bitkd plan` then reads nothing but its note, until something changes that it was made from."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.pipeline import plan as planning
from bitkd.pipeline.memo import inputs_of, recall_plan


@pytest.fixture
def planned(settings, tmp_path, capsys):
    """Makes a plan and answers with its rows."""

    def make(*more):
        assert main(["plan", "--json", *settings(tmp_path / "runs", "multistage", *more)]) == 0
        return json.loads(capsys.readouterr().out)["stages"]

    return make


def test_an_equal_plan_needs_no_heavy_library(planned, settings, tmp_path):
    first = planned()
    code = (
        "import sys; from bitkd.cli import main; main(['plan', '--json', *sys.argv[1:]]); "
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, *settings(tmp_path / "runs", "multistage")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(told.stdout)["stages"] == first


def test_a_run_leaves_its_plan_behind(runs, settings):
    config = load_config(settings(runs, "multistage"))
    assert recall_plan(config) is None  # the copy is another folder than the one that was planned
    assert main(["run", "--json", *settings(runs, "multistage")]) == 0
    assert next(row["name"] for row in recall_plan(config)) == "teacher"


def test_other_settings_are_another_plan(planned):
    assert planned()[-1]["fingerprint"] != planned("train.lr=2e-2")[-1]["fingerprint"]


def test_a_changed_file_is_planned_anew(planned, tiny_bert, monkeypatch):
    planned()
    file = tiny_bert / "config.json"
    before = file.stat()
    monkeypatch.setattr(planning, "make_plan", lambda config: pytest.fail("nothing has changed yet"))
    planned()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        with pytest.raises(pytest.fail.Exception, match="nothing has changed"):
            planned()
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_changed_row_is_planned_anew(planned, tiny_task, tmp_path):
    data = shutil.copytree(tiny_task, tmp_path / "glue")
    first = planned(f"data.dir={data}")
    with open(data / "RTE" / "dev.tsv", "a") as file:
        file.write("99\ta dog runs\ta cat\tentailment\n")
    assert planned(f"data.dir={data}")[0]["fingerprint"] != first[0]["fingerprint"]


def test_what_the_hub_holds_is_not_remembered(settings, tmp_path):
    local = load_config(settings(tmp_path, "singlestage"))
    assert inputs_of(local)
    for more in ("data.dir=null", "model.pretrained=bert-base-uncased", "data.hub_corpus.path=wikitext"):
        assert inputs_of(load_config([*settings(tmp_path, "singlestage"), more])) is None
