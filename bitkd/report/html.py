"""The report as one HTML page: everything inline, light and dark, nothing fetched from elsewhere."""

from html import escape

from matplotlib.figure import Figure

from bitkd.compare.arms import Arm
from bitkd.compare.comparison import Comparison
from bitkd.report.boxes import STATES, boxes, colour_of
from bitkd.report.glossary import definitions, notes, versions
from bitkd.report.style import ARMS, VARIABLES, to_svg
from bitkd.report.tables import TextTable, cost_table, difference_table, headline, size_table, stage_table

CAPTIONS = {
    "size": "Score against the size of the final student: packed (solid) and on paper (hollow), joined by a line. Upright bars: "
    "± standard deviation, where there are several seeds.",
    "cost": "Score against the training cost of the whole chain; hollow: without General KD. Upright bars: ± standard "
    "deviation, where there are several seeds.",
    "curves": "Scores over the steps of the chain. A marker is the end of a stage, measured on dev with the weights that it "
    "hands on (the best on the way, or the last); lines are "
    "the validations on the way (thin: each seed), a small point where there was but one. Below: which stage each arm is in.",
    "pipelines": "The pipelines, each stage with its metric and cost.",
}

LONGEST_TITLE = 100

TEXTS = {"bits", "budget", "device", "drawn", "of", "seeds in pairs", "what it says", "word tables"}
"""Columns of words, not of numbers."""

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


def _variables(colours: dict[str, str]) -> str:
    return ":root{" + ";".join(f"{name}:{colour}" for name, colour in colours.items()) + "}"


STYLE = f"""
:root{{color-scheme:light dark}}
{_variables(LIGHT)}
@media (prefers-color-scheme:dark){{{_variables(DARK)}}}
"""
STYLE += """
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0;max-width:75ch}.note{color:var(--muted)}
.warning{background:var(--warn);border-left:4px solid #d99a00;padding:.5rem .8rem;margin:.5rem 0;max-width:none}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:.4rem 0}
th,td{padding:.3rem .5rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{font-weight:600;vertical-align:bottom;white-space:normal;min-width:4.5rem}
th:first-child,td:first-child,td.text,th.text{text-align:left}
.name,.words{display:inline-block;width:max-content;max-width:19rem;white-space:normal}.words{max-width:13rem}
tbody th,tbody td{vertical-align:baseline}
tbody th{font-weight:600;text-align:left;
position:sticky;left:0;background:var(--paper)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:1rem}
figure{margin:0;max-width:520px}figcaption{color:var(--muted);font-size:.85rem}
figure svg{display:block;width:100%;height:auto}
figure.wide{max-width:820px}.wide svg{min-width:520px}
.pipeline{display:flex;flex-wrap:wrap;gap:.5rem .25rem;margin:.3rem 0 1rem;padding:0;list-style:none}
.pipeline li{display:flex;align-items:stretch;gap:.25rem}
.pipeline li:not(:has(.arrow)){margin-left:.5rem}.pipeline li:first-child{margin-left:0}
.pipeline .arrow{align-self:flex-start;padding-top:.75rem;color:var(--muted)}
.box{width:6.9rem;font-size:.78rem;line-height:1.3;text-align:center}
.box b{display:flex;align-items:center;justify-content:center;min-height:3.5rem;padding:.15rem .3rem;border-radius:.4rem;
color:#111;font-weight:600}
.box em{font-style:normal}.box strong{font-size:.75rem;white-space:nowrap;display:block;margin-top:.25rem}
.box span{display:block;color:var(--muted)}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1rem;font-size:.85rem;color:var(--muted);padding:0;list-style:none}
.legend i{display:inline-block;width:.9rem;height:.9rem;border-radius:.2rem;margin-right:.35rem;vertical-align:-.1rem}
details{margin:.4rem 0;border-top:1px solid var(--grid);padding-top:.4rem}summary{cursor:pointer;font-weight:600}
@media (max-width:600px){.name{max-width:7rem}}
dt{font-weight:600;margin-top:.5rem}dd{margin:0;max-width:75ch}
"""


