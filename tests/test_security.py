"""What docs/security.md promises of files that others made."""

import contextlib
import json
import os
import pickle
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, Features, Image

from bitkd.callbacks.checkpoints import BestCheckpoint
from bitkd.cli import main
from bitkd.compare.comparison import Comparison
from bitkd.compare.load import load_run, read_runs
from bitkd.compare.record_file import to_json
from bitkd.config.load import load_config
from bitkd.data.augment.augmenter import load_shards
from bitkd.data.hub import load_tokenizer
from bitkd.data.task_checks import check_hub_id
from bitkd.errors import InputError
from bitkd.files import is_alive
from bitkd.models.artifact import load_classifier, load_student
from bitkd.names import escaped
from bitkd.pipeline.plan import make_plan
from bitkd.pretrained.load import read_model_config
from bitkd.report.mermaid import draw_graph
from bitkd.report.tables import paragraph
from bitkd.report.write import as_csv, write_report
from bitkd.store.artifacts import METRICS_FILE, PREDICTIONS_FILE, STAGE_FILE, Store, read_artifact
from bitkd.store.gc import prune, take_inventory
from bitkd.store.lock import Lock
from bitkd.store.run_folder import MANIFEST, RunFolder
from bitkd.sweep.runner import TrialProcess
from bitkd.sweep.spec import may_propose, read_sweep
from bitkd.sweep.text import sweep_data
from bitkd.sweep.trials import Sweep, Trial
from tests.compare.synthetic import make_one, write_run
from tests.store.test_artifacts import METRICS, RECORD
from tests.sweep.conftest import COMMAND, sweep_content

SECRET = "do not touch\n"


@pytest.fixture
def secret(tmp_path):
    """A file of the reader's, outside of everything that a command names."""
    file = tmp_path / "home" / "secret"
    file.parent.mkdir()
    file.write_text(SECRET)
    yield file
    assert file.read_text() == SECRET
    assert [path.name for path in file.parent.iterdir()] == ["secret"]


@pytest.fixture
def given(tmp_path):
    """The folder of a run that someone else made."""
    return write_run(make_one("singlestage", 1), tmp_path / "given" / "run")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs" / "store")
    store.prepare()
    return store


KEY = "finetune-0123456789abcdef0123"


def publish(store, key=KEY):
    return store.publish(key, lambda folder: (folder / "model.safetensors").write_bytes(b"x"), RECORD, METRICS)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# Runs and comparisons


def test_a_given_run_is_read(given):
    assert load_run(given, to_compare=True).final.score


@pytest.mark.parametrize("name", [STAGE_FILE, METRICS_FILE, PREDICTIONS_FILE, "model.safetensors", "more"])
def test_a_link_in_an_artifact_is_not_followed(given, name, secret):
    place = given / "teacher" / name
    place.unlink(missing_ok=True)
    place.symlink_to(secret)
    with pytest.raises(InputError, match=rf"{name} is a link; an artifact has only plain files"):
        load_run(given)


def test_a_pipe_in_an_artifact_is_not_waited_for(given):
    (given / "teacher" / METRICS_FILE).unlink()
    os.mkfifo(given / "teacher" / METRICS_FILE)
    with pytest.raises(InputError, match=r"metrics\.json is no plain file"):
        load_run(given)


def test_a_link_of_a_run_leads_only_to_the_artifact_that_its_manifest_names(given, secret):
    other = given.parent / "elsewhere"
    shutil.copytree(given / "teacher", other)
    (given / "teacher").unlink()
    (given / "teacher").symlink_to(other)
    with pytest.raises(InputError, match=r"is not the artifact that the run's manifest\.json names"):
        load_run(given)


@pytest.mark.parametrize("name", ["../../elsewhere", "..", "/etc", "a/b", "a\x1b[31m"])
def test_a_manifest_names_no_stage_outside_of_its_run(given, name):
    edit(given / MANIFEST, lambda content: [content[field].update({name: "x-1"}) for field in ("planned", "artifacts")])
    with pytest.raises(InputError, match=r"is damaged .(it has a stage|the control character)") as caught:
        load_run(given)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["../../../home/secret", "/etc/passwd", ".."])
