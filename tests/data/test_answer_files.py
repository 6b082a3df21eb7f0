import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from bitkd.data.answer_files import read_answers
from bitkd.data.answer_rows import AnswerRows
from bitkd.data.tasks import AnswersSpec, FilesSpec, HubSpec, TaskSpec
from bitkd.errors import InputError

CONTEXT = "Zoë's café is in Köln. The cat sleeps."


def read(file, unanswerable=False, skip=False, labelled=True):
    files = FilesSpec(skip_malformed=skip)
    task = TaskSpec(text=["question", "context"], files=files, answers=AnswersSpec(unanswerable=unanswerable))
    return read_answers(task, file, labelled)


def row(**changes):
    answers = {"text": ["Köln"], "answer_start": [CONTEXT.index("Köln")]}
    return {"id": "q1", "question": "Where is it?", "context": CONTEXT, "answers": answers} | changes


def nested(*questions, context=CONTEXT):
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def question(**changes):
    answers = [{"text": "Köln", "answer_start": CONTEXT.index("Köln")}]
    return {"id": "q1", "question": "Where is it?", "answers": answers} | changes


@pytest.fixture
def write(tmp_path):
    def written(content, name="rows.jsonl"):
        file = tmp_path / name
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(content), file)
        elif name.endswith(".jsonl"):
            file.write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            file.write_text(json.dumps(content, indent=1 if name.startswith("lines") else None))
        return file

    return written


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([row()], "rows.jsonl"),
        ([row()], "rows.json"),
        ([row()], "rows.parquet"),
        ([row(answers=question()["answers"])], "rows.jsonl"),
        (nested(question()), "rows.json"),
        (nested(question(is_impossible=False)), "lines.json"),
    ],
)
def test_every_form_gives_the_same_rows(write, content, name):
    assert read(write(content, name)) == {
        "id": ["q1"],
        "text_a": ["Where is it?"],
        "text_b": [CONTEXT],
        "label": [[{"start": 17, "text": "Köln"}]],
    }


def test_a_test_set_needs_no_answers(write):
    del (bare := question())["answers"]
    assert list(read(write(nested(bare), "rows.json"), labelled=False)) == ["id", "text_a", "text_b"]


def test_a_question_may_have_no_answer_if_the_task_says_so(write):
    rows = [row(answers={"text": [], "answer_start": []})]
    assert read(write(rows), unanswerable=True)["label"] == [[]]
    for none in ([], rows[0]["answers"]):
        impossible = nested(question(answers=none, is_impossible=True))
        assert read(write(impossible, "a.json"), unanswerable=True)["label"] == [[]]
    with pytest.raises(InputError, match=r"rows.jsonl:1: it has no answer; .*task.answers.unanswerable=true"):
        read(write(rows))


def answers(text, start):
    return {"answers": {"text": [text], "answer_start": [start]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (answers("Köln", 19), "the answer 'Köln' does not stand at character 19 of its context, but at 17"),
        (answers("Bonn", 17), r"nor elsewhere in it \('Köln' stands there\)"),
        (answers("cat", len(CONTEXT[:27].encode())), "but at 27: answer_start counts bytes; count characters"),
        (answers("cat", -1), "answer_start is -1; it is a whole number of characters, from 0"),
        (answers("cat", 27.0), "answer_start is 27.0"),
        (answers(" ", 5), "the text of an answer is empty"),
        ({"answers": {"text": ["cat"], "answer_start": []}}, "answers have 1 text and 0 answer_start"),
        ({"answers": {"text": ["cat"]}}, "answers have no list answer_start"),
        ({"answers": "cat"}, r"answers are str 'cat'; write \{\"text\""),
        ({"context": " "}, "context is empty"),
        ({"question": None}, r"question is missing \(null\)"),
        ({"id": 1.5}, "id is 1.5, not a text"),
        ({"id": "q0"}, r"the id 'q0' is also that of .*rows.jsonl:1; ids must differ"),
    ],
)
def test_a_row_that_cannot_be_right_is_named(write, changes, message):
    file = write([row(id="q0"), row(**changes)])
    with pytest.raises(InputError) as refused:
        read(file)
    assert str(refused.value).startswith(f"1 row of rows.jsonl cannot be read: {file}:2: ")
    assert refused.match(message)
    assert len(read(file, skip=True)["id"]) == 1


def test_a_place_counted_in_utf_16_is_recognized(write):
    context = "😀😀 a cat"
    with pytest.raises(InputError, match="but at 5: answer_start counts UTF-16 units, as in JavaScript"):
        read(write([row(context=context, **answers("cat", 7))]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_impossible": True}, "is_impossible is True, but it has 1 answers"),
        ({"is_impossible": False, "answers": []}, "is_impossible is False, but it has 0 answers"),
        ({"answers": [{"text": "cat"}]}, "an answer has no answer_start"),
    ],
)
def test_a_nested_question_is_named_by_its_path_and_line(write, changes, message):
    content = nested(question(id="first"), question(**changes))
    for name, line in (("one.json", ""), ("lines.json", ":21")):
        file = write(content, name)
        with pytest.raises(InputError, match=message) as refused:
            read(file, unanswerable=True)
        assert f"{file}{line}, data[0].paragraphs[0].qas[1] (id q1): " in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": []}, "one JSON object with the keys .*; SQuAD's form has a list under data"),
        ({"data": [{"title": "t"}]}, r"data\[0\]: it has no list of paragraphs"),
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, r"data\[0\].paragraphs\[0\]: it has no list of qas"),
        ({"data": []}, "has no rows; a split must not be empty"),
    ],
)
def test_another_nested_form_is_refused(write, content, message):
    with pytest.raises(InputError, match=message):
        read(write(content, "rows.json"))


def test_rows_of_the_hub_are_those_of_files(write, tiny_tokenizer):
    task = TaskSpec(
        name="qa",
        kind="question_answering",
        text=["question", "context"],
        metric="answer_f1",
        metrics=["answer_f1"],
        hub=HubSpec(path="owner/squad", dev={"dev": "validation"}),
    )
    rows = AnswerRows(task, tiny_tokenizer)
    on_hub = Dataset.from_list([row()])
    assert rows.read_hub(on_hub, "train", labelled=True) == read(write([row()]))
    wrong = Dataset.from_list([row(**answers("Köln", 1))])
    with pytest.raises(InputError, match=r"owner/squad train, row 0: the answer 'Köln' does not stand at character 1"):
        rows.read_hub(wrong, "train", labelled=True)
    with pytest.raises(InputError, match=r"owner/squad train: column answers is missing"):
        rows.read_hub(on_hub.remove_columns("answers"), "train", labelled=True)
    blank = rows.read_hub(Dataset.from_list([row(context="\u200b", **answers("\u200b", 0))]), "train", labelled=True)
    with pytest.raises(
        InputError, match=r"makes no tokens of the context of the row with id 'q1', '\\u200b'; leave out"
    ):
        rows.tokenize(blank, "train")
    with pytest.raises(InputError, match=r"data.max_length=6 leaves no place"):
        AnswerRows(task, tiny_tokenizer, max_length=6)
