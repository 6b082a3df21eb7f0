"""Rebuild tables and pictures of the studies whose RESULTS.md marks them, from their records (`make results`).

A study's RESULTS.md holds a table between `<!-- table: FILE WHAT -->` and `<!-- end -->`, made from FILE. For a
comparison.json, WHAT is headline (with the comparison's warnings), differences (with what each says), finals (the score of each
seed), sizes, cost, stages, or power (of the next study), and pictures and page are written beside it; for a CSV file the table is
all rows. A sentence that two blocks share stands in the first.
"""

import csv
import re
import sys
from pathlib import Path

from bitkd.compare.arms import Cost
from bitkd.compare.comparison import Comparison
from bitkd.compare.load import read_runs
from bitkd.compare.planning import planned
from bitkd.compare.runs import Run
from bitkd.data.tasks import HOLDOUT
from bitkd.errors import InputError
from bitkd.report.numbers import DASH, time_text
from bitkd.report.power import power_table
from bitkd.report.tables import (
    TextTable,
    cost_table,
    difference_table,
    escaped,
    headline,
    paragraph,
    questions,
    size_table,
    stages_table,
)
from bitkd.report.write import write_report

NOTHING = "no tables"
BLOCK = re.compile(r"(<!-- table: (\S+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def finals(comparison: Comparison) -> TextTable:
    """The final students, seed by seed."""
    metric = comparison.metric
    header = ["arm", "seeds", f"dev {metric}", f"hold-out {metric}", "training time"]
    rows = [
        [
            arm.label,
            "; ".join(map(str, arm.seeds)),
            *("; ".join(_score(run, name, metric) for run in arm.runs) for name in (comparison.first.dev_set, HOLDOUT)),
            "; ".join(
                time_text(Cost.of([stage for stage in run.stages if stage.in_chain]).seconds) for run in arm.runs
            ),
        ]
        for arm in comparison.arms
    ]
    return TextTable(header, rows)


def _score(run: Run, dev: str, metric: str) -> str:
    value = run.final.dev.get(dev, {}).get(metric)
    return DASH if value is None else f"{value:.4f}"


def power(comparison: Comparison) -> TextTable:
    """What `bitkd power` says of the record."""
    return power_table(planned(comparison.runs))


TABLES = {"headline": headline, "differences": difference_table, "sizes": size_table, "cost": cost_table,
          "stages": stages_table, "finals": finals, "power": power}  # fmt: skip


def rebuild(results: Path, check: bool = False) -> str:
    """Rebuild one RESULTS.md; returns the outcome in words. Raises InputError if a record is missing or damaged.

    check: write nothing, only say whether its tables are those of its records.
    """
    made: dict[Path, Comparison] = {}
    written: set[str] = set()

    def table(block: re.Match[str]) -> str:
        begin, name, what, end = block.groups()
        file = results.parent / name
        parts = [_table(file, what, made).markdown()]
        if what == "headline" and (lines := new(made[file].warnings)):
            parts.insert(0, f"**Note.** {escaped(' '.join(lines))}")
        if what == "differences" and (lines := new(questions(made[file]))):
            parts.append("\n".join(f"- {paragraph(line)}" for line in lines))
        return "\n\n".join([begin.rstrip(), *parts, end])

    def new(lines: list[str]) -> list[str]:
        """Those that the page does not have yet."""
        found = [line for line in lines if line not in written]
        written.update(found)
        return found

    before = results.read_text(encoding="utf-8")
    if not BLOCK.search(before):
        return NOTHING
    after = BLOCK.sub(table, before)
    if check:
        return "the same" if after == before else "another"
    for file, comparison in made.items():
        write_report(comparison.runs, file.parent)
    results.write_text(after, encoding="utf-8")
    return "the same" if after == before else "rebuilt, and it is another now"


def _table(file: Path, what: str | None, made: dict[Path, Comparison]) -> TextTable:
    if not file.is_file():
        raise InputError(f"{file} does not exist; a table is made from a comparison.json or a CSV file")
    if file.suffix == ".csv":
        with open(file, newline="", encoding="utf-8") as stream:
            lines = list(csv.reader(stream))
        if not lines:
            raise InputError(f"{file} is empty; record the study again")
        return TextTable(lines[0], lines[1:])
    if what not in TABLES:
        raise InputError(f"{file}: there is no table {what}; use one of {', '.join(TABLES)}")
    if file not in made:
        made[file] = Comparison.of(read_runs(file))
    return TABLES[what](made[file])


def main() -> int:
    for results in sorted(folder / "RESULTS.md" for folder in Path(__file__).parent.iterdir()):
        if not results.is_file():
            if any(results.parent.rglob("comparison.json")):
                print(f"{results.parent.name}: has records, but no RESULTS.md to hold their tables")
            continue
        try:
            outcome = rebuild(results)
            if outcome != NOTHING:
                print(f"{results.parent.name}: {outcome}")
        except InputError as error:
            print(f"{results}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
