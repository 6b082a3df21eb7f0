"""Settings are typed by their annotations, not by how YAML reads what is written."""

import logging

import pytest
import yaml

import bitkd
from bitkd.config.load import load_config, to_yaml
from bitkd.errors import InputError

BOTH = ["pipeline=singlestage", "task=demo"]

LOOKS = ["0.10", "001", "010", "1e3", "12:30", "yes", "No", "on", "5e12345", "0x1F", "2023-11-01", "1_000", "-1", ".5"]
"""Texts that YAML reads as something else."""

TEXTS = [*LOOKS, "null", "~", "a: b", "a #b", "[x]", "{", "*x", "&x", "!x", "%x", "@x", "- x", "ä\u4e2d😀", "a\\b", "'"]


def task_file(tmp_path, **task):
    """A task's file in which strings are written as they are, without quotes."""
    lines = [f"  {key}: {value}" for key, value in {"name": "mine", "text": "[a]", "labels": "[x, y]", **task}.items()]
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(["task:", *lines, "  files: {dev: {dev: dev.tsv}}"]) + "\n", encoding="utf-8")
    return f"task={file}"


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_on_the_command_line_is_what_was_typed(text):
    config = load_config([*BOTH, f"run.dir={text}", f"pipeline.title={text}", f"task.files.dev.x={text}"])
    assert (config.run.dir, config.pipeline.title, config.task.files.dev["x"]) == (text, text, text)


@pytest.mark.parametrize("text", LOOKS)
def test_a_text_that_may_be_none_is_what_was_typed_unless_it_is_null(text):
    config = load_config([*BOTH, f"run.name={text}", f"data.dir={text}", f"task.text=[{text}, b]"])
    assert (config.run.name, config.data.dir, config.task.text) == (text, text, [text, "b"])
    for none in ("null", "~"):
        assert load_config([*BOTH, f"run.name={none}"]).run.name is None
    assert load_config([*BOTH, "run.name='null'"]).run.name == "null"


@pytest.mark.parametrize("text", [*LOOKS, "null", "~", "a b"])
def test_words_in_a_file_are_what_stands_there(text, tmp_path):
    quoted = task_file(tmp_path, name=f"'{text}'", labels=f"['{text}', \"b{text}\"]")
    assert load_config([BOTH[0], quoted]).task.labels == [text, f"b{text}"]
    config = load_config([BOTH[0], task_file(tmp_path, name=text, labels=f"[{text}, b]", text=f"[{text}]")])
    assert (config.task.name, config.task.labels, config.task.text) == (text, [text, "b"], [text])


def test_names_in_a_mapping_are_text_too(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("pipeline: {name: 010}\nstages:\n  on: {kind: finetune, labels: [no, null]}\n  1: {kind: init}\n")
    config = load_config([f"pipeline={file}", "task=demo", "task.files.dev={010: 1.0, off: 2}"])
    assert list(config.stages) == ["on", "1"]
    assert config.stages["on"].labels == ["no", "null"]
    assert config.task.files.dev == {"dev": "dev.tsv", "010": "1.0", "off": "2"}


def test_null_is_none_where_a_setting_may_be_none(tmp_path):
    config = load_config([BOTH[0], task_file(tmp_path, labels="null"), "task.files.header=~", "train.max_steps=null"])
    assert (config.task.labels, config.task.files.header, config.train.max_steps) == (None, None, None)


@pytest.mark.parametrize("text", [*LOOKS, "null", "~", "a: b", "😀", "x'\"y"])
def test_the_printed_configuration_reads_back_as_the_same(text, tmp_path):
    config = load_config(BOTH, values={"run.name": text, "pipeline.title": text, "task.labels": [text, "b"]})
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config([f"pipeline={file}"], require=()) == config


@pytest.mark.parametrize("text", [*TEXTS, "a\tb"])
def test_python_gives_text_as_it_is(text):
    config = load_config(
        BOTH, values={"run.name": text, "task.labels": [text, "b"], "train.max_steps": 7, "data.dir": None}
    )
    assert (config.run.name, config.task.labels, config.train.max_steps, config.data.dir) == (
        text,
        [text, "b"],
        7,
        None,
    )


def test_run_takes_python_values_as_they_are(monkeypatch):
    seen = []
    monkeypatch.setattr("bitkd.api.check_before_imports", lambda config: seen.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bitkd.run("singlestage", "data.dir=010", task="demo", seed=3, **{"run.name": "0.10", "train.lr": 1e-05})
    assert (seen[0].run.name, seen[0].data.dir, seen[0].seed, seen[0].train.lr) == ("0.10", "010", 3, 1e-05)


@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("1_000", 1000), ("'7'", 7), ("-5", -5), ("${train.batch_size}", 32)]
)
def test_a_whole_number_is_decimal(text, number):
    assert load_config([*BOTH, f"train.max_steps={text}"]).train.max_steps == number


@pytest.mark.parametrize("text", ["12:30", "0x10", "1e3", "true", "5.0", "[5]", "2023-11-01"])
def test_what_is_no_decimal_whole_number_is_refused(text):
    with pytest.raises(InputError, match=r"has the wrong type; give a whole number, such as 100, or null"):
        load_config([*BOTH, f"train.max_steps={text}"])


