"""`bitkd predict` on texts, files and standard input."""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import bitkd
from bitkd.cli import main
from bitkd.commands.checkpoints import is_setting
from bitkd.models.heads import HEADS
from tests.processes.children import Children

CPU = "trainer.accelerator=cpu"


@pytest.fixture
def answer(capsys):
    def run(*arguments, code=0):
        assert main(["predict", *map(str, arguments), CPU]) == code
        found = capsys.readouterr()
        return found.out if code == 0 else found.err

    return run


@pytest.fixture
def stdin(monkeypatch, tmp_path):
    """Lets `-` read a content."""

    def give(content):
        (tmp_path / "stdin").write_text(content)
        monkeypatch.setattr("bitkd.data.texts.TextFile.path", tmp_path / "stdin")

    return give


def table(text, delimiter="\t"):
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


def reference(folder, texts, max_length):
    """Probabilities of texts, one at a time, by transformers' own means."""
    model, tokenizer = bitkd.load_student(folder), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].softmax(0).tolist())
    return rows


def test_a_table_of_rows_becomes_a_table_of_predictions(one, answer, tmp_path):
    texts = ["a dog", "a big red cat sees the bird", "not", "", "the dog runs"] * 3
    (tmp_path / "rows.tsv").write_text("id\tsentence\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    rows = table(answer(one, tmp_path / "rows.tsv", "data.eval_batch_size=4"))
    assert [list(row) for row in rows[:1]] == [["index", "label", "probability_neg", "probability_pos"]]
    assert [int(row["index"]) for row in rows] == list(range(len(texts)))
    for row, expected in zip(rows, reference(one, texts, 16)):
        assert [float(row["probability_neg"]), float(row["probability_pos"])] == pytest.approx(expected, abs=2e-6)
        assert row["label"] == ["neg", "pos"][expected[1] > expected[0]]


def test_a_long_text_is_truncated_to_the_trained_length(one, answer, caplog):
    text = "big red dog " * 100
    [found] = json.loads(answer(one, "--text", text, "--json"))["predictions"]
    assert list(found["scores"].values()) == pytest.approx(reference(one, [text], 16)[0], abs=1e-6)
    assert caplog.messages == ["rows longer than 16 tokens were truncated: 1"]
    [found] = json.loads(answer(one, "--text", text, "--json", "data.max_length=64"))["predictions"]
    assert list(found["scores"].values()) == pytest.approx(reference(one, [text], 64)[0], abs=1e-6)


@pytest.mark.parametrize("length", [65, 72, 4])
def test_a_length_that_the_model_cannot_read_is_refused(length, one, answer):
    text = answer(one, "--text", "a", f"data.max_length={length}", code=2)
    assert f"data.max_length={length} is outside what {one} can read; use 8 to 64" in text


def test_positions_of_padding_are_not_counted(roberta, answer):
    long = "big red dog " * 100
    answer(roberta, "--text", long, "data.max_length=48")
    assert "use 8 to 48" in answer(roberta, "--text", long, "data.max_length=49", code=2)


def test_a_plain_checkpoint_reads_what_its_positions_allow(one, answer, tmp_path):
    plain = shutil.copytree(one, tmp_path / "plain", ignore=shutil.ignore_patterns("stage.json", "metrics.json"))
    content = json.loads((plain / "config.json").read_text())
    del content["bitkd"]
    (plain / "config.json").write_text(json.dumps(content))
    text = "big red dog " * 100
    [found] = json.loads(answer(plain, "--text", text, "--json"))["predictions"]
    assert list(found["scores"].values()) == pytest.approx(reference(one, [text], 64)[0], abs=1e-6)
    (tmp_path / "rows.tsv").write_text("sentence\na dog\n")
    assert "is a plain checkpoint, which does not record its task; give task=" in answer(
        plain, tmp_path / "rows.tsv", code=2
    )


def test_every_format_of_the_output_holds_the_same(student, answer, tmp_path):
    folder = student("pair")
    (tmp_path / "rows.csv").write_text('second,first\n"a dog, old",a cat\nb,"a ""red"" bird"\n')
    shown = table(answer(folder, tmp_path / "rows.csv"))
    document = json.loads(answer(folder, tmp_path / "rows.csv", "--json"))["predictions"]
    files = {suffix: tmp_path / "new" / f"out{suffix}" for suffix in (".tsv", ".csv", ".jsonl")}
    for file in files.values():
        assert answer(folder, tmp_path / "rows.csv", "--out", file) == f"2 predictions: {file}\n"
    assert table(files[".tsv"].read_text()) == shown
    assert table(files[".csv"].read_text(), ",") == shown
    assert [json.loads(line) for line in files[".jsonl"].read_text().splitlines()] == document
    assert [(row["index"], row["text"], row["text_pair"]) for row in document] == [
        (0, "a cat", "a dog, old"),
        (1, 'a "red" bird', "b"),
    ]
    for row, prediction in zip(shown, document):
        assert row["label"] == prediction["label"]
        assert [float(row[f"probability_{name}"]) for name in ("no", "maybe", "yes")] == pytest.approx(
            list(prediction["scores"].values()), abs=1e-6
        )
    told = json.loads(answer(folder, tmp_path / "rows.csv", "--out", files[".csv"], "--json"))
    assert told == {"file": str(files[".csv"]), "rows": 2, "left_out": 0}
    assert "use a file name that ends in .tsv" in answer(folder, tmp_path / "rows.csv", "--out", "x.xlsx", code=2)


def test_a_regression_gives_scores(student, answer, tmp_path):
    folder = student("number")
    (tmp_path / "rows.tsv").write_text("sentence\na dog\n")
    [row] = table(answer(folder, tmp_path / "rows.tsv"))
    [found] = json.loads(answer(folder, tmp_path / "rows.tsv", "--json"))["predictions"]
    assert set(found) == {"index", "text", "score"}
    assert float(row["score"]) == pytest.approx(found["score"], abs=1e-6)
    assert answer(folder, "--text", "a dog") == f"\tscore={found['score']:.4f}\n"


def test_standard_input_has_a_text_in_each_line(one, answer, stdin):
    stdin("a dog\nthe cat\n")
    lines = answer(one, "-")
    assert len(table(lines)) == 2
    stdin("id\tsentence\n7\ta dog\n8\tthe cat\n")
    assert answer(one, "-") == lines
    stdin('{"sentence": "a dog"}\n{"sentence": "the cat"}\n')
    assert answer("--format", "jsonl", one, "-") == lines
    assert "add --format jsonl" in answer(one, "-", code=2)


@pytest.mark.parametrize(("form", "expected"), [((), "index\tlabel"), (("--json",), '{"predictions": [')])
def test_without_rows_there_is_only_a_header(form, expected, one, answer, stdin, tmp_path):
    stdin("")
    assert answer(one, "-", *form).startswith(expected)
    (tmp_path / "rows.tsv").write_text("sentence\n")
    found = answer(one, tmp_path / "rows.tsv", *form)
    assert found.startswith(expected)
    assert len(found.splitlines()) == (2 if form else 1)


def test_a_malformed_row_is_refused_before_the_work_or_left_out(one, answer, tmp_path, caplog):
    file, out = tmp_path / "rows.tsv", tmp_path / "out.tsv"
    file.write_text("sentence\tid\na dog\t1\nthe cat\n\xe9\nred\t3\n", encoding="latin-1")
    text = answer(one, file, "--out", out, code=2)
    assert text.startswith(f"bitkd: 2 rows of {file} cannot be read: {file}:3: 1 tab-separated fields")
    assert f"{file}:4: byte 0 is not UTF-8" in text
    assert "leave them out with --skip-malformed" in text
    assert not out.exists()
    assert [row["index"] for row in table(answer(one, file, "--skip-malformed"))] == ["0", "3"]
    assert caplog.messages[0].startswith(f"2 rows of {file} cannot be read")


def test_a_malformed_row_of_standard_input_ends_the_work_after_the_rows_before_it(one, stdin, capsys, monkeypatch):
    stdin("a dog\nthe cat\na\tb\nred\n")
    monkeypatch.setattr("bitkd.data.texts.TextFile.can_be_read_again", False)
    assert main(["predict", str(one), "-", "data.eval_batch_size=64", CPU]) == 2
    found = capsys.readouterr()
    assert len(table(found.out)) == 2
    assert "standard input:3: 2 tab-separated fields" in found.err
    assert "rows before it that are written: 2" in found.err


def test_what_cannot_be_predicted_is_refused(one, student, answer, tmp_path):
    file = tmp_path / "rows.tsv"
    file.write_text("sentence\na dog\n")
    assert "there is no such file" in answer(one, tmp_path / "other.tsv", code=2)
    assert "give one file of rows, or --text" in answer(one, file, "--text", "a", code=2)
    assert "give one file of rows, or --text" in answer(one, file, file.with_name("b.tsv"), code=2)
    assert "is the file of the rows; choose another" in answer(one, file, "--out", file, code=2)
    assert "cannot be written" in answer(one, file, "--out", tmp_path / "rows.tsv" / "out.tsv", code=2)
    assert "the command line: a text has" in answer(one, "--text", "\udcff", code=2)
    assert "column first is missing" in answer(student("pair"), file, code=2)
    assert file.read_text() == "sentence\na dog\n"


def test_a_refusal_leaves_the_file_of_the_output_as_it_was(one, answer, stdin, tmp_path):
    stdin("a dog\n")
    (tmp_path / "copy.tsv").hardlink_to(tmp_path / "stdin")
    assert "is the file of the rows" in answer(one, "-", "--out", tmp_path / "copy.tsv", code=2)
    assert (tmp_path / "stdin").read_text() == "a dog\n"
    (tmp_path / "out.tsv").write_text("old")
    assert "use 8 to 64" in answer(one, "-", "--out", tmp_path / "out.tsv", "data.max_length=72", code=2)
    tab = shutil.copytree(one, tmp_path / "tab", ignore=shutil.ignore_patterns("stage.json", "metrics.json"))
    content = json.loads((tab / "config.json").read_text())
    content |= {"id2label": {"0": "a\tb", "1": "c"}, "label2id": {"a\tb": 0, "c": 1}}
    del content["bitkd"]
    (tab / "config.json").write_text(json.dumps(content))
    assert "cannot be in a .tsv file" in answer(tab, "--text", "a", "--out", tmp_path / "out.tsv", code=2)
    assert (tmp_path / "out.tsv").read_text() == "old"


@pytest.mark.parametrize(
    ("word", "expected"),
    [("data.max_length=8", True), ("task=a.yaml", True), ("rows.tsv", False), ("-", False), ("./a=b.tsv", False)],
)
def test_a_word_is_a_setting_or_names_a_file(word, expected):
    assert is_setting(word) is expected


def test_in_python_a_predictor_reads_rows_as_they_come(one, student):
    predictor = bitkd.load_predictor(one, CPU, "data.eval_batch_size=2")
    assert (predictor.labels, predictor.max_length) == (["neg", "pos"], 16)

    def endless():
        while True:
            yield "a dog"

    found = predictor.predict(endless())
    assert [next(found)["label"] for _ in range(5)] == [next(predictor.predict(["a dog"]))["label"]] * 5
    [pair] = bitkd.load_predictor(student("pair"), CPU).predict([("a dog", "a cat")])
    assert set(pair["scores"]) == {"no", "maybe", "yes"}


@pytest.fixture
def start(tmp_path):
    """Starts Python in a process of its own, as a person would: no variable asks the libraries to be quiet."""

    def run(*arguments):
        left = {k: v for k, v in os.environ.items() if k not in ("TRANSFORMERS_VERBOSITY", "PYTHONWARNINGS")}
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=left | {"PYTHONPATH": str(Path(bitkd.__file__).parent.parent)},
            cwd=tmp_path,
        )

    return run


