"""Every format gives back the texts that were written into it, and says in a few words what it cannot read."""

import csv
import gzip
import itertools
import json
import os
import random
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bitkd.data.documents import FileDocuments
from bitkd.data.files import read_rows
from bitkd.data.formats import read_records
from bitkd.data.tasks import FilesSpec, TaskSpec
from bitkd.errors import InputError

COLUMNS = ["first", "second", "label"]
ALPHABETS = [
    "abc xyz",
    "\"',;|\t\\{}[]:#",
    "\n\r \t",
    "\x00\x01\x1b\x7f\x85\ufeff\u2028\u2029\u00a0\u200b",
    "äßéñ中文العربيةहिन्दी",
    "😀👩‍👩‍👧𝕏\U0010ffff",
]


def any_text(generator):
    """A text of some alphabets, sometimes empty, sometimes longer than the csv module takes at first."""
    if generator.random() < 0.1:
        return "".join(chr(c) for c in generator.choices(range(0x110000), k=9) if unicodedata.category(chr(c)) != "Cs")
    alphabet = "".join(generator.sample(ALPHABETS, generator.randint(1, len(ALPHABETS))))
    length = generator.choice([0, 1, 3, 12, 80]) if generator.random() < 0.98 else 140_000
    return "".join(generator.choices(alphabet, k=length))


def any_rows(generator):
    return [[any_text(generator), any_text(generator), generator.choice("xy")] for _ in range(generator.randint(1, 12))]


def write_tsv(generator, file, rows):
    rows[:] = [[text.replace("\t", " ").replace("\n", " ") for text in row] for row in rows]  # .tsv cannot hold these
    end = generator.choice(["\n", "\r\n"])
    text = "".join("\t".join(row) + end for row in [COLUMNS, *rows])
    return (text + generator.choice(["", end, end * 3])).encode(generator.choice(["utf-8", "utf-8-sig"]))


def write_csv(generator, file, rows):
    with open(file, "w", newline="", encoding=generator.choice(["utf-8", "utf-8-sig"])) as stream:
        writer = csv.writer(stream, quoting=generator.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]))
        writer.writerows([COLUMNS, *rows])
        stream.write(generator.choice(["", "\r\n", " \r\n\n"]))
    return file.read_bytes()


def as_objects(generator, rows):
    return [dict(generator.sample([*zip(COLUMNS, row), ("more", [1, None])], 4)) for row in rows]


def write_jsonl(generator, file, rows):
    ascii_only = generator.random() < 0.5
    end = generator.choice(["\n", "\r\n", "\n\n"])
    return end.join(json.dumps(row, ensure_ascii=ascii_only) for row in as_objects(generator, rows)).encode()


def write_array(generator, file, rows):
    text = json.dumps(as_objects(generator, rows), indent=generator.choice([None, 0, 2]), ensure_ascii=False)
    return (generator.choice(["", " \n"]) + text).encode(generator.choice(["utf-8", "utf-8-sig"]))


