"""The report of finished runs, as files in a folder."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bitkd.compare.comparison import Comparison, StudyComparison, arms_of
from bitkd.compare.record_file import RECORD_FILE, to_json
from bitkd.compare.rows import Row
from bitkd.compare.runs import Run
from bitkd.errors import InputError
from bitkd.files import write_file
from bitkd.names import check_name, escaped
from bitkd.report.glossary import captions, glossary, notes, versions
from bitkd.report.tables import (
    cost_table,
    difference_table,
    exported_table,
    headline,
    measured_with,
    paragraph,
    questions,
    size_table,
    stage_table,
)
from bitkd.report.verdict import TASK_NOTE, sentences, task_table


def write_report(runs: list[Run], folder: Path) -> None:
    """Write index.html, report.md, comparison.csv, comparison.json and the pictures into `folder`.

    Of a study over several tasks, the folder has the verdict and the record of all runs, and a folder for each task.
    The same runs give the same bytes, and so does a comparison.json that was written before.
    Raises InputError if the runs cannot be compared (see `arms_of`), or the folder cannot be written.
    """
    write_comparison(StudyComparison.of(arms_of(runs)), folder)


def write_comparison(compared: StudyComparison, folder: Path) -> None:
    """Like `write_report`, for an existing comparison."""
    from bitkd.report.html import render_study

    for comparison in compared.tasks:
        check_name(comparison.first.task, "task ")
    # The record first: a folder that cannot be written is found before the pictures are drawn.
    _write(folder, {RECORD_FILE: to_json(compared.runs)})
    if len(compared.tasks) == 1:
        _write_pages(compared.tasks[0], folder)
        return
    for comparison in compared.tasks:
        _write_pages(comparison, folder / comparison.first.task)
    _write(folder, {"report.md": study_markdown(compared), "index.html": render_study(compared)})


def _write_pages(comparison: Comparison, folder: Path) -> None:
    from bitkd.report.html import render_page
    from bitkd.report.plots import draw
    from bitkd.report.style import to_png

    figures = draw(comparison)
    files: dict[str, str | bytes] = {f"{name}.png": to_png(figure) for name, figure in figures.items()}
    files["report.md"] = markdown(comparison)
    files["comparison.csv"] = as_csv(comparison)
    files["index.html"] = render_page(comparison, figures)
    _write(folder, files)


def study_markdown(compared: StudyComparison) -> str:
    """report.md of a study over several tasks."""
    parts = ["# Study", *map(paragraph, sentences(compared.study))]
    parts += [f"> **{escaped(text)}**" for text in compared.warnings]
    if (table := task_table(compared.study)).rows:
        parts += [table.markdown(), paragraph(TASK_NOTE)]
    for comparison in compared.tasks:
        task = escaped(comparison.first.task)
        parts += [f"## {task}", headline(comparison).markdown(), f"[Report of {task}]({task}/report.md)"]
    return "\n\n".join(parts) + "\n"


def check_folder(folder: Path) -> None:
    """Raise InputError if a report cannot be written into `folder`, which need not exist; leaves nothing behind."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{folder} is not writable ({existing} is no folder); choose another folder with --out")
    try:
        with TemporaryDirectory(dir=existing):  # os.access can be wrong for root
            pass
    except OSError as error:
        raise InputError(f"{folder} is not writable ({error.strerror}); choose another folder with --out") from error


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_file(folder / name, content)
    except OSError as error:
        raise InputError(f"{folder} is not writable ({error.strerror}); choose another folder with --out") from error


def markdown(comparison: Comparison) -> str:
    """report.md: the page's text and tables, with the PNG pictures."""
    parts = [f"# {escaped(comparison.first.task)}: {', '.join(escaped(arm.label) for arm in comparison.arms)}"]
    parts += map(paragraph, sentences(comparison.study))
    parts += [f"> **{escaped(text)}**" for text in comparison.warnings]
    parts += [headline(comparison).markdown(), *map(paragraph, notes(comparison))]
    if (exported := exported_table(comparison)).rows:
        parts += ["## Final students as exported, beside the teacher", exported.markdown()]
        parts += map(paragraph, measured_with(comparison))
    if comparison.differences:
        parts += ["## Differences", difference_table(comparison).markdown()]
        parts += ["\n".join(f"- {paragraph(text)}" for text in questions(comparison))]
    parts += ["## Pictures", *(f"![{caption}]({name}.png)" for name, caption in captions(comparison).items())]
    parts += ["## Sizes of the final students", size_table(comparison).markdown()]
    parts += ["## Training cost", cost_table(comparison).markdown()]
    for arm in comparison.arms:
        parts += [f"## Stages of {escaped(arm.label)}", stage_table(arm).markdown()]
    parts += ["## What was counted, and how"]
    parts += ["\n".join(f"- **{escaped(term)}**: {escaped(text)}" for term, text in glossary(comparison))]
    parts += ["## Versions and devices", paragraph("; ".join(versions(comparison)))]
    return "\n\n".join(parts) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One row for each run and stage; a column for each metric of each dev set."""
    measured = list(
        dict.fromkeys(
            f"{dev}/{metric}" for _, row in comparison.rows for dev, values in row.dev.items() for metric in values
        )
    )
    plain = [field.name for field in fields(Row) if field.name != "dev"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["arm", *plain, *measured], restval="", lineterminator="\n")
    writer.writerow({name: _cell(name) for name in writer.fieldnames})
    for arm, row in comparison.rows:
        values: dict[str, Any] = asdict(row)
        dev = values.pop("dev")
        flat = {f"{name}/{metric}": value for name, section in dev.items() for metric, value in section.items()}
        writer.writerow({name: _cell(value) for name, value in ({"arm": arm} | values | flat).items()})
    return stream.getvalue()


def _cell(value: Any) -> Any:
    """A value for a CSV file. A text that a spreadsheet would take for a formula gets a quotation mark before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value
