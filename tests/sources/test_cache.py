"""Sources are looked at once: `bitkd plan` then takes facts of them from notes, until a file changes that they were found in."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.pipeline.plan import make_plan
from bitkd.sources.cache import Memo, open_memo
from bitkd.sources.facts import SourceFacts
from bitkd.sources.sources import Sources

AUGMENTED = ["task.augmentation.enabled=true", "task.augmentation.variants=2"]
HEAVY = ["torch", "lightning", "torchmetrics", "transformers", "datasets"]


@pytest.fixture
def planned(settings, tmp_path, capsys):
    """Makes a plan and answers with its rows."""

    def make(*more):
        assert main(["plan", "--json", *settings(tmp_path / "runs", "multistage", *more)]) == 0
        return json.loads(capsys.readouterr().out)["stages"]

    return make


@pytest.fixture
def blind(monkeypatch):
    """Calling it makes every look at a source fail."""

    def close_eyes():
        monkeypatch.setattr(SourceFacts, "loaded", property(lambda self: pytest.fail("a source is loaded")))

    return close_eyes


def test_new_settings_on_known_sources_need_no_heavy_library_and_give_the_same_plan(finished, settings, tmp_path):
    teacher = f"stages.teacher.checkpoint={finished / 'rte' / 'singlestage' / 'teacher'}"
    known = ([], AUGMENTED, [teacher], ["data.selection=holdout"])
    new = (["seed=7", "train.lr=1e-3"], ["student.width=0.5", "task.metrics=[accuracy,f1]", "train.max_steps=null"])
    pipelines = ("multistage", "singlestage")
    for overrides in (settings(tmp_path, pipeline, *more) for pipeline in pipelines for more in known):
        assert main(["plan", *overrides]) == 0
    asked = [settings(tmp_path, pipeline, *more, *other) for pipeline in pipelines for more in known for other in new]
    wrong = ["data.max_length=400", "student.layers=[9]", "task.metric=speed", "task.augmentation.variants=0"]
    code = f"""
import contextlib, io, json, sys
from bitkd.cli import main
asked, wrong = json.load(sys.stdin)
assert [main(["plan", *overrides]) for overrides in wrong] == [2] * len(wrong)
answers = []
for overrides in asked:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main(["plan", "--json", *overrides]) == 0
    answers.append(json.loads(told.getvalue())["stages"])
heavy = set({HEAVY}) & set(sys.modules)
assert not heavy, heavy
print(json.dumps(answers))
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([asked, [settings(tmp_path, "multistage", text) for text in wrong]]),
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    for overrides, stages in zip(asked, json.loads(told.stdout)):
        rows = make_plan(load_config(overrides)).rows()
        assert [{name: stage[name] for name in rows[0]} for stage in stages] == rows


@pytest.mark.parametrize("pipeline", ["multistage", "singlestage"])
def test_a_run_leaves_its_facts_behind(runs, settings, blind, pipeline):
    blind()
    assert main(["plan", *settings(runs, pipeline, "seed=7")]) == 0


def test_other_settings_are_another_plan(planned):
    assert planned()[-1]["fingerprint"] != planned("train.lr=2e-2")[-1]["fingerprint"]


def test_a_changed_file_is_looked_at_anew(planned, tiny_bert, blind):
    planned()
    blind()
    planned("seed=7")
    file = tiny_bert / "config.json"
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        with pytest.raises(pytest.fail.Exception, match="a source is loaded"):
            planned()
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_changed_row_changes_the_plan(planned, tiny_task, tmp_path):
    data = shutil.copytree(tiny_task, tmp_path / "glue")
    first = planned(f"data.dir={data}")
    with open(data / "RTE" / "dev.tsv", "a") as file:
        file.write("99\ta dog runs\ta cat\tentailment\n")
    assert planned(f"data.dir={data}")[0]["fingerprint"] != first[0]["fingerprint"]


def test_a_run_is_not_deceived_by_times(planned, settings, tiny_task, tmp_path):
    data = shutil.copytree(tiny_task, tmp_path / "glue")
    first = planned(f"data.dir={data}")
    file = data / "RTE" / "dev.tsv"
    before = file.stat()
    file.write_text(file.read_text().replace("dog", "cat"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert planned(f"data.dir={data}") == first
    looked = make_plan(load_config(settings(tmp_path / "runs", "multistage", f"data.dir={data}")))
    assert looked["teacher"].fingerprint != first[0]["fingerprint"]


def test_what_the_hub_holds_is_not_remembered(settings, tmp_path, monkeypatch):
    looks = []
    rows = {"hash": "content", "rows": {"train": 96, "dev": 33}}
    monkeypatch.setattr(Sources, "look_at_rows", lambda self: looks.append("rows") or rows)
    config = load_config(settings(tmp_path, "singlestage", "data.dir=null"))
    for _ in range(2):
        memo = open_memo(config, recall=True)
        make_plan(config, memo)
        memo.keep()
    assert looks == ["rows", "rows"]


def test_one_look_at_the_hub_serves_a_process_and_each_corpus_has_its_own(settings, tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(
        Sources, "look_at_rows", lambda self: looks.append("rows") or {"hash": "r", "rows": {"train": 96}}
    )
    monkeypatch.setattr(
        Sources,
        "look_at_corpus",
        lambda self: looks.append(self.config.data.hub_corpus.name) or {"hash": looks[-1], "rows": {"train": 96}},
    )
    given = ["data.dir=null", "data.corpus=[]", "data.hub_corpus.path=wiki"]
    configs = [
        load_config(settings(tmp_path, "multistage", *given, f"data.hub_corpus.name={name}"))
        for name in ("en", "de", "en")
    ]
    memo = open_memo(configs[0], recall=True)
    plans = [make_plan(config, memo) for config in configs]
    assert looks == ["rows", "en", "de"]
    keys = [plan["general"].key for plan in plans]
    assert keys[0] == keys[2] != keys[1]
    memo.keep()
    assert make_plan(configs[0], open_memo(configs[0], recall=True))["general"].key == keys[0]
    assert looks == ["rows", "en", "de", "rows", "en"]


def test_a_refusal_is_looked_at_again(tmp_path):
    source = tmp_path / "source"
    source.touch()
    answers = iter([InputError("no good"), 42])

    def look():
        answer = next(answers)
        if isinstance(answer, InputError):
            raise answer
        return answer

    memo = Memo(tmp_path / "facts", recall=True)
    with pytest.raises(InputError, match="no good"):
        memo.fact("answer", [], [source], look)
    memo.keep()
    assert Memo(tmp_path / "facts", recall=True).fact("answer", [], [source], look) == 42


def test_facts_that_cannot_be_kept_are_found_again(tmp_path):
    (tmp_path / "file").touch()
    for answer in (42, 43):
        memo = Memo(tmp_path / "file" / "facts", recall=True)
        assert memo.fact("answer", [], [], lambda answer=answer: answer) == answer
        memo.keep()
