import json

import pyarrow
import pyarrow.parquet
import pytest

from bitkd.data.tasks import FilesSpec, TaskSpec
from bitkd.data.token_files import read_tokens
from bitkd.errors import InputError

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ANNA = {"words": [["Anna", "Berg", "sleeps"], ["Rome", "!"]], "label": [[1, 2, 0], [3, 0]]}
COLUMNS = """-DOCSTART- -X- O O

Anna NNP I-NP B-PER
Berg NNP I-NP I-PER
sleeps VBZ I-VP O

Rome NNP I-NP B-LOC
! . O O
"""


def task_of(**files):
    return TaskSpec("ner", text=["tokens"], labels=TAGS, files=FilesSpec(label="ner_tags", **files))


def read(folder, name, content, labelled=True, **files):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_tokens(task_of(**files), folder / name, labelled)


@pytest.mark.parametrize(
    "content",
    [
        COLUMNS,
        COLUMNS.replace(" ", "\t"),
        COLUMNS.replace("\n", "\r\n").rstrip(),
        "\ufeff" + COLUMNS.replace("\n\n", "\n \n\n\n"),
        COLUMNS.replace(" NNP I-NP", "").replace(" VBZ I-VP", "").replace(" . O", ""),
    ],
)
def test_a_line_holds_a_word_and_its_tag(content, tmp_path):
    assert read(tmp_path, "eng.train", content) == ANNA
    assert read(tmp_path, "test.txt", content, labelled=False) == {"words": ANNA["words"]}


def test_a_header_names_the_columns(tmp_path):
    content = "1 B-PER Anna\n2 I-PER Berg\n3 O sleeps\n\n1 B-LOC Rome\n2 O !"
    header = ["number", "ner_tags", "tokens"]
    assert read(tmp_path, "a.conll", content, header=header) == ANNA
    assert read(tmp_path, "a.conll", content, labelled=False, header=header) == {"words": ANNA["words"]}
    assert read(tmp_path, "a.conll", "Rome\n!", labelled=False, header=header) == {"words": ANNA["words"][1:]}
    with pytest.raises(InputError, match="has tokens 0 times; name the column of the words"):
        read(tmp_path, "a.conll", content, header=["number", "ner_tags", "word"])


@pytest.mark.parametrize("labels_as", ["names", "index"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_row_holds_lists(labels_as, suffix, tmp_path):
    tags = ANNA["label"] if labels_as == "index" else [[TAGS[tag] for tag in row] for row in ANNA["label"]]
    rows = [{"id": "0", "tokens": words, "ner_tags": row} for words, row in zip(ANNA["words"], tags)]
    file = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    assert read_tokens(task_of(labels_as=labels_as), file) == ANNA


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "Anna O\nBerg\n", r"a\.txt:2: 'Berg' has no tag"),
        ("a.txt", "Anna X O\nBerg O\n", r"a\.txt:2: 2 columns, and not 3"),
        ("a.txt", "Anna O\n\tO\n", r"a\.txt:2: the word is empty \(''\)"),
        (
            "a.txt",
            "\nAnna O\nBerg B-ORG\n",
            r"a\.txt:3: label 'B-ORG' is outside the task's set; allowed: \['O', 'B-PER'",
        ),
        ("a.txt", b"Anna O\nB\xffrg O\n", r"a\.txt:2: byte 1 is not UTF-8"),
        ("a.txt", "-DOCSTART- O\n\n", "has no sentences"),
        ("a.csv", "Anna,O\n", r"\.csv are unknown; use \.jsonl"),
        ("a.jsonl", '{"tokens": ["a", "b"], "ner_tags": ["O"]}', "a.jsonl:1: 2 words, but 1 tags"),
        (
            "a.jsonl",
            '{"tokens": ["a", null], "ner_tags": ["O", "O"]}',
            r"a.jsonl:1, word 1: the word is missing \(null\)",
        ),
        ("a.jsonl", '{"tokens": ["a", 7], "ner_tags": ["O", "O"]}', "word 1: the word is int 7, not a text"),
        (
            "a.jsonl",
            r'{"tokens": ["\ud83d"], "ner_tags": ["O"]}',
            r"word 0: the word has \\ud83d .* half of a surrogate",
        ),
        ("a.jsonl", '{"tokens": ["a", "b"], "ner_tags": ["O", 1]}', "word 1: label '1' is outside"),
        ("a.jsonl", '{"tokens": "a b", "ner_tags": ["O", "O"]}', "a list of words is wanted; it is str 'a b'"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": null}', r"a list of tags is wanted; it is missing \(null\)"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}', "ner_tags is missing; the row has"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(name, content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(tmp_path, name, content)


def test_malformed_sentences_are_counted_and_left_out_if_wanted(tmp_path, caplog):
    content = "Anna O\n\n" + "Berg\nBerg\n\n" * 5 + "Rome B-LOC\n"
    with pytest.raises(
        InputError, match=r"5 rows of a\.txt cannot be read: .*:3: .*:6: .*:9: .*; and 2 more\. Correct"
    ):
        read(tmp_path, "a.txt", content)
    assert read(tmp_path, "a.txt", content, skip_malformed=True)["words"] == [["Anna"], ["Rome"]]
    assert "5 rows of a.txt cannot be read and left out" in caplog.text


def test_a_sentence_without_words_is_kept_with_a_warning(tmp_path, caplog):
    rows = '{"tokens": [], "ner_tags": []}\n{"tokens": ["a"], "ner_tags": ["O"]}'
    assert read(tmp_path, "a.jsonl", rows) == {"words": [[], ["a"]], "label": [[], [0]]}
    assert "1 rows have an empty text" in caplog.text
