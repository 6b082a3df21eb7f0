"""The verdict of a study in words, and its table."""

from bitkd.compare.study import POINT, Finding, Study, Word
from bitkd.report.numbers import p_text
from bitkd.report.tables import TextTable

HOW_TO = (
    "No verdict: these runs named no question before they began. To name one, start all runs of a study with "
    "study.primary=[FIRST,SECOND] study.tasks=[…] study.seeds=[…] (and study.margin=). All differences here are exploratory."
)


def sentences(study: Study | None) -> list[str]:
    """The report's first sentences: the rule's outcome, or why there is none; and when and how the question was named."""
    if study is None:
        return [HOW_TO]
    record = study.record
    named = (
        f"Named on {record.named[:10]}, before the runs were finished: {record.primary[0]} − {record.primary[1]} on "
        f"{joined(record.tasks)}, {len(record.seeds)} seeds, a margin of {points_text(record.margin)}, alpha {record.alpha:g}. "
        "All other differences are exploratory."
    )
    if study.mean is None:
        return [f"No verdict: {study.problem}."]
    return [f"{_outcome(study, study.mean)} {_numbers(study, study.mean)}", named]


def _outcome(study: Study, found: Finding) -> str:
    (first, second), margin = study.record.primary, points_text(study.record.margin)
    where = f"on {joined(found.tasks)}"
    small = max(abs(found.low), abs(found.high)) < study.record.margin * POINT
    less = f", by less than {margin}" if small else ""
    texts: dict[Word, str] = {
        "better": f"{first} is better than {second} {where}{less}.",
        "worse": f"{first} is worse than {second} {where}{less}.",
        "equal": f"{first} and {second} are equal to within {margin} {where}.",
        "not worse": f"{first} is not worse than {second} by {margin} {where}.",
        "undecided": f"Undecided whether {first} is worse than {second} by more than {margin} {where}.",
    }
    return texts[found.word]


def _numbers(study: Study, found: Finding) -> str:
    mean = "The mean difference over the tasks" if len(found.tasks) > 1 else "The difference"
    return (
        f"{mean} is {_signed(found.estimate.value)} points; {100 * (1 - study.record.alpha):g} % interval for other rows and "
        f"other seeds: {_signed(found.low)} to {_signed(found.high)}."
    )


def task_table(study: Study | None) -> TextTable:
    """The primary difference of each task of several; no rows for one task, or without a verdict."""
    if study is None or len(study.by_task) < 2:
        return TextTable(["task"], [])
    level = 100 * (1 - study.record.alpha / len(study.by_task))
    header = ["task", "points", f"{level:.4g} % interval", "p by Holm", f"to within {points_text(study.record.margin)}"]
    rows = [
        [
            found.tasks[0],
            _signed(found.estimate.value),
            f"{_signed(found.low)} to {_signed(found.high)}",
            p_text(found.p),
            found.word,
        ]
        for found in study.by_task
    ]
    return TextTable(header, rows)


def points_text(margin: float) -> str:
    """1 point or 2 points."""
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def _signed(value: float) -> str:
    return f"{round(value / POINT, 2) + 0.0:+.2f}".replace("-", "−")


def joined(names: list[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
