"""The verdict of a study in words, and its table."""

from bitkd.compare.inference import POWER
from bitkd.compare.study import POINT, Finding, Study, Word
from bitkd.names import joined
from bitkd.report.numbers import p_text
from bitkd.report.tables import TextTable

HOW_TO = (
    "No verdict: the records of these runs name no question. To name one, start all runs of a study with "
    "study.primary=[FIRST,SECOND] study.tasks=[…] study.seeds=[…] (and study.margin=). All differences here are exploratory."
)

TASK_NOTE = (
    "Better and worse follow from p by Holm; the other words from the interval, which is wider, so that it may hold 0 beside "
    "better or worse."
)
"""Below the table of tasks."""


def sentences(study: Study | None) -> list[str]:
    """The report's first sentences: the rule's outcome, or why there is none; what must be read with it; where its variance
    comes from; when and how the question was named."""
    if study is None:
        return [HOW_TO]
    if study.mean is None:
        return [f"No verdict: {study.problem}."]
    outcome = f"{_outcome(study, study.mean)} {_numbers(study, study.mean)}"
    return [outcome, *study.caveats, *_precision(study, study.mean), _named(study)]


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
        "undecided": f"Undecided: {where}, {first} may be no worse than {second}, or worse by {margin} or more.",
    }
    return texts[found.word]


def _numbers(study: Study, found: Finding) -> str:
    mean = "The mean difference over the tasks" if len(found.tasks) > 1 else "The difference"
    shared = f", with {joined(study.in_common)}" if study.in_common else ""
    return (
        f"{mean} is {_signed(found.estimate.value)} points; {100 * (1 - study.record.alpha):g} % interval for other rows and "
        f"other seeds{shared}: {_signed(found.low)} to {_signed(found.high)}."
    )


def _precision(study: Study, found: Finding) -> list[str]:
    shares, detectable = found.estimate.shares, found.estimate.detectable(1 - study.record.alpha)
    if shares is None or detectable is None:
        return []
    rows, seeds, both = (f"{100 * share:.0f} %" for share in (shares.rows, shares.seeds, shares.both))
    return [
        f"The variance of this difference comes from the choice of dev rows ({rows}), the seeds ({seeds}) and rows × seeds "
        f"({both}). A study with this variance finds a true difference of {detectable / POINT:.2g} points with a chance of "
        f"{100 * POWER:.0f} %."
    ]


def _named(study: Study) -> str:
    record = study.record
    days = list(dict.fromkeys(moment[:10] for moment in (record.named, study.last_named)))
    when = f"on {days[0]}" if len(days) == 1 else f"between {days[0]} and {days[1]}"
    return (
        f"Named {when}, before the runs were finished: {record.primary[0]} − {record.primary[1]} on {joined(record.tasks)}, "
        f"{len(record.seeds)} seeds, a margin of {points_text(record.margin)}, alpha {record.alpha:g}. All other differences are "
        "exploratory."
    )


def task_table(study: Study | None) -> TextTable:
    """The primary difference of each task of several; no rows for one task, or without a verdict."""
    if study is None or len(study.by_task) < 2:
        return TextTable(["task"], [])
    level = 100 * (1 - study.record.alpha / len(study.by_task))
    header = ["task", "points", f"{level:.4g} % interval", "p by Holm", "verdict"]
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
