import csv
import json
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from bitkd.config.load import choices, load_config
from bitkd.data.files import content_hash, find_file, read_rows
from bitkd.data.task_checks import check_task
from bitkd.data.task_rows import TaskRows
from bitkd.data.tasks import FilesSpec, TaskSpec
from bitkd.errors import InputError

GLUE = {
    "cola": ("gj04\t1\t\ta dog sleeps\n", {"text_a": ["a dog sleeps"], "label": [1]}),
    "sst2": ("sentence\tlabel\na dog\t0\n", {"text_a": ["a dog"], "label": [0]}),
    "mrpc": (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t5\t6\ta "dog\r\tthe dog\r\n',
        {"text_a": ['a "dog\r'], "text_b": ["the dog"], "label": [1]},
    ),
    "stsb": (
        "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n",
        {"text_a": ["a"], "text_b": ["b"], "label": [3.8]},
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t1\n",
        {"text_a": ["a"], "text_b": ["b"], "label": [1]},
    ),
    "mnli": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction\n",
        {"text_a": ["a"], "text_b": ["b"], "label": [2]},
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n",
        {"text_a": ["a"], "text_b": ["b"], "label": [1]},
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
        {"text_a": ["a"], "text_b": ["b"], "label": [0]},
    ),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", {"text_a": ["a"], "text_b": ["b"], "label": [1]}),
}


def task_of(name):
    return load_config([f"task={name}"], require=("task",)).task


def test_all_of_glue_is_there():
    assert {*GLUE, "demo"} <= set(choices("task"))


@pytest.mark.parametrize("name", GLUE)
def test_the_official_layout_is_read(name, tmp_path):
    task = task_of(name)
    check_task(task)
    content, rows = GLUE[name]
    folder = tmp_path / task.files.folder
    folder.mkdir()
    for file in (task.files.train, *task.files.dev.values()):
        (folder / file).write_bytes(content.encode())
        assert read_rows(task, find_file(task, file, tmp_path)) == rows
        assert find_file(task, file, folder) == find_file(task, file, tmp_path)


def test_mnli_has_two_dev_sets_and_selects_by_the_matched():
    assert list(task_of("mnli").files.dev) == list(task_of("mnli").hub.dev) == ["dev_matched", "dev_mismatched"]