def test_a_record_names_no_file_outside_of_its_artifact(store, name, secret):
    folder = publish(store).path
    edit(folder / STAGE_FILE, lambda content: content["checksums"].update({name: "0" * 64}))
    assert "cannot be read (stage.json names the file" in store.find_damage(KEY)


def test_a_run_that_is_compared_reads_no_file_outside_of_its_artifacts(given, secret):
    edit(given / "teacher" / STAGE_FILE, lambda content: content["checksums"].update({f"{secret}": "0" * 64}))
    with pytest.raises(InputError, match=r"is damaged .it names the file"):
        load_run(given, to_compare=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.update(task="a\x1b]0;x\x07"), r"the control character '\\x1b'"),
        (lambda run: run["stages"][0].update(title="a\rb"), r"the control character '\\r'"),
        (lambda run: run["settings"].update({"a\x1bb": 1}), r"the control character '\\x1b'"),
        (lambda run: run["stages"][0].update(student_flops=10**400), "the number 1000"),
        (lambda run: run["stages"][-1].update(seconds=float("inf")), "the number inf"),
        (lambda run: run.update(seed=-(10**40)), "the number -1000"),
    ],
)
def test_a_comparison_has_plain_words_and_possible_numbers(change, message, tmp_path):
    file = tmp_path / "comparison.json"
    file.write_text(to_json([make_one("singlestage", 1)]))
    edit(file, lambda content: change(content["runs"][0]))
    with pytest.raises(InputError, match=f"is damaged .*{message}") as caught:
        read_runs(file)
    assert str(caught.value).isprintable()


DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


def test_deeply_nested_records_are_refused(given, tmp_path, store):
    (tmp_path / "comparison.json").write_text(DEEP)
    with pytest.raises(InputError, match=r"is damaged"):
        read_runs(tmp_path / "comparison.json")
    publish(store)
    (store.path(KEY) / METRICS_FILE).write_text(DEEP)
    assert "cannot be read" in store.find_damage(KEY)
    assert [entry.score for entry in take_inventory(store, tmp_path).entries] == [None]
    (given / MANIFEST).write_text(DEEP)
    with pytest.raises(InputError, match=r"is damaged"):
        load_run(given)


HOSTILE = (
    "<script>x</script> [a](http://b.c) ![i](j) a|b `c` *d* _e_ ~f~ $g$ http://h.i www.j.k &lt; \\<b> \n# l\n\n- m"
)


def test_names_and_titles_are_text_in_every_form_of_a_report(tmp_path, capsys):
    run = make_one("singlestage", 1)
    stages = [replace(stage, title=HOSTILE, device=HOSTILE) for stage in run.stages]
    hostile = replace(run, pipeline=HOSTILE, title=HOSTILE, stages=stages, versions={HOSTILE: HOSTILE})
    write_report([hostile, make_one("multistage", 1)], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert not re.search(
        r"<script|<b>|(?<!\\)\[a|(?<!\\)\]\(http|http://|www\.j|(?<!\\)`|^# l|^- m\b", text, re.MULTILINE
    )
    # Pipes that make cells: as many in each row of a table.
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    page = (tmp_path / "index.html").read_text()
    assert "<script>" not in page
    assert 'href="http' not in page
    with open(tmp_path / "comparison.csv") as stream:
        assert HOSTILE.splitlines()[0] in stream.read()


def test_a_line_of_markdown_shows_text_as_it_is():
    assert escaped("single_binary (lr=1e-3), 2 < 3") == "single_binary (lr=1e-3), 2 &lt; 3"
    assert escaped("a@b.c") == "a@<!-- -->b.c"
    assert escaped("_a_ *b*\nc") == r"\_a\_ \*b\* c"
    assert [paragraph(text)[:6] for text in ("# a", "- a", "12. a", "+ a", "a - b")] == [
        "&#35; ",
        "&#45; ",
        "&#49;2",
        "&#43; ",
        "a - b",
    ]


def test_a_cell_of_a_table_is_no_formula(tmp_path):
    run = make_one("singlestage", 1)
    formula = replace(run, stages=[replace(stage, title="=cmd|' /c calc'!A1") for stage in run.stages])
    write_report([formula], tmp_path)
    assert ",'=cmd|" in (tmp_path / "comparison.csv").read_text()


def test_a_heading_of_a_table_is_no_formula():
    run = make_one("singlestage", 1)
    stages = [replace(stage, dev={**stage.dev, "=cmd()": {"accuracy": 0.5}}) for stage in run.stages]
    assert ",'=cmd()/accuracy" in as_csv(Comparison.of([replace(run, stages=stages)]))


def test_a_title_does_not_leave_its_box():
    stage = {"name": "a", "title": 'x"]\nclick a "http://b"', "kind": "finetune", "inputs": {}, "bits": 32}
    assert '  a["x#34;]#10;click a #34;http://b#34;"]\n' in draw_graph([stage])


# The store


@pytest.mark.parametrize("name", [".tmp", ".work", ".locks", ".runs"])
def test_a_store_whose_own_folder_leads_elsewhere_is_refused(tmp_path, name, secret):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / name).symlink_to(secret.parent)
    with pytest.raises(InputError, match=rf"{re.escape(name)} is a link, so that bitkd would write elsewhere"):
        Store(tmp_path / "given").prepare()