def write_parquet(generator, file, rows):
    kinds = [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
    columns = [pyarrow.array(column, generator.choice(kinds)) for column in zip(*rows)]
    table = pyarrow.table([*columns, pyarrow.array(range(len(rows)))], [*COLUMNS, "more"])
    pyarrow.parquet.write_table(
        table, file, row_group_size=generator.randint(1, 5), compression=generator.choice(["snappy", "gzip", "none"])
    )
    return file.read_bytes()


WRITERS = {
    "tsv": write_tsv,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "json": write_array,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("seed", range(40))
def test_any_text_comes_back_from_every_format(suffix, seed, tmp_path):
    generator = random.Random(seed)
    rows = any_rows(generator)
    file = tmp_path / f"rows.{suffix}"
    content = WRITERS[suffix](generator, file, rows)
    if suffix != "parquet" and generator.random() < 0.5:
        file, content = tmp_path / f"rows.{suffix}.gz", gzip.compress(content)
    file.write_bytes(content)
    wanted = generator.sample(COLUMNS, generator.randint(1, 3))
    expected = [[row[COLUMNS.index(column)] for column in wanted] for row in rows]
    assert [fields for _, fields in read_records(file, wanted)] == expected


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_damaged_file_is_read_or_refused_in_a_few_words(suffix, tmp_path):
    """Whatever bytes stand in a file: no other error, and a message of bounded length."""
    task = TaskSpec("t", ["first"], ["x", "y"], files=FilesSpec(dev={"dev": "dev.tsv"}))
    for seed in range(60):
        generator = random.Random(seed)
        file = tmp_path / f"rows{seed}.{suffix}"
        content = bytearray(WRITERS[suffix](generator, file, any_rows(generator)))
        for _ in range(generator.randint(0, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        file.write_bytes(content[: generator.randint(0, len(content))] if seed % 2 else content)
        try:
            read_rows(task, file)
        except InputError as error:
            assert len(str(error)) < 3000  # noqa: PT017 (there may be no error)


TASK = TaskSpec("t", ["text"], ["yes", "no"], files=FilesSpec(dev={"dev": "dev.tsv"}))
LONG = "word " * 50_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.tsv", ("text\tlabel\n" + "a dog\tyes\n" * 900).replace("\n", "\r"), "lines end in carriage returns alone"),
        ("r.tsv", "text\tlabel\ra dog\tyes\ra cat\tno\n", "lines end in carriage returns alone"),
        ("r.tsv", "text\tlabel\na dog\tyes\ra cat\tno\rone\tyes\n", r"r\.tsv:2: 4 .* carriage returns in it"),
        ("r.csv", "text,label\na dog,yes\ra cat,no\r\n", r"r\.csv:2: a carriage return stands outside quotes"),
        ("r.tsv", "text\tlabel\ttext\na\tyes\tb\n", r"r\.tsv:1: 2 columns have the name text; rename"),
        ("r.csv", "text;label\na;yes\n", "separated by semicolons: save it with commas"),
        ("r.csv", "text\tlabel\na\tyes\n", "separated by tabs: name it .tsv"),
        ("r.tsv", '"text"\t"label"\n"a"\t"yes"\n', "read without quotes: save it as .csv"),
        ("r.tsv", 'text\tlabel\n"a\nb"\tyes\n', r"r\.tsv:2: 1 tab-separated .*quotes are text: save"),
        ("r.tsv", "text\tlabel\n\na\tyes\n", r"r\.tsv:2: 1 tab-separated"),
        ("r.tsv", f"{LONG}\n{LONG}\n", r"r\.tsv:1: column text is missing; the columns are \['word"),
        ("r.tsv", f"text\tlabel\na\t{LONG}\n", "label 'word .* is outside the task's set"),
        ("r.jsonl", json.dumps({"text": [LONG] * 99, "label": "yes"}), "text is list .*, not a text"),
        ("r.jsonl", json.dumps({LONG: 1}), "text is missing; the row has"),
        ("r.jsonl", '{"text": null, "label": "yes"}', r"r\.jsonl:1: text is missing \(null\)"),
        (
            "r.jsonl",
            '{"text": "a \\ud83d dog", "label": "yes"}',
            r"r\.jsonl:1: text has \\ud83d at character 2, half of",
        ),
        ("r.json", '[{"text": "\\udc00", "label": "yes"}]', r"r\.json, row 0: text has \\udc00 at character 0"),
        ("r.jsonl", '{"text": "a", "text": "b", "label": "yes"}', r"r\.jsonl:1: text stands twice in the row"),
        ("r.jsonl", '{"text": "a", "label": ["yes", "no"]}', r"label is list \['yes', 'no'\].*\(multi-label\) are not"),
        ("r.tsv", "text\tlabel\na\tyes,no\n", r"label 'yes,no' is outside .*\(multi-label\) are not supported"),
        ("r.jsonl", "[" * 100_000, "no JSON array .*nested too deeply"),
        ("r.jsonl", '{"text": ' + "[" * 100_000, r"r\.jsonl:1: no JSON \(it is nested too deeply"),
        ("r.json", '[\n{"text": "a", "label": "yes"},\n{"text"}]', r"r\.json:3: no JSON array \(Expecting"),
        ("r.json", '{\n"data": [{"text": "a", "label": "yes"}]\n}', r"is one JSON object, with the keys \['data'\]"),
        ("r.tsv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "it is a git-lfs pointer"),
        ("r.tsv", "text\tlabel\na\tyes\n".encode("utf-16"), "is no text in UTF-8: it is UTF-16; save it as UTF-8"),
        ("r.csv", "text,label\na,yes\n".encode("utf-16-le"), "its first line has zero bytes"),
        (
            "r.json",
            '[{"text": "\xe9", "label": "yes"}]'.encode("latin-1"),
            r"r\.json:1: byte 11 is not UTF-8 \(0xe9\)",
        ),
        (
            "r.tsv.gz",
            gzip.compress(b"text\tlabel\n" + b"a\tyes\n" * 99, mtime=0)[:-9],
            "is damaged: gzip cannot read it",
        ),
        (
            "r.tsv.gz",
            gzip.compress(gzip.compress(b"text\tlabel\n", mtime=0), mtime=0),
            "it is compressed with gzip; unpack it",
        ),
        ("r.parquet.gz", b"", r"rows in \.parquet\.gz are unknown"),
        ("r.tsv.zip", b"", r"rows in \.tsv\.zip are unknown; use \.tsv, .* also with \.gz"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_few_words(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as refused:
        read_rows(TASK, tmp_path / name)
    assert len(str(refused.value)) < 700 + 2 * len(str(tmp_path))


def test_a_parquet_file_with_a_text_that_is_not_utf8_is_named_by_row(tmp_path):
    broken = pyarrow.array([b"fine", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"text": broken, "label": pyarrow.array(["yes", "no"]).dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(InputError, match=r"r\.parquet, row 1: text cannot be read \(byte 0 is not UTF-8\)"):
        read_rows(TASK, tmp_path / "r.parquet")
    twice = pyarrow.table([["a"], ["b"], ["yes"]], ["text", "text", "label"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="2 columns have the name text"):
        read_rows(TASK, tmp_path / "twice.parquet")


def test_a_file_without_rights_is_named(tmp_path, monkeypatch):
    (tmp_path / "r.tsv").write_text("text\tlabel\n")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bitkd.data.lines.FileIO", refuse)
    with pytest.raises(InputError, match=r"r\.tsv cannot be read \(Permission denied\)"):
        read_rows(TASK, tmp_path / "r.tsv")


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["true", "false"], [True, False]),
        (["True", "False"], [True, False]),
        (["0", "1"], [0, 1]),
        (["01", "1"], ["01", 1]),
        (["null", "yes"], [None, "yes"]),
        (["0.5", "no"], [0.5, "no"]),
    ],
)
def test_a_label_is_the_word_that_stands_in_the_file(labels, values, tmp_path):
    task = TaskSpec("t", ["text"], labels, files=FilesSpec(dev={"dev": "dev.tsv"}))
    objects = [{"text": "a", "label": value} for value in values]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, objects)))
    assert read_rows(task, tmp_path / "r.jsonl")["label"] == [0, 1]
    if len({type(value) for value in values}) == 1:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), tmp_path / "r.parquet")
        assert read_rows(task, tmp_path / "r.parquet")["label"] == [0, 1]


@pytest.mark.parametrize("label", [None, "None", "", "1_0", "9" * 5000, "inf", True])
def test_what_is_no_label_is_none(label, tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"text": "a", "label": label}))
    for labels, kind in ((["yes", "no"], "names"), (["a", "b"], "index"), (None, "number")):
        task = TaskSpec("t", ["text"], labels, files=FilesSpec(labels_as=kind))
        if label != "9" * 5000 or kind != "number":
            with pytest.raises(InputError, match=r"r\.jsonl:1: label .* is outside the task's set"):
                read_rows(task, tmp_path / "r.jsonl")


