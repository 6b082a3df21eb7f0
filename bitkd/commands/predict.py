"""The command predict: texts of the command line, a person's own rows, or a test set of the task."""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TextIO

from bitkd.commands.checkpoints import (
    Checkpoint,
    check_rows,
    check_source,
    check_texts,
    is_setting,
    open_checkpoint,
    text_columns,
)
from bitkd.commands.output import print_json
from bitkd.commands.predictions import Form, JsonDocument, Lines, Tsv, form_of
from bitkd.data.files import as_text
from bitkd.data.formats import Record
from bitkd.data.lines import Malformed
from bitkd.data.task_checks import check_test_set
from bitkd.data.texts import STDIN, TextFile
from bitkd.errors import InputError
from bitkd.pipeline.checks import check_files
from bitkd.processes.libraries import quieten

SHOWN_FAULTS = 3

Row = tuple[int, list[str]]
"""A row's index in its file, from 0, and its one or two texts."""

log = logging.getLogger(__name__)


def predict_command(arguments: argparse.Namespace) -> int:
    """Print or write predictions; returns the exit code."""
    files = [word for word in arguments.settings if not is_setting(word)]
    split = [word for word in arguments.settings if word.startswith("split=")]
    settings = [word for word in arguments.settings if word not in files and word not in split]
    if split:
        if not arguments.out or arguments.text or files:
            raise InputError("a submission needs split=NAME and --out FILE, and neither --text nor a file of rows")
        return _write_submission(arguments, settings, split[-1].partition("=")[2])
    if len(files) + bool(arguments.text) > 1:
        raise InputError(f"give one file of rows, or --text; there are {', '.join([*files, *arguments.text])}")
    if arguments.text:
        return _predict_texts(arguments, settings)
    if files:
        return _predict_file(arguments, settings, files[0])
    raise InputError(
        "there is nothing to predict; give --text, a file of rows, - for standard input, or split=NAME --out FILE"
    )


def _predict_texts(arguments: argparse.Namespace, settings: list[str]) -> int:
    texts, pairs = arguments.text, arguments.text_pair
    if pairs is not None and len(pairs) != len(texts):
        raise InputError(f"{len(texts)} --text and {len(pairs)} --text-pair were given; give one pair for each text")
    try:
        for text in [*texts, *(pairs or [])]:
            as_text(text, "a text", "the command line")
    except Malformed as fault:
        raise InputError(f"{fault}; give texts in UTF-8") from fault
    checkpoint = open_checkpoint(arguments.checkpoint, settings, arguments.labels, needs_task=False)
    check_texts(checkpoint, pairs is not None)
    rows = enumerate([list(row) for row in (zip(texts, pairs) if pairs else zip(texts))])
    return _write(arguments, checkpoint, rows, Faults("--text", skip=False), JsonDocument if arguments.json else Lines)


def _predict_file(arguments: argparse.Namespace, settings: list[str], name: str) -> int:
    checkpoint = open_checkpoint(arguments.checkpoint, settings, arguments.labels, needs_task=True)
    check_rows(checkpoint)
    task = checkpoint.config.task
    columns = text_columns(task)
    if task.of_kind.cosines:  # a text alone has an embedding
        columns += [texts[:1] for texts in columns]
    file = TextFile(name, columns, arguments.format)
    faults = Faults("standard input" if name == STDIN else name, arguments.skip_malformed)
    if arguments.out and _are_same(Path(arguments.out), file.path):
        raise InputError(f"--out {arguments.out} is the file of the rows; choose another")
    if file.can_be_read_again:
        _check_all(file, faults)
    rows = faults.leave_out(file.rows())
    return _write(arguments, checkpoint, rows, faults, JsonDocument if arguments.json else Tsv)


def _are_same(out: Path, source: Path) -> bool:
    return out.exists() and source.exists() and os.path.samefile(out, source)