def test_an_artifact_that_is_a_link_is_neither_used_nor_followed(store, tmp_path, secret):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(publish(store).path, elsewhere)
    store.path(KEY).symlink_to(elsewhere)
    assert "is a link" in store.find_damage(KEY)
    with pytest.raises(InputError, match="is a link"):
        store.load(KEY)
    inventory = take_inventory(store, tmp_path / "runs")
    assert inventory.entries == []
    assert prune(store, inventory, tmp_path / "runs", needed_too=True) == ([], [])
    store.remove(KEY)
    assert not os.path.lexists(store.path(KEY))
    assert (elsewhere / STAGE_FILE).is_file()


def test_gc_deletes_nothing_that_a_link_leads_to(store, tmp_path, secret):
    folder = publish(store).path
    (folder / "more").symlink_to(secret.parent)
    (store.root / ".work" / KEY).mkdir(parents=True)
    (store.root / ".work" / KEY / "more").symlink_to(secret.parent)
    removed, _ = prune(store, take_inventory(store, tmp_path / "runs"), tmp_path / "runs")
    assert len(removed) == 2
    assert not folder.exists()


def test_checkpoints_are_not_written_through_links(store, secret):
    work = store.work(KEY)
    work.mkdir(parents=True)
    (work / "step-1.ckpt").symlink_to(secret)
    store.work("more").symlink_to(secret.parent)
    store.prepare()
    assert list(store.work("x").parent.rglob("*")) == [work]


def test_a_heartbeat_is_not_written_through_a_link(store, secret):
    lock = Lock(store.root, KEY)
    lock.file.parent.mkdir()
    lock.beat.symlink_to(secret)
    assert lock.wait(0) == "held"
    lock.release()


@pytest.mark.parametrize(
    "content", ["[]", "{}", '"x"', '{"id": 1, "host": [], "pid": "x"}', DEEP, '{"folder": 1, "host": 2, "keys": [3]}']
)
def test_odd_records_of_a_store_are_passed_over(store, tmp_path, content):
    publish(store)
    for file in (".runs/x", f".locks/{KEY}", ".locks/run-x", f"{KEY}/{METRICS_FILE}", f"{KEY}/{STAGE_FILE}"):
        (store.root / file).parent.mkdir(exist_ok=True)
        (store.root / file).write_text(content)
    assert store.registered() == []
    store.active_runs()
    assert store.locked()  # a lock that cannot be read may be in use
    [entry] = take_inventory(store, tmp_path / "runs").entries
    assert entry.score is None


def test_pipes_in_a_store_are_not_waited_for(store, tmp_path, given):
    publish(store)
    for file in (".runs/x", f".locks/{KEY}", f".locks/{KEY}.beat", f"{KEY}/{METRICS_FILE}", f"{KEY}/{STAGE_FILE}"):
        (store.root / file).parent.mkdir(exist_ok=True)
        (store.root / file).unlink(missing_ok=True)
        os.mkfifo(store.root / file)
    (given / MANIFEST).unlink()
    os.mkfifo(given / MANIFEST)
    assert store.registered() == []
    assert [entry.score for entry in take_inventory(store, given.parent.parent).entries] == [None]
    with pytest.raises(InputError, match=r"is no run: it has no manifest\.json"):
        RunFolder.read(given)
    (store.root / ".locks" / KEY).unlink()
    lock = Lock(store.root, KEY)
    assert lock.wait(0) == "held"
    lock.release()