def test_blank_last_lines_are_no_rows_and_others_are(tmp_path):
    file = tmp_path / "test.tsv"
    file.write_text("text\na\n\nb\n\n\n")
    assert read_rows(TASK, file, labelled=False) == {"text_a": ["a", "", "b"]}
    file.write_text("text\na\n \n\n")
    assert read_rows(TASK, file, labelled=False) == {"text_a": ["a", " "]}
    (tmp_path / "test.csv").write_text('text\na\n\n""\n\n')
    assert read_rows(TASK, tmp_path / "test.csv", labelled=False) == {"text_a": ["a", ""]}


def test_a_corpus_may_be_compressed_and_is_no_table(tmp_path):
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfzero\r\n\r\nmore\r\n\r\n")
    assert list(FileDocuments([str(tmp_path)]).read()) == ["zero", "more", "one", "two"]
    (tmp_path / "c.txt").write_bytes(b"one\r\rtwo\r")
    with pytest.raises(InputError, match="carriage returns alone"):
        list(FileDocuments([str(tmp_path / "c.txt")]).read())
    (tmp_path / "c.txt").write_bytes("one\n".encode("utf-16"))
    with pytest.raises(InputError, match="it is UTF-16"):
        list(FileDocuments([str(tmp_path / "c.txt")]).read())
    for name in ("d.jsonl", "d.csv.gz", "d.parquet"):
        (tmp_path / name).write_text('{"text": "one"}\n')
        with pytest.raises(InputError, match=r"is a table; write its texts into a \.txt file"):
            FileDocuments([str(tmp_path / name)])


def test_a_pipe_is_read_while_rows_come(tmp_path):
    for suffix, lines in (
        (".tsv", ["text\n", "a\n", "b\n"]),
        (".csv", ["text\n", "a\n", "b\n"]),
        (".jsonl", ['{"text": "a"}\n', '{"text": "b"}\n']),
    ):
        reading, writing = os.pipe()
        with os.fdopen(writing, "w", buffering=1) as pipe:
            rows = read_records(Path(f"/dev/fd/{reading}"), ["text"], suffix=suffix)
            for line in lines[:-1]:
                pipe.write(line)
            assert next(rows)[1] == ["a"]
            pipe.write(lines[-1])
            pipe.close()
            assert [fields for _, fields in rows] == [["b"]]
        os.close(reading)


def test_every_kind_of_text_survives_tokenizing(tiny_tokenizer, tmp_path):
    from bitkd.data.task_rows import TaskRows

    texts = [text for text in ALPHABETS if "\n" not in text] + ["\x00", "\ufeff", " ", "a" * 9000]
    rows = [{"text": text, "label": label} for text, label in zip(texts, itertools.cycle(["yes", "no"]))]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = FilesSpec(train="train.jsonl", dev={"dev": "dev.jsonl"})
    task = TaskRows(TaskSpec("t", ["text"], ["yes", "no"], files=files), tiny_tokenizer, tmp_path, 16)
    assert task.num_rows == {"train": len(rows), "dev": len(rows)}
