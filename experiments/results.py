"""Rebuild tables and pictures of the studies whose RESULTS.md marks them, from their records (`make results`).

A study's RESULTS.md holds a table between `<!-- table: FILE WHAT -->` and `<!-- end -->`, made from FILE. For a
comparison.json, WHAT is headline (with the comparison's warnings), differences (with what each says), finals (the score of each
seed), sizes, exported (measured sizes), cost, stages, or power (of the next study), and pictures and page are written beside it;
for a CSV file the table is all rows. A sentence that two blocks share stands in the first.

FILE may be a pattern, such as `*/comparison.json`: then there is a table for each file that it matches, and a sentence while it
matches none. Of a pattern, WHAT may also be means: one table of all tasks, with the mean over them.
`<!-- picture: NAME.png PATTERN -->` draws the final students of all these records into NAME.png, see `experiments/students.py`.
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
from bitkd.report.style import to_png
from bitkd.report.tables import (
    TextTable,
    cost_table,
    difference_table,
    escaped,
    exported_table,
    headline,
    paragraph,
    questions,
    size_table,
    stages_table,
)
from bitkd.report.write import write_report
from experiments.quantizers import subln
from experiments.students import draw_students, mean_table

NOTHING = "no tables"
NO_RECORD = "*No cell is recorded yet.*"
BLOCK = re.compile(r"(<!-- table: (\S+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = re.compile(r"(<!-- picture: (\S+\.png) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


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


TABLES = {"headline": headline, "differences": difference_table, "sizes": size_table, "exported": exported_table,
          "cost": cost_table, "stages": stages_table, "finals": finals, "power": power}  # fmt: skip
MEANS = "means"


def rebuild(results: Path, check: bool = False) -> str:
    """Rebuild one RESULTS.md; returns the outcome in words. Raises InputError if a record is missing or damaged.

    check: write nothing, only say whether its tables are those of its records.
    """
    page = _Page(results.parent)
    before = results.read_text(encoding="utf-8")
    if not BLOCK.search(before):
        return NOTHING
    after = PICTURE.sub(page.picture, BLOCK.sub(page.block, before))
    if check:
        return "the same" if after == before else "another"
    for file, comparison in page.made.items():
        write_report(comparison.runs, file.parent)
    for name, content in page.pictures.items():
        (results.parent / name).write_bytes(content)
    results.write_text(after, encoding="utf-8")
    return "the same" if after == before else "rebuilt, and it is another now"


class _Page:
    """What the blocks of one RESULTS.md hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[Path, Comparison] = {}
        self.pictures: dict[str, bytes] = {}
        self._written: set[str] = set()

    def block(self, block: re.Match[str]) -> str:
        """A block of tables with its content."""
        begin, name, what, end = block.groups()
        if "*" not in name:
            parts = self._of_file(self.folder / name, what)
        elif what == MEANS:
            found = self._matched(name)
            parts = [mean_table(found).markdown()] if found else [NO_RECORD]
        else:
            files = sorted(self.folder.glob(name))
            parts = [part for file in files for part in (self._label(file, name), *self._of_file(file, what))]
        return "\n\n".join([begin.rstrip(), *(parts or [NO_RECORD]), end])

    def picture(self, block: re.Match[str]) -> str:
        """A block of a picture with its content."""
        begin, name, pattern, end = block.groups()
        found = self._matched(pattern)
        if found:
            self.pictures[name] = to_png(draw_students(found))
        part = f"![score against the bytes of the exported student]({name})" if found else NO_RECORD
        return "\n\n".join([begin.rstrip(), part, end])

    def _label(self, file: Path, pattern: str) -> str:
        """What of a file's path the pattern leaves open, such as "sst2:"."""
        places = zip(Path(pattern).parts, file.relative_to(self.folder).parts)
        return f"{', '.join(name for place, name in places if '*' in place)}:"

    def _matched(self, pattern: str) -> list[Comparison]:
        return [self._comparison(file) for file in sorted(self.folder.glob(pattern))]

    def _comparison(self, file: Path) -> Comparison:
        if file not in self.made:
            self.made[file] = Comparison.of(read_runs(file))
        return self.made[file]

    def _of_file(self, file: Path, what: str | None) -> list[str]:
        parts = [self._table(file, what).markdown()]
        if what == "headline" and (lines := self._new(self.made[file].warnings)):
            parts.insert(0, f"**Note.** {escaped(' '.join(lines))}")
        if what == "differences" and (lines := self._new(questions(self.made[file]))):
            parts.append("\n".join(f"- {paragraph(line)}" for line in lines))
        return parts

    def _new(self, lines: list[str]) -> list[str]:
        """Those that the page does not have yet."""
        found = [line for line in lines if line not in self._written]
        self._written.update(found)
        return found

    def _table(self, file: Path, what: str | None) -> TextTable:
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
        return TABLES[what](self._comparison(file))


def main() -> int:
    subln.register()
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