class Faults:
    """Rows that cannot be read: the first one ends the work, or all are left out and counted.

    source: name of the file, for messages.  skip: leave them out.
    """

    def __init__(self, source: str, skip: bool) -> None:
        self.source = source
        self.skip = skip
        self.count = 0
        self._shown: list[str] = []

    def leave_out(self, records: Iterable[Record]) -> Iterator[Row]:
        """The rows that can be read. Raises InputError at the first one that cannot, unless they are left out."""
        for index, (_, fields) in enumerate(records):
            if isinstance(fields, Malformed):
                self.add(fields)
                if not self.skip:
                    raise InputError(f"{fields}. Correct it, or leave such rows out with --skip-malformed")
            else:
                yield index, fields

    def add(self, fault: Malformed) -> None:
        self.count += 1
        if self.count <= SHOWN_FAULTS:
            self._shown.append(str(fault))

    def __str__(self) -> str:
        more = f"; and {self.count - SHOWN_FAULTS} more" if self.count > SHOWN_FAULTS else ""
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        return f"{rows} of {self.source} cannot be read: {'; '.join(self._shown)}{more}"


def _check_all(file: TextFile, faults: Faults) -> None:
    """Read a file to its end before the work begins. Raises InputError if rows cannot be read and are not left out."""
    found = Faults(faults.source, faults.skip)
    for _, fields in file.rows():
        if isinstance(fields, Malformed):
            found.add(fields)
    if found.count and not faults.skip:
        raise InputError(f"{found}. Correct the file, or leave them out with --skip-malformed")


def _write(
    arguments: argparse.Namespace, checkpoint: Checkpoint, rows: Iterator[Row], faults: Faults, form: type[Form]
) -> int:
    """Predict the rows batch by batch, and write each batch when it is done."""
    out = arguments.out
    if out:
        form = form_of(Path(out))
    if checkpoint.config.task.of_kind.cosines and not form.holds_embeddings:
        first = next(rows, None)
        rows = chain([first], rows) if first else rows
        if first and len(first[1]) == 1:
            raise InputError(
                "the embedding of a text is a list of numbers, which a table cannot hold; use --json or --out FILE.jsonl, or "
                "give pairs of texts for their similarity"
            )
    from bitkd.commands.inference import open_predictor

    quieten()
    predictor = open_predictor(checkpoint)
    form.check(predictor)
    with _output(out) as stream:  # empties the file: after the last refusal
        written = 0
        shown = form(stream, predictor)
        shown.begin()
        stream.flush()
        try:
            for batch in _batches(rows, predictor.batch_size):
                texts = [fields for _, fields in batch]
                for (index, fields), result in zip(batch, predictor.predict_batch(texts)):
                    shown.write({"index": index, **dict(zip(("text", "text_pair"), fields)), **result})
                stream.flush()
                written += len(batch)
        except InputError as error:
            if written:
                raise InputError(f"{error} (rows before it that are written: {written})") from error
            raise
        finally:
            shown.end()
            stream.flush()
    if faults.count:
        log.warning("%s; left out", faults)
    if predictor.truncated:
        log.warning("%s: %d", predictor.truncation, predictor.truncated)
    if out and arguments.json:
        print_json({"file": out, "rows": written, "left_out": faults.count})
    elif out:
        print(f"{written} predictions: {out}")
    return 0


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of `size`. The rows before an InputError are given first, so that they are written."""
    batch: list[Row] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == size:
                yield batch
                batch = []
    except InputError as error:
        if batch:
            yield batch
        raise error
    if batch:
        yield batch


@contextmanager
def _output(out: str | None) -> Iterator[TextIO]:
    """The file `out`, or the standard output. Raises InputError if the file cannot be written."""
    if out is None:
        yield sys.stdout
        return
    file = Path(out)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    with stream:
        yield stream


def _write_submission(arguments: argparse.Namespace, settings: list[str], name: str) -> int:
    """Write the predictions for a test set: of classes and numbers in GLUE's format, index and label separated by a tab."""
    checkpoint = open_checkpoint(arguments.checkpoint, settings, arguments.labels, needs_task=True)
    config = checkpoint.config
    check_source(checkpoint)
    check_test_set(config.task, name, local=config.data.dir is not None)
    check_files(config, [config.task.files.test.get(name, "")])
    check_texts(checkpoint, len(config.task.text) == 2)
    out = Path(arguments.out)
    from bitkd.commands.inference import predict_set

    quieten()
    predictions = predict_set(checkpoint, name)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(predictions.text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{arguments.out} cannot be written ({error.strerror}); choose another --out") from error
    if arguments.json:
        print_json({"file": arguments.out, "rows": predictions.rows})
    else:
        print(f"{predictions.rows} predictions: {arguments.out}")
    return 0
