"""The report as one HTML page: everything inline, light and dark, nothing fetched from elsewhere."""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from bitkd.compare.arms import Arm
from bitkd.compare.comparison import Comparison, StudyComparison
from bitkd.report.boxes import boxes
from bitkd.report.glossary import captions, glossary, notes, versions
from bitkd.report.looks import in_order
from bitkd.report.style import ARMS, VARIABLES, to_svg
from bitkd.report.tables import (
    cost_table,
    difference_table,
    exported_table,
    headline,
    measured_with,
    questions,
    size_table,
    stage_table,
)
from bitkd.report.verdict import TASK_NOTE, sentences, task_table

LONGEST_TITLE = 100

TEXT_COLUMNS = {"95 %, other seeds", "bits", "budget", "device", "of", "word tables"}
"""Columns that hold words, not numbers."""

DARK = {
    "--ink": "#ececee",
    "--muted": "#a5a5ad",
    "--grid": "#3a3a41",
    "--paper": "#17171a",
    "--warn": "#43370f",
    **dict(
        zip(
            (f"--arm{number}" for number in range(len(ARMS))),
            ("#5aaee8", "#ff8a3d", "#2fc79a", "#e58ac4", "#d9d9df", "#9ad4f5", "#e3b341"),
        )
    ),
}
LIGHT = {variable: colour for colour, variable in VARIABLES.items()} | {"--warn": "#fff3d6"}


def render_page(comparison: Comparison, figures: dict[str, Figure]) -> str:
    """The whole page (page.html.j2).  figures: see bitkd.report.plots.draw."""
    shown = captions(comparison)
    names = ", ".join(arm.label for arm in comparison.arms)
    arms = [_arm_content(arm) for arm in comparison.arms]
    page = _template("page.html.j2").render(
        title=f"{comparison.first.task}: {names if len(names) <= LONGEST_TITLE else f'{len(arms)} arms'}",
        comparison=comparison,
        verdict=sentences(comparison.study),
        light=LIGHT,
        dark=DARK,
        text_columns=TEXT_COLUMNS,
        headline=headline(comparison),
        notes=notes(comparison),
        differences=difference_table(comparison),
        questions=questions(comparison),
        pictures={name: to_svg(figures[name], name, shown[name]) for name in shown if name != "pipelines"},
        captions=shown,
        legend=in_order(box.look for arm in arms for box in arm["boxes"]),
        arms=arms,
        exported=exported_table(comparison),
        measured_with=measured_with(comparison),
        sizes=size_table(comparison),
        costs=cost_table(comparison),
        definitions=glossary(comparison),
        versions="; ".join(versions(comparison)),
    )
    return page + "\n"


def render_study(compared: StudyComparison) -> str:
    """The page of a study over several tasks (study.html.j2), which leads to the pages of its tasks."""
    page = _template("study.html.j2").render(
        title=f"Study: {', '.join(comparison.first.task for comparison in compared.tasks)}",
        light=LIGHT,
        dark=DARK,
        text_columns=TEXT_COLUMNS,
        verdict=sentences(compared.study),
        warnings=compared.warnings,
        tasks=task_table(compared.study),
        task_note=TASK_NOTE,
        parts=[(comparison.first.task, headline(comparison)) for comparison in compared.tasks],
    )
    return page + "\n"


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("bitkd.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["prose"] = prose
    return environment.get_template(name)


def prose(text: str) -> Markup:
    """Text as HTML: `code` as an element, and long names of settings may be broken after a dot or =."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\S{25,}", lambda word: re.sub(r"(?<=\w)([.=])(?=\w)", r"\1<wbr>", word[0]), coded))


def _arm_content(arm: Arm) -> dict[str, Any]:
    return {
        "label": arm.label,
        "title": arm.first.title,
        "scores": ", ".join(f"{run.seed}: {run.final.score:.4f}" for run in arm.runs),
        "boxes": boxes(arm),
        "stages": stage_table(arm),
    }