def test_an_impossible_score_is_not_listed(store, tmp_path):
    publish(store)
    (store.path(KEY) / METRICS_FILE).write_text(f'{{"score": {10**400}}}')
    assert [entry.score for entry in take_inventory(store, tmp_path).entries] == [None]


def test_a_checkpoint_of_another_name_has_no_step(store):
    store.work(KEY).mkdir(parents=True)
    for name in ("step-last", "step-12"):
        (store.work(KEY) / f"{name}.ckpt").touch()
    assert store.saved_step(KEY) == 12


@pytest.mark.parametrize(("file", "field"), [("teacher/stage.json", "device"), (MANIFEST, "title")])
def test_a_record_has_plain_words(given, file, field):
    edit(given / file, lambda content: content.update({field: "a\x1b]0;x\x07"}))
    with pytest.raises(InputError, match=r"is damaged .*control character '\\x1b'") as caught:
        load_run(given)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("pid", [0, -1, 10**30])
def test_an_odd_process_id_is_no_process(pid):
    assert not is_alive(pid)


# Run folders that are continued


@pytest.mark.parametrize("name", ["cache", "cache/facts", "cache/demo"])
def test_a_cache_that_leads_elsewhere_is_refused(tmp_path, name, secret, settings):
    link = tmp_path / "runs" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(secret.parent)
    with pytest.raises(InputError, match=r"is a link, so that bitkd would write elsewhere"):
        make_plan(load_config(settings(tmp_path / "runs")))


@pytest.mark.parametrize("place", ["task", "task/run", "task/run/logs", "task/run/logs/csv"])
def test_a_run_is_written_only_under_run_dir(tmp_path, place, secret):
    link = tmp_path / "runs" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(secret.parent)
    with pytest.raises(InputError, match=r"is a link, and a run writes only under"):
        RunFolder.open(tmp_path / "runs", "task", "run")


def test_a_dataset_of_the_hub_is_no_folder_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_hub_id("owner/other", "hub.path=")
    for name in ("owner", "owner/name"):
        with pytest.raises(InputError, match=rf"hub\.path={name} is also a folder"):
            check_hub_id(name, "hub.path=")


def test_files_of_a_run_are_replaced_and_not_written_through_links(tmp_path, given, secret):
    manifest = RunFolder.read(given).manifest
    folder = RunFolder.open(tmp_path / "runs", "task", "run")
    folder.folder.mkdir(parents=True)
    for name in ("config.yaml", MANIFEST):
        (folder.folder / name).symlink_to(secret)
    folder.begin(manifest, "a: 1\n")
    assert (folder.folder / "config.yaml").read_text() == "a: 1\n"


# Models


def edited(folder, tmp_path, name="config.json", **changes):
    copy = tmp_path / "model"
    if not copy.is_dir():
        shutil.copytree(folder, copy)
    edit(copy / name, lambda content: content.update(changes))
    return copy