def test_a_users_task_is_data(tmp_path):
    labels = ["entailment", "neutral", "contradiction"]
    spec = TaskSpec("sick", ["premise", "hypothesis"], labels, files=FilesSpec(dev={"dev": "dev.tsv"}))
    check_task(spec)
    (tmp_path / "train.tsv").write_text("premise\thypothesis\tlabel\nA dog\tNo dog\tcontradiction\n")
    assert read_rows(spec, find_file(spec, "train.tsv", tmp_path))["label"] == [2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rte", b"index\tsentence1\tlabel\n0\ta\tentailment\n", r"rte\.tsv:1: column sentence2 is missing"),
        ("rte", b"index\tsentence1\tsentence2\tlabel\n0\ta\tentailment\n", r"rte\.tsv:2: 3 tab-separated fields"),
        (
            "rte",
            b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
            r"rte\.tsv:2: label 'maybe' .*allowed: \['entailment'",
        ),
        (
            "wnli",
            b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n1\ta\tb\t2\n",
            r"wnli\.tsv:3: label '2' .*\['0', '1'\]",
        ),
        ("wnli", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", r"wnli\.tsv:2: label 'entailment'"),
        (
            "stsb",
            b"index\tsentence1\tsentence2\tscore\n0\ta\tb\thigh\n",
            r"stsb\.tsv:2: label 'high' .*allowed: a number",
        ),
        ("sst2", b"sentence\tlabel\nok\t1\nbad \xff byte\t0\n", r"sst2\.tsv:3: byte 4 is not UTF-8 \(0xff\)"),
        ("sst2", b"sentence\tlabel\n", r"sst2\.tsv has no rows"),
        ("sst2", b"", r"sst2\.tsv is empty"),
        ("sst2", b"text\tlabel\na\t0\n", r"sst2\.tsv:1: column sentence is missing"),
        (
            "stsb",
            b"index\tsentence1\tsentence2\tscore\n0\ta\tb\tnan\n",
            r"stsb\.tsv:2: label 'nan' .*allowed: a number",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(name, content, message, tmp_path):
    file = tmp_path / f"{name}.tsv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(task_of(name), file)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"looked at .*RTE/train\.tsv and .*train\.tsv; point data\.dir="):
        find_file(task_of("rte"), "train.tsv", tmp_path)


def test_only_files_that_can_be_read_are_named_in_place_of_a_missing_one(tmp_path):
    for suffix in ("tsv.gz", "csv", "parquet.gz", "xlsx", "tsv.zip"):
        (tmp_path / f"train.{suffix}").touch()
    with pytest.raises(InputError, match=r"; there is train\.csv, train\.tsv\.gz: name the files under task\.files$"):
        find_file(task_of("rte"), "train.tsv", tmp_path)


def test_an_empty_text_is_a_text(tmp_path):
    file = tmp_path / "x.tsv"
    file.write_text("sentence\tlabel\n\t1\n")
    assert read_rows(task_of("sst2"), file) == {"text_a": [""], "label": [1]}


def test_the_hash_is_of_the_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    two.write_text("x")
    assert content_hash([one]) == content_hash([two]) != content_hash([one, two])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": []}, "names 0 columns"),
        ({"files": FilesSpec(dev={"dev": "d"}, text=["a", "b"])}, r"files\.text=.* must name as many columns"),
        ({"metric": "accurracy"}, "metric accurracy is unknown"),
        ({"metric": "AUROC", "metrics": ["AUROC"]}, "metric AUROC is unknown"),
        ({"metrics": ["f1"], "metric": "accuracy"}, "not among its metrics"),
        ({"labels": ["a", "a"]}, "repeat a name"),
        ({"labels": ["a"]}, "nothing to decide"),
        ({"labels": None}, "does not fit labels=None"),
        ({"metric": "pearson", "metrics": ["pearson"]}, "pearson is unknown or not for labels"),
        ({"labels": ["a", "b", "c"], "metrics": ["accuracy", "f1"]}, "f1 is for two labels"),
        ({"files": FilesSpec()}, "has no dev set"),
        ({"files": FilesSpec(dev={"a": "d"}, test={"a": "t"})}, r"files\.dev and files\.test use the name a"),
        ({"files": FilesSpec(dev={"train": "d"})}, "use the name train"),
        ({"files": FilesSpec(dev={"dev": "d"}, test_text=["a", "b"])}, r"files\.test_text=.* must name as many"),
        ({"files": FilesSpec(dev={"dev": "d"}, labels_as="letters")}, "labels_as=letters is unknown"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(changes, message):
    sound = {"name": "t", "text": ["a"], "labels": ["x", "y"], "files": FilesSpec(dev={"dev": "dev.tsv"})}
    task = TaskSpec(**(sound | changes))
    with pytest.raises(InputError, match=message):
        TaskRows(task, tokenizer=None)


OWN = TaskSpec("own", ["premise", "hypothesis"], ["yes", "no"], files=FilesSpec(dev={"dev": "dev.csv"}))
EXPECTED = {"text_a": ['A, "dog"\nruns', "caf\u00e9"], "text_b": ["b", ""], "label": [1, 0]}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_other_formats_hold_the_same_rows(tmp_path, suffix, caplog):
    rows = [('A, "dog"\nruns', "b", "no"), ("caf\u00e9", "", "yes")]
    file = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        with open(file, "w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.writer(stream)  # CRLF, quotes where needed
            writer.writerows([("premise", "hypothesis", "label"), *rows])
    elif suffix == "jsonl":
        lines = [json.dumps(dict(zip(("premise", "hypothesis", "label"), row))) for row in rows]
        file.write_text("\n".join(lines) + "\n\n")
    else:
        pyarrow.parquet.write_table(
            pyarrow.table(dict(zip(("premise", "hypothesis", "label"), map(list, zip(*rows))))), file
        )
    assert read_rows(OWN, file) == EXPECTED
    assert "1 rows have an empty text; they are kept" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", b"premise,label\na,yes\n", r"r\.csv:1: column hypothesis is missing"),
        (
            "r.csv",
            b"premise,hypothesis,label\na,b\n",
            r"1 row of r\.csv cannot be read, and there is no other: .*r\.csv:2: 2 comma-separated",
        ),
        ("r.csv", b'premise,hypothesis,label\na,"b"c,yes\n', r"r\.csv:2: .*expected after"),
        (
            "r.csv",
            b'premise,hypothesis,label\n"a,b,yes\nc,d,no\ne,"f",no\n',
            r"r\.csv:2: a quote is opened here .* line 4",
        ),
        ("r.csv", b'premise,hypothesis,label\na,"b\n\xff",yes\nc,d,no\n', r"r\.csv:3: byte 0 is not UTF-8"),
        ("r.jsonl", b'{"premise": "a"}\n', r"r\.jsonl:1: hypothesis is missing; the row has \['premise'\]"),
        ("r.jsonl", b"[1]\n", r"r\.jsonl, row 0: premise is missing; the row has int"),
        ("r.jsonl", b"{\n", r"r\.jsonl:1: no JSON"),
        ("r.jsonl", b'{"premise": 3, "hypothesis": "b", "label": "no"}\n', r"premise is int 3, not a text"),
        ("r.parquet", b"PAR", r"r\.parquet is no Parquet file"),
        ("r.xlsx", b"", r"rows in \.xlsx are unknown; use \.tsv"),
    ],
)
def test_faults_of_other_formats_are_named_with_their_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(OWN, tmp_path / name)


def test_rows_that_cannot_be_read_are_counted_and_left_out_only_on_request(tmp_path, caplog):
    file = tmp_path / "train.tsv"
    file.write_bytes(b"premise\thypothesis\tlabel\na\tb\tyes\nc\td\ne\tf\tmaybe\n\xff\tx\tno\ng\n\th\tno\n")
    with pytest.raises(
        InputError, match=r"4 rows of train\.tsv cannot be read: .*:3: .*; .*:4: .*; .*:5: .*; and 1 more"
    ):
        read_rows(OWN, file)
    lenient = replace(OWN, files=replace(OWN.files, skip_malformed=True))
    assert read_rows(lenient, file) == {"text_a": ["a", ""], "text_b": ["b", "h"], "label": [0, 1]}
    assert "4 rows of train.tsv cannot be read and left out" in caplog.text


def test_a_test_file_has_texts_alone(tmp_path):
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\ta dog\n")
    assert read_rows(task_of("cola"), tmp_path / "test.tsv", labelled=False) == {"text_a": ["a dog"]}
    (tmp_path / "test.tsv").write_text("id\tquestion1\tquestion2\n0\ta\n1\tb\tc\n")
    with pytest.raises(
        InputError, match=r"test\.tsv:2: 2 tab-separated fields"
    ):  # its rows are counted: none is left out
        read_rows(task_of("qqp"), tmp_path / "test.tsv", labelled=False)
