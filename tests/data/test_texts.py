"""A person's own rows become texts, whatever their format, and without labels."""

import csv
import json
import os
import threading

import pyarrow
import pyarrow.parquet
import pytest

from bitkd.data.lines import Malformed
from bitkd.data.texts import TextFile
from bitkd.errors import InputError

ONE, TWO = [["sentence"]], [["premise", "hypothesis"], ["sentence1", "sentence2"]]


def texts_of(file, columns=ONE, **options):
    return [
        str(row) if isinstance(row, Malformed) else row for _, row in TextFile(str(file), columns, **options).rows()
    ]


def write(file, rows):
    """Write rows, which are dictionaries, in the format of the file's suffix."""
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(file, "w", newline="") as stream:
            table = csv.writer(stream, delimiter="\t" if file.suffix == ".tsv" else ",", lineterminator="\n")
            table.writerows([list(rows[0]), *(row.values() for row in rows)])
    return file


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_the_tasks_columns_are_found_by_name_among_others(suffix, tmp_path):
    rows = [{"id": str(i), "sentence": f"a dog, {i}", "label": "unknown"} for i in range(3)]
    file = write(tmp_path / f"rows{suffix}", rows)
    assert texts_of(file) == [["a dog, 0"], ["a dog, 1"], ["a dog, 2"]]
    other = file.rename(tmp_path / "rows.data")
    assert texts_of(other, format=suffix[1:]) == [["a dog, 0"], ["a dog, 1"], ["a dog, 2"]]
    with pytest.raises(InputError, match=r"rows in \.data are unknown"):
        texts_of(other)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_columns_may_have_the_names_of_the_tasks_files(suffix, tmp_path):
    file = write(tmp_path / f"rows{suffix}", [{"sentence2": "b", "sentence1": "a"}])
    assert texts_of(file, TWO) == [["a", "b"]]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".parquet"])
def test_a_missing_column_is_refused_with_those_that_are_there(suffix, tmp_path):
    file = write(tmp_path / f"rows{suffix}", [{"text": "a", "id": "1"}])
    with pytest.raises(InputError, match=r"column sentence is missing; the columns are \['text', 'id'\]"):
        texts_of(file)
    with pytest.raises(InputError, match=r"column premise is missing"):
        texts_of(file, TWO)


def test_each_line_of_a_text_file_is_a_row(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_bytes(b'\xef\xbb\xbfa dog\r\n\na "cat"\n\n\n')
    assert texts_of(file) == [["a dog"], [""], ['a "cat"']]
    file.write_text("a dog\tan animal\na cat\n")
    assert texts_of(file, TWO) == [
        ["a dog", "an animal"],
        f"{file}:2: 1 tab-separated fields, the task reads 2: premise and hypothesis (the first line is no header, which "
        "would have these names)",
    ]


def test_a_first_line_with_the_columns_is_a_header(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("id\tsentence\n1\ta dog\n2\n")
    assert texts_of(file) == [["a dog"], f"{file}:2: 1 tab-separated fields, the header has 2".replace(":2:", ":3:")]
    file.write_text("sentence2\tsentence1\nb\ta\n")
    assert texts_of(file, TWO) == [["a", "b"]]


@pytest.mark.parametrize(
    ("line", "format"), [('{"sentence": "a"}', "jsonl"), ('id,"sentence"', "csv"), ("sentence,id", "csv")]
)
def test_a_line_of_another_format_is_not_taken_for_a_text(line, format, tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text(f"{line}\n")
    with pytest.raises(InputError, match=f"looks like a row of a .{format} file; add --format {format}"):
        texts_of(file)


@pytest.mark.parametrize("line", ["{sentence}", "{", "a sentence, and more"])
def test_a_text_may_look_a_little_like_another_format(line, tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text(f"{line}\n")
    assert texts_of(file) == [[line]]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.txt", "rows.csv", "rows.jsonl"])
def test_an_empty_file_has_no_rows(name, tmp_path):
    (tmp_path / name).touch()
    assert texts_of(tmp_path / name) == []


@pytest.mark.parametrize(
    ("quoted", "line"), [('"a\udcff', 2), ('"a\nb\udcff', 3), ('"a\udcff\nb\n\udcff', 2), ('"a, ""b\udcff""\n', 2)]
)
def test_a_quoted_field_with_a_wrong_byte_is_one_malformed_row(quoted, line, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(f'sentence,id\n{quoted}",1\nb,2\n', errors="surrogateescape")
    first, second = texts_of(file)
    assert first.startswith(f"{file}:{line}: byte ")
    assert second == ["b"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [(5, "sentence is int 5, not a text"), (None, "sentence is missing"), ("a\ud800", "half of a surrogate pair")],
)
def test_what_is_no_text_is_malformed(value, problem, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"sentence": value}) + "\n")
    [row] = texts_of(file)
    assert row.startswith(f"{file}:1: ")
    assert problem in row


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no such file; name a file of rows, or - for standard input"):
        TextFile(str(tmp_path / "rows.tsv"), ONE)
    with pytest.raises(InputError, match="is a folder"):
        TextFile(str(tmp_path), ONE)
    with pytest.raises(InputError, match="Parquet cannot be read from a pipe"):
        TextFile("-", ONE, format="parquet")


@pytest.mark.parametrize(
    ("format", "content"), [(None, "a\nb\n"), ("tsv", "sentence\na\nb\n"), ("csv", "sentence\na\nb\n"), ("jsonl", "")]
)
def test_a_pipe_is_read_while_it_comes(format, content, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = content or '{"sentence": "a"}\n{"sentence": "b"}\n'
    writer = threading.Thread(target=pipe.write_text, args=[content])
    writer.start()
    assert texts_of(pipe, format=format) == [["a"], ["b"]]
    writer.join()


@pytest.mark.parametrize("format", ["tsv", "csv", "jsonl"])
def test_the_columns_of_a_pipe_may_have_the_names_of_the_tasks_files(format, tmp_path):
    content = write(tmp_path / f"rows.{format}", [{"sentence2": "b", "sentence1": "a"}]).read_text()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[content])
    writer.start()
    assert texts_of(pipe, TWO, format=format) == [["a", "b"]]
    writer.join()
