import pytest

from bitkd.config.load import choices, load_config
from bitkd.data.files import content_hash, find_file, read_rows
from bitkd.data.tasks import FilesSpec, TaskSpec, check_task
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
    assert set(choices("task")) == {*GLUE, "demo"}


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


def test_a_task_of_ones_own_is_data(tmp_path):
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
        ({"metrics": ["f1"], "metric": "accuracy"}, "not among its metrics"),
        ({"labels": ["a", "a"]}, "repeat a name"),
        ({"labels": ["a"]}, "nothing to decide"),
        ({"labels": None}, "does not fit labels=None"),
        ({"metric": "pearson", "metrics": ["pearson"]}, "do not fit labels"),
        ({"labels": ["a", "b", "c"], "metrics": ["accuracy", "f1"]}, "f1 is for two labels"),
        ({"files": FilesSpec()}, "has no dev set"),
        ({"files": FilesSpec(dev={"dev": "d"}, labels_as="letters")}, "labels_as=letters is unknown"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(changes, message):
    sound = {"name": "t", "text": ["a"], "labels": ["x", "y"], "files": FilesSpec(dev={"dev": "dev.tsv"})}
    with pytest.raises(InputError, match=message):
        check_task(TaskSpec(**(sound | changes)))
