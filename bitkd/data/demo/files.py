"""The demo task: its rows, its corpus and a tiny pre-trained BERT, made on this machine; nothing is downloaded."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from bitkd.data.demo.entities import write_entities
from bitkd.data.demo.questions import write_questions
from bitkd.data.demo.similarities import write_similarities
from bitkd.data.demo.text import documents, pairs
from bitkd.files import is_left_over, temporary_name

TRAIN_ROWS, DEV_ROWS = 3600, 900
DOCUMENTS, SENTENCES = 1200, 4
CODE = ("entities.py", "files.py", "model.py", "questions.py", "similarities.py", "text.py")


@dataclass(frozen=True)
class DemoSource:
    """Where the demo's files are."""

    model: Path
    """Folder of the tiny BERT and its tokenizer."""

    data: Path
    """Folder with train.tsv and dev.tsv, and a folder for each other kind of task."""

    corpus: Path
    """Text file."""


def ensure_demo(root: Path) -> DemoSource:
    """The demo's files under `root`, made if they are not there yet (in about 20 seconds).

    The folder's name changes with this code, and appears only when the folder is complete. What a killed build left
    behind is deleted.
    """
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in CODE)
    folder = root / f"demo-{hashlib.sha256(code).hexdigest()[:12]}"
    source = DemoSource(folder / "model", folder / "data", folder / "corpus.txt")
    if folder.is_dir():
        return source
    # Here, not above: torch and transformers take seconds to load, and the demo is there after the first time.
    from bitkd.data.demo.model import write_model

    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".building.*"):
        if is_left_over(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)
    building = root / temporary_name(".building")
    shutil.rmtree(building, ignore_errors=True)
    _write_text(building)
    write_entities(building / "data" / "entities")
    write_similarities(building / "data" / "similarity")
    write_questions(building / "data" / "questions")
    write_model(building / "model", building / "corpus.txt", list(documents(DOCUMENTS, SENTENCES, seed=2)))
    try:
        building.rename(folder)
    except OSError:  # another process was faster
        if not folder.is_dir():
            raise
        shutil.rmtree(building)
    return source


def _write_text(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    rows = pairs(TRAIN_ROWS + DEV_ROWS, seed=1)
    for name, part in (("train", rows[:TRAIN_ROWS]), ("dev", rows[TRAIN_ROWS:])):
        lines = ["\t".join(row) for row in [("sentence1", "sentence2", "label"), *part]]
        (folder / "data" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = "\n\n".join("\n".join(sentences) for sentences in documents(DOCUMENTS, SENTENCES, seed=2))
    (folder / "corpus.txt").write_text(text + "\n", encoding="utf-8")
