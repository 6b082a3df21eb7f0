"""The forms in which predictions are written, row by row: tables, JSON, lines for people."""

import csv
import json
import re
from pathlib import Path
from typing import Any, ClassVar, Protocol, TextIO

from bitkd.errors import InputError

_END = re.compile(r"[\t\r\n]+")
"""What would end a field of a .tsv file: it becomes a space, such as in an answer over two lines."""

Prediction = dict[str, Any]
"""`index` of the row from 0, `text` and, of a pair, `text_pair`; then `label` and `scores`, the probability of every
label, or only `score`, of a regression, or what another kind of task answers."""


class Shown(Protocol):
    """How the predictions of one model are shown: see bitkd.commands.predictor.Predictor."""

    @property
    def columns(self) -> list[str]: ...

    def fields(self, prediction: Prediction) -> list[str]: ...

    def line(self, prediction: Prediction) -> str: ...


class Form:
    """One form.  shown: how the model's predictions are shown."""

    holds_embeddings: ClassVar[bool] = False
    """Whether a prediction may be a list of numbers."""

    def __init__(self, stream: TextIO, shown: Shown) -> None:
        self.stream = stream
        self.shown = shown

    @classmethod
    def check(cls, shown: Shown) -> None:
        """Raise InputError if the form cannot hold these predictions."""

    def begin(self) -> None:
        """Write what comes before the rows."""

    def write(self, prediction: Prediction) -> None:
        """Write one row."""
        raise NotImplementedError

    def end(self) -> None:
        """Write what comes after the rows."""


class Lines(Form):
    """For people, a line for each row: such as the label, and the probability of every label."""

    def write(self, prediction: Prediction) -> None:
        self.stream.write(f"{self.shown.line(prediction)}\n")


class Csv(Form):
    """A table: the row's index, its label, and a column `probability_LABEL` for every label; or its score, and the like."""

    def begin(self) -> None:
        self._rows = csv.writer(self.stream, lineterminator="\n")
        self._row(["index", *self.shown.columns])

    def write(self, prediction: Prediction) -> None:
        self._row([str(prediction["index"]), *self.shown.fields(prediction)])

    def _row(self, fields: list[str]) -> None:
        self._rows.writerow(fields)


class Tsv(Csv):
    """The same table, separated by tabs and without quotes, as .tsv files are read."""

    @classmethod
    def check(cls, shown: Shown) -> None:
        wrong = [name for name in shown.columns if set(name) & set("\t\r\n")]
        if wrong:
            label = wrong[0].removeprefix("probability_")
            raise InputError(f"the label {label!r} cannot be in a .tsv file; use --out FILE.csv or FILE.jsonl")

    def _row(self, fields: list[str]) -> None:
        self.stream.write("\t".join(_END.sub(" ", field) for field in fields) + "\n")


class JsonLines(Form):
    """A JSON object for each row."""

    holds_embeddings = True

    def write(self, prediction: Prediction) -> None:
        self.stream.write(json.dumps(prediction, ensure_ascii=False) + "\n")


class JsonDocument(Form):
    """One JSON object: {"predictions": [...]}."""

    holds_embeddings = True

    def begin(self) -> None:
        self.stream.write('{"predictions": [')
        self._separator = "\n"

    def write(self, prediction: Prediction) -> None:
        self.stream.write(f"{self._separator}  {json.dumps(prediction, ensure_ascii=False)}")
        self._separator = ",\n"

    def end(self) -> None:
        self.stream.write("\n]}\n")


FILE_FORMS: dict[str, type[Form]] = {".tsv": Tsv, ".txt": Tsv, ".csv": Csv, ".jsonl": JsonLines, ".json": JsonLines}


def form_of(file: Path) -> type[Form]:
    """The form of a file's suffix. Raises InputError if there is none."""
    if file.suffix.lower() not in FILE_FORMS:
        raise InputError(f"--out {file}: use a file name that ends in {', '.join(FILE_FORMS)}")
    return FILE_FORMS[file.suffix.lower()]