def test_the_libraries_add_nothing_to_the_error_output(one, tiny_bert, tmp_path, start):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + f"{'red dog ' * 300}\tpos\nred\tneg\n" * 4)
    (tmp_path / "one.yaml").write_text(
        "task:\n  name: one\n  text: [sentence]\n  labels: [neg, pos]\n  files: {dev: {dev: dev.tsv}}\n"
        f"model: {{pretrained: {tiny_bert}}}\ndata: {{dir: ., max_length: 16}}\ntrain: {{max_steps: 1, batch_size: 4}}\n"
    )
    commands = [
        ["predict", one, "dev.tsv"],
        ["evaluate", one, "data.dir=."],
        ["plan", "pipeline=singlestage", "task=one.yaml"],
        ["run", "pipeline=singlestage", "task=one.yaml", "student.layers=[1]"],
    ]
    program = "import json, sys; from bitkd.cli import main; print([main(words) for words in json.loads(sys.argv[1])])"
    with start("-c", program, json.dumps(commands, default=str)) as process:
        out, err = process.communicate()
    assert out.splitlines()[-1] == "[0, 0, 0, 0]"
    assert err.splitlines() == [
        "note: rows longer than 16 tokens were truncated: 4",
        *["note: one: rows longer than data.max_length=16 tokens are truncated: 4 of train, 4 of dev"] * 3,
    ]


