"""The forms in which predictions are written, row by row: tables, JSON, lines for people."""

import csv
import json
from pathlib import Path
from typing import Any, ClassVar, TextIO

from bitkd.errors import InputError

Prediction = dict[str, Any]
"""`index` of the row from 0, `text` and, of a pair, `text_pair`; then `label` and `scores`, the probability of every
label, or only `score`, of a regression or of the similarity of a pair; or `embedding`, of one text."""


class Form:
    """One form.  labels: the label names in the order of the outputs; None for a regression."""

    def __init__(self, stream: TextIO, labels: list[str] | None) -> None:
        self.stream = stream
        self.labels = labels

    holds_embeddings: ClassVar[bool] = False
    """Whether a prediction may be a list of numbers."""

    @classmethod
    def check(cls, labels: list[str] | None) -> None:
        """Raise InputError if the form cannot hold these labels."""

    def begin(self) -> None:
        """Write what comes before the rows."""

    def write(self, prediction: Prediction) -> None:
        """Write one row."""
        raise NotImplementedError

    def end(self) -> None:
        """Write what comes after the rows."""


class Lines(Form):
    """For people: the label, and the probability of every label."""

    def write(self, prediction: Prediction) -> None:
        scores = prediction.get("scores", {"score": prediction.get("score")})
        shown = " ".join(f"{name}={value:.4f}" for name, value in scores.items())
        self.stream.write(f"{prediction.get('label', '')}\t{shown}\n")


class Csv(Form):
    """A table: the row's index, its label, and a column `probability_LABEL` for every label; or its score."""

    def begin(self) -> None:
        self._rows = csv.writer(self.stream, lineterminator="\n")
        self._row(
            ["index", *(["label", *(f"probability_{name}" for name in self.labels)] if self.labels else ["score"])]
        )

    def write(self, prediction: Prediction) -> None:
        if self.labels is None:
            fields = [f"{prediction['score']:.6f}"]
        else:
            fields = [prediction["label"], *(f"{prediction['scores'][name]:.6f}" for name in self.labels)]
        self._row([str(prediction["index"]), *fields])

    def _row(self, fields: list[str]) -> None:
        self._rows.writerow(fields)


class Tsv(Csv):
    """The same table, separated by tabs and without quotes, as .tsv files are read."""

    @classmethod
    def check(cls, labels: list[str] | None) -> None:
        wrong = [name for name in labels or [] if set(name) & set("\t\r\n")]
        if wrong:
            raise InputError(f"the label {wrong[0]!r} cannot be in a .tsv file; use --out FILE.csv or FILE.jsonl")

    def _row(self, fields: list[str]) -> None:
        self.stream.write("\t".join(fields) + "\n")


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