class Bomb:
    """Pickled: creates a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
def test_pickled_weights_run_no_code(tiny_bert, tmp_path, save):
    model = edited(tiny_bert, tmp_path)
    (model / "model.safetensors").unlink()
    save({"bert.x": Bomb(tmp_path / "ran")}, model / "pytorch_model.bin")
    best = BestCheckpoint(tmp_path, "dev/score")
    save({"state_dict": Bomb(tmp_path / "ran")}, best.file)
    with pytest.raises(Exception, match=r"(?i)weights|pickle"):
        load_classifier(model)
    with pytest.raises(Exception, match=r"(?i)weights only"):
        best.load_into(torch.nn.Linear(1, 1))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["bert", "mine"])
def test_the_code_of_a_model_is_never_run(tiny_bert, tmp_path, model_type, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    classes = {name: "code.Mine" for name in ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")}
    model = edited(tiny_bert, tmp_path, auto_map=classes, model_type=model_type)
    edited(model, tmp_path, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Mine", None]})
    (model / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    if model_type == "bert":
        assert read_model_config(model).hidden_size == 32
    else:
        with pytest.raises(InputError, match=r"config\.json cannot be used: .*custom code"):
            read_model_config(model)
    with contextlib.suppress(InputError):
        load_tokenizer(model)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_reads_no_file_of_another_folder(tiny_bert, tmp_path):
    (tmp_path / "other.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhidden\n")
    model = edited(tiny_bert, tmp_path, "tokenizer_config.json", vocab_file=str(tmp_path / "other.txt"))
    edited(model, tmp_path, "tokenizer_config.json", tokenizer_file=str(tmp_path / "other.txt"))
    assert "hidden" not in load_tokenizer(model).get_vocab()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; no encoder has more than 10,000"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"vocab_size": 10**400}, "vocab_size is 1000"),
        ({"vocab_size": 10**8}, "give 3,200,000,000 numbers, but the weights have only"),
    ],
)
def test_impossible_sizes_of_a_model_are_refused(tiny_bert, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_model_config(edited(tiny_bert, tmp_path, **changes))


def test_a_model_names_no_file_or_model_elsewhere(tiny_bert, tmp_path, secret):
    model = edited(tiny_bert, tmp_path)
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../home/secret"}}))
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    with pytest.raises(InputError, match=r"names the shard '\.\./home/secret', which is no file beside it"):
        load_classifier(model)
    index.unlink()
    edited(model, tmp_path, transformers_weights="../home/secret.safetensors")
    with pytest.raises(
        InputError, match=r"transformers_weights is \.\./home/secret\.safetensors, which is no file beside it"
    ):
        read_model_config(model)
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(secret.parent)}))
    with pytest.raises(InputError, match="is an adapter"):
        read_model_config(model)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_deeply_nested_files_of_a_model_are_refused(tiny_bert, tmp_path, name):
    model = edited(tiny_bert, tmp_path)
    (model / name).write_text(DEEP)
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(model)
    (model / "config.json").write_text(DEEP)
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        read_model_config(model)


def test_an_artifact_that_is_given_as_a_model_has_no_links(tiny_bert, tmp_path, secret):
    model = edited(tiny_bert, tmp_path)
    (model / STAGE_FILE).write_text("{}")
    (model / "vocab.txt").symlink_to(secret)
    with pytest.raises(InputError, match=r"vocab\.txt is a link"):
        load_student(model)


def test_augmented_rows_open_no_other_files(tmp_path, secret):
    rows = Dataset.from_dict({"input_ids": [{"path": str(secret), "bytes": None}]}, Features({"input_ids": Image()}))
    rows.save_to_disk(tmp_path / "rows")
    [file] = (tmp_path / "rows").glob("*.arrow")
    file.rename(tmp_path / "rows" / "shard-0.arrow")
    with pytest.raises(InputError, match="its column input_ids is of a type that rows of a task do not have"):
        load_shards(tmp_path / "rows")


# Sweeps


@pytest.fixture
def sweep_file(tmp_path):
    def write(text=None, **changes):
        file = tmp_path / "two.yaml"
        file.write_text(text or json.dumps(sweep_content(**changes)))
        return str(file)

    return write


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "touch ran", *COMMAND[1:]],
        ["${env}", "sh", *COMMAND[1:]],
        ["${env}", "LD_PRELOAD=/tmp/x.so", *COMMAND[1:]],
        ["${env}", "PYTHONPATH=.", *COMMAND[1:]],
        ["${env}", "WANDB_PROJECT=${envvar:HOME}", *COMMAND[1:]],
        ["${env}", "PATH=${envvar:HOME}", *COMMAND[1:]],
        ["${program}", *COMMAND[1:]],
        ["${env}", "-S", *COMMAND[1:]],
        ["${env}", "bitkd", "run", "pipeline.title=${envvar:HOME}", "${args_no_hyphens}"],
        ["python", "-c", "open('ran', 'w')", "-m", "bitkd", "run", "${args_no_hyphens}"],
    ],
    ids=" ".join,
)
def test_a_sweep_starts_nothing_but_bitkd_and_takes_nothing_from_the_environment(sweep_file, command):
    with pytest.raises(InputError, match=r"command: .* is not supported"):
        read_sweep(sweep_file(command=command))


@pytest.mark.parametrize(
    "start", [[], ["${env}"], ["${env}", "PATH=.venv/bin:${envvar:PATH}"], ["/usr/bin/env", "CUDA_VISIBLE_DEVICES=0"]]
)
def test_usual_commands_of_a_sweep_are_allowed(sweep_file, start):
    read_sweep(sweep_file(command=[*start, "bitkd", "run", "${args_no_hyphens}"]))
    read_sweep(sweep_file(command=[*start, "python", "-m", "bitkd", "run", "${args_no_hyphens}"]))


def test_a_sweep_starts_no_bitkd_of_its_own(sweep_file, tmp_path, capsys):
    program = tmp_path / "bin" / "bitkd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for command in ([str(program)], ["${env}", f"PATH={program.parent}", "bitkd"]):
        file = sweep_file(command=[*command, "run", "${args_no_hyphens}"])
        assert main(["sweep", file, f"run.dir={tmp_path}", "--dry-run"]) == 2
        assert re.search("not the bitkd that checks the trials|only the folder of this bitkd", capsys.readouterr().err)


@pytest.mark.parametrize("path", ["{0}:${{envvar:PATH}}", "${{envvar:PATH}}:{0}", "{1}:{0}", ".:${{envvar:PATH}}"])
def test_the_path_of_a_sweep_names_only_the_folder_of_its_bitkd(sweep_file, tmp_path, capsys, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    own = Path(sys.executable).parent
    file = sweep_file(command=["${env}", f"PATH={path.format('evil', own)}", "bitkd", "run", "${args_no_hyphens}"])
    assert main(["sweep", file, f"run.dir={tmp_path}", "--dry-run"]) == 2
    assert "PATH= may name only the folder of this bitkd" in capsys.readouterr().err
    file = sweep_file(command=["${env}", f"PATH={own}:${{envvar:PATH}}", "bitkd", "run", "${args_no_hyphens}"])
    assert main(["sweep", file, f"run.dir={tmp_path}", "--dry-run"]) == 0


def test_a_link_named_bitkd_leads_only_to_this_bitkd(sweep_file, tmp_path):
    own = Path(sys.executable).parent
    for target, code in ((own / "bitkd", 0), (own / "pip", 2), (own / "python", 2)):
        (tmp_path / "bitkd").unlink(missing_ok=True)
        (tmp_path / "bitkd").symlink_to(target)
        file = sweep_file(command=[str(tmp_path / "bitkd"), "run", "${args_no_hyphens}"])
        assert main(["sweep", file, f"run.dir={tmp_path}", "--dry-run"]) == code


def test_a_trial_runs_no_code_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bitkd").mkdir()
    for name in ("__init__", "__main__"):
        (tmp_path / "bitkd" / f"{name}.py").write_text("print('ran')")
    with open(tmp_path / "log", "w+b") as log:
        assert TrialProcess().run([sys.executable, "-m", "bitkd", "--help"], log) == 0
    assert "ran" not in (tmp_path / "log").read_text().split()


REPEATED = "".join(f"  - &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 40))


@pytest.mark.parametrize("value", ["&a [*a]", f"\n  - &a0 [x]\n{REPEATED}"], ids=["inside itself", "nested"])
def test_aliases_of_a_sweep_do_not_grow_without_end(sweep_file, value):
    with pytest.raises(InputError, match="with what its aliases"):
        read_sweep(sweep_file(f"description: {value}\n"))


def test_odd_scalars_of_a_sweep_are_text():
    node = yaml.compose("x: =\ny: 2024-99-99\n")
    assert sweep_data(node) == {"x": "=", "y": "2024-99-99"}
    with pytest.raises(InputError, match="write a decimal number"):
        sweep_data(yaml.compose("x: 0b_"))


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ({"min": 0.1, "max": 0.2}, 0.15, 0.3),
        ({"min": 1, "max": 4}, 2, 2.5),
        ({"min": 1, "max": 4, "distribution": "int_uniform"}, 4, 10**400),
        ({"min": 1e-5, "max": 1e-3, "distribution": "log_uniform_values"}, 1e-4, 1e-6),
        ({"mu": 0.0, "sigma": 1.0, "distribution": "normal"}, -7.0, float("nan")),
    ],
    ids=str,
)
def test_a_recorded_value_is_within_its_distribution(parameter, good, bad):
    assert may_propose({"train.lr": parameter}, {"train.lr": good})
    assert not may_propose({"train.lr": parameter}, {"train.lr": bad})


def test_a_trial_is_what_the_sweep_says_and_not_what_its_file_says(sweep_file, tmp_path, secret):
    sweep = Sweep.open(read_sweep(sweep_file(), [f"run.dir={tmp_path}"]))
    sweep.begin()
    trial = sweep.trial(0)
    wanted = (trial.name, dict(trial.parameters), trial.log, trial.run)
    trial.parameters = {**trial.parameters, "run.dir": str(secret.parent)}
    trial.log, trial.run = str(secret), str(secret.parent)
    sweep.keep(trial)
    file = sweep.folder / "trials" / f"{trial.name}.json"
    edit(file, lambda content: content.update(name="../../x"))
    found = sweep.trial(0)
    assert (found.name, found.parameters, found.log, found.run) == wanted


@pytest.mark.parametrize("parameters", [{"run.dir": "/"}, {"train.lr": "x", "task": "demo", "pipeline": "singlestage"}])
def test_bayes_goes_on_only_with_settings_that_its_file_gives(sweep_file, tmp_path, parameters):
    spread = {"train.lr": {"min": 0.1, "max": 0.2}, "task": {"value": "demo"}, "pipeline": {"value": "singlestage"}}
    file = sweep_file(method="bayes", run_cap=3, parameters=spread)
    sweep = Sweep.open(read_sweep(file, [f"run.dir={tmp_path}"]))
    sweep.begin()
    sweep.keep(Trial(1, "x", parameters, "log", "run"))
    with pytest.raises(InputError, match=r"has a trial 1 with settings that .* does not give"):
        sweep.trial(1)


@pytest.mark.parametrize("name", ["trials", "logs", ".locks"])
def test_a_sweep_is_written_only_under_run_dir(sweep_file, tmp_path, name, secret):
    sweep = Sweep.open(read_sweep(sweep_file(), [f"run.dir={tmp_path}"]))
    sweep.folder.mkdir(parents=True)
    (sweep.folder / name).symlink_to(secret.parent)
    with pytest.raises(InputError, match=r"is a link, and a sweep writes only under"):
        sweep.begin()


def test_the_text_of_a_sweep_is_what_stands_there(sweep_file):
    text = """
