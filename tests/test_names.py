"""Names are one component of a path on every system, and no two are one folder."""

import pytest

from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.names import LONGEST_NAME, check_distinct, check_name, is_name, shown
from bitkd.pipeline.plan import check_settings, make_plan
from bitkd.store.run_folder import RunFolder

GOOD = [
    "a",
    "0.10",
    "010",
    "1e3",
    "12:30",
    "yes",
    "a b",
    "x_y-z.1",
    "naïve",
    "模型",
    "lr=1e-3",
    "null",
    "_x",
    "a" * LONGEST_NAME,
]

BAD = {
    "": "is empty",
    " ": "is empty",
    ".": "begins with .",
    "..": "begins with .",
    ".hidden": "begins with .",
    "-x": "begins with -",
    "~x": "begins with ~",
    " x": "begins with a space",
    "a/b": "has the character '/'",
    "../../x": "has the character '/'",
    "/etc": "has the character '/'",
    "a\\b": r"has the character '\\\\'",
    "a\x00b": r"a\\x00b has the character '\\x00'",
    "a\nb": r"has the character space of another kind",
    "a\x1b[31m": r"has the character '\\x1b'",
    "a\u202eb": r"a\\u202eb has the character '\\u202e'",
    "a\u200bb": "has the character",
    "a\u00a0b": "has the character space of another kind",
    "x.": "ends with a dot",
    "x ": "ends with a space",
    "e\u0301": "normal form C",
    "a" * (LONGEST_NAME + 1): f"has {LONGEST_NAME + 1} bytes",
    "中" * 50: "has 150 bytes",
    "a*": "has the character",
    "<b>": "has the character '<'",
    "\ud800": "has the character",
}


@pytest.mark.parametrize("name", GOOD)
def test_usual_names_are_allowed(name):
    check_name(name, "x=")
    assert is_name(name)


@pytest.mark.parametrize(("name", "problem"), BAD.items(), ids=range(len(BAD)))
def test_other_names_are_refused_with_what_is_allowed(name, problem):
    with pytest.raises(InputError, match=problem) as caught:
        check_name(name, "run.name=")
    assert str(caught.value).startswith("run.name=")
    assert "use letters, digits" in str(caught.value)
    assert str(caught.value).isprintable()
    assert not is_name(name)


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "-x", "x.", "/tmp/x"])
@pytest.mark.parametrize(
    "key", ["run.name", "task.name", "pipeline.name", "task.files.dev", "task.files.test", "stages"]
)
def test_every_name_that_becomes_a_folder_is_checked_before_anything_is_read(key, name, tmp_path, settings):
    values = {
        "task.files.dev": {name: "dev.tsv"},
        "task.files.test": {name: "x.tsv"},
        "stages": {name: {"kind": "init"}},
    }
    config = load_config([*settings(tmp_path)], values={key: values.get(key, name)})
    for check in (check_settings, make_plan):
        with pytest.raises(InputError, match="it becomes the name of a folder"):
            check(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task.name": "Store"}, "task.name=Store is a folder of bitkd's own in run.dir"),
        ({"task.name": "cache"}, "task.name=cache is a folder of bitkd's own"),
        ({"task.name": "sweeps"}, "task.name=sweeps is a folder of bitkd's own"),
        ({"stages": {"logs": {"kind": "init"}}}, "stages.logs: logs has a meaning of its own"),
        ({"stages": {"pretrained": {"kind": "init"}}}, "pretrained has a meaning of its own"),
        ({"stages": {"augment": {"kind": "init"}}}, "augment has a meaning of its own"),
        ({"stages": {"a b": {"kind": "init"}}}, "a part of dotted keys"),
        ({"stages": {"a.b": {"kind": "init"}}}, "a part of dotted keys"),
        ({"stages": {"Teacher": {"kind": "init"}}}, "stages.teacher and stages.Teacher differ only in case"),
        ({"task.files.dev": {"Dev": "x.tsv"}}, "dev and .*Dev differ only in case"),
        ({"task.files.dev": {"score": "x.tsv"}}, "use the name score, which is taken"),
        ({"run.store": "{tmp}/rte"}, "would be inside the store"),
    ],
)
def test_two_things_never_share_a_folder(values, message, tmp_path, settings):
    values = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(InputError, match=message):
        check_settings(load_config(settings(tmp_path), values=values))


def test_names_that_differ_are_folders_that_differ(tmp_path):
    folders = {RunFolder.open(tmp_path, "task", name).folder for name in GOOD}
    assert len(folders) == len(GOOD)
    assert {folder.parent for folder in folders} == {tmp_path / "task"}


def test_a_name_that_the_file_system_takes_for_another_is_refused(tmp_path, monkeypatch):
    (tmp_path / "task" / "mine").mkdir(parents=True)
    # As on a file system that ignores case.
    monkeypatch.setattr("pathlib.Path.exists", lambda path, **_: path.name.casefold() in ("task", "mine"))
    RunFolder.open(tmp_path, "task", "mine")
    with pytest.raises(InputError, match=r"Mine is mine on this file system, which takes both names for one"):
        RunFolder.open(tmp_path, "task", "Mine")


def test_names_that_are_equal_may_be_given_twice():
    check_distinct(["a", "b", "a"], "x=")
    with pytest.raises(InputError, match="x=a and x=A differ only in case"):
        check_distinct(["a", "b", "A"], "x=")


def test_text_of_others_is_shown_without_what_nobody_sees():
    assert shown("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
    assert shown("x" * 100) == "x" * 60 + "…"
    assert shown("中 é") == "中 é"


@pytest.mark.parametrize("name", ["../secret.tsv", "/etc/passwd", "a/../../b.tsv"])
@pytest.mark.parametrize("key", ["train", "folder", "dev", "test"])
def test_a_task_reads_no_file_outside_of_its_folder(key, name, tmp_path, settings):
    value = {"x": name} if key in ("dev", "test") else name
    config = load_config(settings(tmp_path), values={f"task.files.{key}": value})
    with pytest.raises(InputError, match=r"leads out of data\.dir"):
        check_settings(config)


@pytest.mark.parametrize("path", ["/home/me/private", "./private", "../private", "~/x", "a/b/c"])
def test_a_dataset_of_the_hub_is_never_a_folder(path, tmp_path, settings):
    with pytest.raises(InputError, match="is no id of a dataset on the hub"):
        check_settings(load_config(settings(tmp_path), values={"task.hub.path": path}))
    given = load_config(settings(tmp_path, "multistage"), values={"data.hub_corpus.path": path, "data.corpus": []})
    with pytest.raises(InputError, match="is no id of a dataset on the hub"):
        make_plan(given)
