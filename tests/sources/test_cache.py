"""Facts of sources are computed once: `bitkd plan` then reads them from the cache, until a file changes that they come from."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.pipeline.plan import make_plan
from bitkd.sources import sources as sources_module
from bitkd.sources.cache import FactCache, open_cache
from bitkd.sources.sources import Sources

AUGMENTED = ["task.augmentation.enabled=true", "task.augmentation.variants=2"]
HEAVY = ["torch", "lightning", "torchmetrics", "transformers", "datasets"]


@pytest.fixture
def planned(settings, tmp_path, capsys):
    """Makes a plan and returns its rows."""

    def make(*more):
        assert main(["plan", "--json", *settings(tmp_path / "runs", "multistage", *more)]) == 0
        return json.loads(capsys.readouterr().out)["stages"]

    return make


@pytest.fixture
def blind(monkeypatch):
    """Calling it makes every computation of a fact fail."""

    def close_eyes():
        def fail(*_):
            pytest.fail("a source is loaded")

        monkeypatch.setattr(Sources, "task_rows", property(fail))
        monkeypatch.setattr(Sources, "corpus_rows", property(fail))
        monkeypatch.setattr(Sources, "tokenizer", property(fail))

    return close_eyes


def test_new_settings_on_known_sources_need_no_heavy_library_and_give_the_same_plan(finished, settings, tmp_path):
    teacher = f"stages.teacher.checkpoint={finished / 'rte' / 'singlestage' / 'teacher'}"
    known = ([], AUGMENTED, [teacher], ["data.selection=holdout"])
    new = (["seed=7", "train.lr=1e-3"], ["student.width=0.5", "task.metrics=[accuracy,f1]", "train.max_steps=null"])
    pipelines = ("multistage", "singlestage", "multistage", "singlestage")  # facts do not depend on the pipeline
    pairs = [*zip(pipelines, known), *zip(pipelines[1:], known[:1])]
    for pipeline, more in pairs:
        assert main(["plan", *settings(tmp_path, pipeline, *more)]) == 0
    asked = [settings(tmp_path, pipeline, *more, *other) for pipeline, more in pairs for other in new]
    wrong = ["data.max_length=400", "student.layers=[9]", "task.metric=speed", "task.augmentation.variants=0"]
    code = f"""
import contextlib, io, json, sys
from bitkd.cli import main
asked, wrong = json.load(sys.stdin)
assert [main(["plan", *overrides]) for overrides in wrong] == [2] * len(wrong)
answers = []
for overrides in asked:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["plan", "--json", *overrides]) == 0
    answers.append(json.loads(printed.getvalue())["stages"])
heavy = set({HEAVY}) & set(sys.modules)
assert not heavy, heavy
print(json.dumps(answers))
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([asked, [settings(tmp_path, "multistage", text) for text in wrong]]),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    for overrides, stages in zip(asked, json.loads(process.stdout)):
        assert stages == make_plan(load_config(overrides)).rows()


@pytest.mark.parametrize("pipeline", ["multistage", "singlestage"])
def test_a_run_leaves_its_facts_behind(runs, settings, blind, pipeline):
    blind()
    assert main(["plan", *settings(runs, pipeline, "seed=7")]) == 0


def test_other_settings_are_another_plan(planned):
    assert planned()[-1]["fingerprint"] != planned("train.lr=2e-2")[-1]["fingerprint"]


def test_a_plan_with_another_length_counts_its_truncated_rows(planned, caplog):
    for length in (12, 11):
        planned(f"data.max_length={length}")
        assert f"rows longer than data.max_length={length} tokens are truncated" in caplog.text


def test_a_changed_file_is_read_anew(planned, tiny_bert, blind):
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
    computed = make_plan(load_config(settings(tmp_path / "runs", "multistage", f"data.dir={data}")))
    assert computed["teacher"].fingerprint != first[0]["fingerprint"]


@pytest.fixture
def hub(monkeypatch):
    """Rows and corpora that come from the hub; returns what was read, in order."""
    read = []

    def rows_of(name):
        read.append(name)
        return SimpleNamespace(
            content_hash=name, fingerprint=lambda: name, num_rows={"train": 96, "dev": 33}, dev_names=["dev"]
        )

    monkeypatch.setattr(Sources, "task_rows", property(lambda self: rows_of("rows")))
    monkeypatch.setattr(Sources, "corpus_rows", property(lambda self: rows_of(self.config.data.hub_corpus.name)))
    monkeypatch.setattr(sources_module, "make_documents", lambda config: None)
    return read


def test_what_the_hub_holds_is_not_cached(settings, tmp_path, hub):
    config = load_config(settings(tmp_path, "singlestage", "data.dir=null"))
    for _ in range(2):
        cache = open_cache(config, read_disk=True)
        make_plan(config, cache)
        cache.save()
    assert set(hub) == {"rows"}
    assert len(hub) == 4  # twice each: hash and counts


def test_the_hub_is_asked_once_in_a_process_and_each_corpus_has_its_own_facts(settings, tmp_path, hub):
    given = ["data.dir=null", "data.corpus=[]", "data.hub_corpus.path=wiki"]
    configs = [
        load_config(settings(tmp_path, "multistage", *given, f"data.hub_corpus.name={name}"))
        for name in ("en", "de", "en")
    ]
    cache = open_cache(configs[0], read_disk=True)
    plans = [make_plan(config, cache) for config in configs]
    once = list(dict.fromkeys(hub))
    assert once == ["rows", "en", "de"]
    keys = [plan["general"].key for plan in plans]
    assert keys[0] == keys[2] != keys[1]
    cache.save()
    before = len(hub)
    assert make_plan(configs[0], open_cache(configs[0], read_disk=True))["general"].key == keys[0]
    assert set(hub[before:]) == {"rows", "en"}


def test_a_refusal_is_not_cached(tmp_path):
    source = tmp_path / "source"
    source.touch()
    answers = iter([InputError("no good"), 42])

    def compute():
        answer = next(answers)
        if isinstance(answer, InputError):
            raise answer
        return answer

    cache = FactCache(tmp_path / "facts", read_disk=True)
    with pytest.raises(InputError, match="no good"):
        cache.get("answer", [], [source], compute)
    cache.save()
    assert FactCache(tmp_path / "facts", read_disk=True).get("answer", [], [source], compute) == 42


def test_facts_that_cannot_be_saved_are_computed_again(tmp_path):
    (tmp_path / "file").touch()
    for answer in (42, 43):
        cache = FactCache(tmp_path / "file" / "facts", read_disk=True)
        assert cache.get("answer", [], [], lambda answer=answer: answer) == answer
        cache.save()