@pytest.mark.parametrize("text", ["1" + "0" * 30, "-1" + "0" * 30, "9" * 5000])
def test_a_huge_whole_number_is_refused_in_words(text):
    with pytest.raises(InputError, match=r"is too large .*; whole numbers go to 9,007,199,254,740,992") as caught:
        load_config([*BOTH, f"train.max_steps={text}"])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["1e400", "-1e999999999"])
def test_a_huge_number_is_refused_in_words(text):
    with pytest.raises(InputError, match=r"is too large .*; numbers go to 1\.7e308"):
        load_config([*BOTH, f"train.lr={text}"])


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("Off", False), ("True", True), ("false", False)])
def test_a_truth_value_may_be_written_in_each_usual_way(text, value):
    assert load_config([*BOTH, f"data.streaming={text}"]).data.streaming is value


def test_a_repeated_key_of_a_file_is_refused_with_its_lines(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  lr: 1.0e-3\n  epochs: 2\n  lr: 1.0e-4\n")
    with pytest.raises(InputError, match=r"mine\.yaml: lr is given twice, in line 2 and in line 4; leave one out"):
        load_config([f"pipeline={file}", "task=demo"])


def test_a_repeated_key_of_the_command_line_is_told(caplog):
    with caplog.at_level(logging.WARNING, "bitkd"):
        config = load_config([*BOTH, "train.lr=1e-3", "seed=1", "seed=1", "task=demo", "train.lr=2e-3"])
    assert config.train.lr == 2e-3
    assert [record.getMessage() for record in caplog.records] == ["train.lr= is given twice; 2e-3 counts, and not 1e-3"]


def test_merged_mappings_may_be_overridden(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "pipeline: {name: mine}\nstages:\n  one: &one {kind: finetune, lr: 1.0e-3, epochs: 2}\n"
        "  two: {<<: *one, lr: 1.0e-4}\n  three: {<<: [{lr: 1.0e-5}, *one]}\n"
    )
    stages = load_config([f"pipeline={file}", "task=demo"]).stages
    assert [(stage.lr, stage.epochs) for stage in stages.values()] == [(1e-3, 2), (1e-4, 2), (1e-5, 2)]


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "a${oc.env:HOME,x}b",
        "${ oc.env : HOME }",
        "${oc.decode:${oc.env:HOME}}",
        "${oc.${task.name}:HOME}",
        "${env:HOME}",
        "${oc.create:1}",
        r"\${oc.env:HOME}",
        "$${seed}{oc.env:HOME}",
    ],
)
def test_nothing_is_read_from_the_machine_by_an_interpolation(text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "secret")
    with pytest.raises(InputError, match=r"may only name another key of the configuration") as caught:
        load_config([*BOTH, f"pipeline.title={text}"])
    assert "secret" not in str(caught.value)
    for place in ("name", "labels", "metric"):
        with pytest.raises(InputError, match="may only name another key"):
            load_config(
                [BOTH[0], task_file(tmp_path, **{place: f"'{text}'" if place != "labels" else f"['{text}', b]"})]
            )
    with pytest.raises(InputError, match="may only name another key"):
        load_config([*BOTH, "task.files.dev={'" + text + "': x}"])


def test_an_interpolation_may_name_another_key():
    config = load_config([*BOTH, "run.name=${task.name}-${seed}", "stages.single.lr=${train.lr}", "seed=010"])
    assert (config.run.name, config.stages["single"].lr) == ("demo-10", config.train.lr)
    with pytest.raises(InputError, match="Recursive interpolation"):
        load_config([*BOTH, "run.name=${run.name}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: !!python/object/apply:os.system ['true']\n", "has the tag .*python/object/apply:os.system"),
        ("task: !mine {name: x}\n", "has the tag !mine"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: &a {<<: *a}\ntask: {name: x}", "unknown key a"),
        ("task: &a {name: x, <<: *a}\nnonsense: 1", "unknown key nonsense"),
        ('task: {name: "a\\eb"}\n', r"task\.name has the control character '\\x1b'"),
        ("[a]: 1\n", "has a list or a mapping as a key"),
        ("x" * 2**20 + ": 1\n", "settings have at most"),
        ("task: {name: '???'}", r"task\.name is \?\?\?"),
        ("- 1\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        ("task: {labels: &a [*a]}", "values, with what its aliases"),
        (
            "stages:\n  a0: &a0 {x: y}\n"
            + "".join(f"  a{i}: &a{i} {{<<: *a{i - 1}, b{i}: *a{i - 1}}}\n" for i in range(1, 40)),
            "values, with what its aliases",
        ),
    ],
    ids=range(14),
)
def test_what_no_settings_need_is_refused(content, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        load_config([f"pipeline={file}", "task=demo"])


def test_aliases_of_aliases_take_no_time(tmp_path):
    file = tmp_path / "mine.yaml"
    nested = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 60)]
    file.write_text("\n".join(["a0: &a0 [x]", *nested]))
    with pytest.raises(InputError, match="more than 262,144 values, with what its aliases"):
        load_config([f"pipeline={file}", "task=demo"])
    merged = [f"  m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}" for i in range(1, 60)]
    file.write_text("\n".join(["stages:", "  m0: &m0 {kind: init}", *merged]))
    stages = load_config([f"pipeline={file}", "task=demo"]).stages
    assert [stage.kind for stage in stages.values()] == ["init"] * 60


def test_yaml_itself_would_read_them_otherwise():
    assert [yaml.safe_load(text) for text in ("010", "12:30", "yes", "0.10")] == [8, 750, True, 0.1]