name: 0.10
method: grid
metric: {name: dev/score, goal: maximize}
parameters:
  task: {value: demo}
  pipeline: {value: singlestage}
  data.dir: {values: [010, yes, 1e3, 12:30]}
  task.labels: {values: [[no, 01, yes]]}
  train.max_steps: {value: 10}
command: [bitkd, run, "${args_no_hyphens}"]
"""
    spec = read_sweep(sweep_file(text))
    assert spec.name == "0.10"
    assert spec.content["parameters"]["data.dir"]["values"] == ["010", "yes", "1e3", "12:30"]
    config = spec.config(
        {"task": "demo", "data.dir": "010", "task.labels": ["no", "01", "yes"], "pipeline": "singlestage"}
    )
    assert (config.data.dir, config.task.labels) == ("010", ["no", "01", "yes"])
    with pytest.raises(InputError, match=r"parameters\.train\.max_steps\.value: YAML reads 010 as 8; write a decimal"):
        read_sweep(sweep_file(text.replace("{value: 10}", "{value: 010}")))
    with pytest.raises(InputError, match=r"two\.yaml: method is given twice, in line 3 and in line 4"):
        read_sweep(sweep_file(text.replace("method: grid", "method: grid\nmethod: grid")))


def test_an_artifact_is_read_from_a_copied_run(given, tmp_path):
    copy = shutil.copytree(given, tmp_path / "copy")  # links become folders
    assert load_run(copy).final.score == load_run(given).final.score
    assert read_artifact(copy / "teacher").stage.kind == "finetune"