def connect(rows, errors):
    os.dup2(os.open(rows, os.O_RDONLY), 0)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)


def test_a_reader_that_has_enough_ends_the_work_quietly(one, tmp_path):
    rows, errors = tmp_path / "rows", tmp_path / "errors"
    os.mkfifo(rows)
    arguments = ["predict", str(one), "-", "data.eval_batch_size=1"]
    children = Children(arguments, prepare=partial(connect, rows, errors))
    with contextlib.suppress(BrokenPipeError), open(rows, "w") as stream:
        stream.write("a dog\n")
        stream.flush()
        lines = [children.stdout.readline() for _ in range(2)]  # before the input ends
        children.stdout.close()
        stream.write("a dog\n" * 20000)
    assert children.wait() == {141}
    assert errors.read_text() == ""
    assert lines[0].startswith("index\tlabel")
    assert lines[1].startswith("0\t")


def test_a_pair_has_a_similarity_and_a_text_an_embedding(student, answer, tmp_path, stdin):
    folder = student("similar")
    pairs = [("a dog", "the big red cat sees the bird"), ("the cat", "the cat"), ("a bird sleeps", "not")]
    texts = [text for column in zip(*pairs) for text in column]
    embeddings = [torch.tensor(found["embedding"]) for found in bitkd.load_predictor(folder, CPU).predict(texts)]
    (tmp_path / "rows.tsv").write_text("".join("\t".join(row) + "\n" for row in [("first", "second"), *pairs]))
    found = [float(row["score"]) for row in table(answer(folder, tmp_path / "rows.tsv", "data.eval_batch_size=2"))]
    expected = [torch.cosine_similarity(*embeddings[i :: len(pairs)], dim=0).item() for i in range(len(pairs))]
    assert found == pytest.approx(expected, abs=2e-6)
    (tmp_path / "test.tsv").write_text("".join("\t".join(row) + "\n" for row in [("first", "second"), *pairs]))
    answer(folder, "split=test", f"data.dir={tmp_path}", "--out", tmp_path / "out.tsv")
    scores = [float(row["prediction"]) for row in table((tmp_path / "out.tsv").read_text())]
    assert scores == pytest.approx([5 * max(cosine, 0) for cosine in expected], abs=1e-3)
    stdin("a bird sleeps\nthe cat\n")
    [first, _] = json.loads(answer(folder, "-", "--json"))["predictions"]
    assert first["text"] == "a bird sleeps"
    assert first["embedding"] == pytest.approx(embeddings[2].tolist(), abs=1e-5)
    assert "a list of numbers, which a table cannot hold; use --json" in answer(folder, "-", code=2)


def test_a_plain_encoder_is_no_sentence_encoder_unless_its_folder_says_so(tiny_bert, answer, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "encoder")
    assert "has no trained head" in answer(folder, "--text", "a dog", "--text-pair", "a cat", code=2)
    (folder / "modules.json").write_text("[]")
    assert 0 < float(answer(folder, "--text", "a dog", "--text-pair", "a cat").split("=")[1]) <= 1
    assert "a table cannot hold" in answer(folder, "--text", "a dog", code=2)


def test_a_tasks_settings_count_without_the_task(tiny_bert, tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "answers"
    bitkd.new_classifier(tiny_bert, None, HEADS["question_answering"]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    row = [("a dog runs", "the old cat sleeps")]
    always = bitkd.load_predictor(
        folder, "task.answers.unanswerable=true", "task.answers.no_answer_threshold=-1000", CPU
    )
    assert [found["answer"] for found in always.predict(row)] == [""]
    assert next(bitkd.load_predictor(folder, CPU).predict(row))["answer"]