def render_page(comparison: Comparison, figures: dict[str, Figure]) -> str:
    """The whole page. figures: see bitkd.report.plots.draw."""
    names = ", ".join(arm.label for arm in comparison.arms)
    title = f"{comparison.first.task}: {names if len(names) <= LONGEST_TITLE else f'{len(comparison.arms)} arms'}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="warning" role="note">{escape(text)}</p>' for text in comparison.warnings),
        '<section id="answer">',
        _table(headline(comparison), "headline"),
        *(f'<p class="note">{escape(text)}</p>' for text in notes(comparison)),
        "</section>",
        *_differences(comparison),
        '<section id="pictures"><h2>Score, size, cost</h2><div class="plots">',
        *(_figure(figures[name], name) for name in ("size", "cost")),
        "</div><h2>Stage after stage</h2>",
        _figure(figures["curves"], "curves", "wide"),
        '</section><section id="pipelines"><h2>The pipelines</h2>',
        _legend(comparison),
        *(_pipeline(arm) for arm in comparison.arms),
        '</section><section id="details"><h2>In detail</h2>',
        _details("Sizes of the final students", _table(size_table(comparison), "sizes"), opened=True),
        _details("Training cost", _table(cost_table(comparison), "costs"), opened=True),
        *(
            _details(f"Stages of {arm.label}", _about(arm) + _table(stage_table(arm), "stages"))
            for arm in comparison.arms
        ),
        '</section><section id="definitions"><h2>What was counted, and how</h2><dl>',
        *(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in definitions(comparison)),
        '</dl><h2>Versions and devices</h2><p class="note">',
        escape("; ".join(versions(comparison))),
        "</p></section>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _differences(comparison: Comparison) -> list[str]:
    if not comparison.differences:
        return []
    return [
        '<section id="differences"><h2>Differences</h2>',
        _table(difference_table(comparison), "differences"),
        "</section>",
    ]


def _table(table: TextTable, name: str) -> str:
    kinds = [' class="text"' if cell in TEXTS else "" for cell in table.header]
    head = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(table.header, kinds))
    rows = "".join(
        f'<tr><th scope="row"><span class="name">{escape(row[0])}</span></th>'
        + "".join(f"<td{kind}>{_words(cell, kind)}</td>" for cell, kind in zip(row[1:], kinds[1:]))
        + "</tr>"
        for row in table.rows
    )
    content = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll" tabindex="0"><table class="{name}">{content}</table></div>'


def _words(cell: str, kind: str) -> str:
    """A cell's text; words may take several lines, numbers may not."""
    return f'<span class="words">{escape(cell)}</span>' if kind else escape(cell)


def _figure(figure: Figure, name: str, kind: str = "") -> str:
    caption = escape(CAPTIONS[name])
    svg = to_svg(figure, name, caption)
    return f'<figure id="plot-{name}" class="{kind}"><div class="scroll">{svg}</div><figcaption>{caption}</figcaption></figure>'


def _legend(comparison: Comparison) -> str:
    used = {box.state for arm in comparison.arms for box in boxes(arm)}
    items = (
        f'<li><i style="background:{colour_of(state)}"></i>{escape(name)}</li>'
        for state, name in STATES.items()
        if state in used
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _pipeline(arm: Arm) -> str:
    items = []
    for box in boxes(arm):
        arrow = '<span class="arrow" aria-hidden="true">→</span>' if box.follows else ""
        cost = "".join(f"<span>{escape(line)}</span>" for line in box.cost)
        items.append(
            f'<li>{arrow}<div class="box"><b style="background:{box.colour}">{_broken(box.title)}</b>'
            f"<strong>{escape(box.metric)}</strong>{cost}</div></li>"
        )
    return f'<h3>{escape(arm.label)}</h3><ul class="pipeline">{"".join(items)}</ul>'


def _broken(title: str) -> str:
    """What stands in brackets, such as the bits, on a line of its own."""
    return f"<em>{escape(title).replace(' (', '<br>(')}</em>"


def _about(arm: Arm) -> str:
    seeds = ", ".join(f"{run.seed}: {run.final.score:.4f}" for run in arm.runs)
    return f'<p class="note">{escape(arm.first.title)}. Final score by seed: {escape(seeds)}.</p>'


def _details(summary: str, content: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{content}</details>"
