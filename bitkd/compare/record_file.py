"""comparison.json: finished runs as a file, written and read again with its checks."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bitkd.compare.forms import ANSWERS, ENTITIES, Form
from bitkd.compare.question import question_problem
from bitkd.compare.runs import Predictions, Run, recorded_kind
from bitkd.data.tasks import HOLDOUT
from bitkd.errors import InputError
from bitkd.store.records import check_values

RECORD_FILE = "comparison.json"
FORMAT = 1


@dataclass(frozen=True)
class ComparisonRecord:
    """The content of a comparison.json."""

    format: int
    runs: list[Run]


_NEWER = (
    *("importance_flops", "validation_seconds", "saving_seconds", "padded_tokens", "tokens"),
    *("selected", "selected_step", "selection_rows"),
)
"""Fields of a stage that older records lack; written only where they have a value."""


def to_json(runs: list[Run]) -> str:
    """The text of a comparison.json: everything that its report is made from. A list of numbers takes one line."""
    data = asdict(ComparisonRecord(FORMAT, runs))
    for run, content in zip(runs, data["runs"]):
        content["budget"] = run.budget.as_data() if run.budget else None
        for name in ("exported", "study", "finished"):
            if content[name] is None:
                del content[name]
        content["stages"] = [
            {name: value for name, value in stage.items() if value is not None or name not in _NEWER}
            for stage in content["stages"]
        ]
        for found in (found for stage in content["stages"] for found in (stage["predictions"] or {}).values()):
            if found["matched"] is None:
                del found["matched"]
    text = json.dumps(data, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s*(-?\d[-+.\deE,\s]*?)\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def from_json(text: str, where: str) -> list[Run]:
    """The runs of a comparison.json. where: its name in messages.

    Raises InputError if it is damaged or of another format.
    """
    advice = "make it again with `bitkd compare RUN… --out DIR`"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is damaged ({error}); {advice}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{where} is no record of a comparison, or one of an older version; {advice}")
    if content["format"] != FORMAT:
        raise InputError(f"{where} has format {content['format']}, this version reads {FORMAT}; {advice}")
    try:
        runs = _adapter().validate_json(text, strict=True).runs
        for run in runs:
            check_run(run)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = _place(content, first["loc"])
        raise InputError(f"{where} is damaged ({place}: {first['msg']}); {advice}") from error
    except ValueError as error:
        raise InputError(f"{where} is damaged ({error}); {advice}") from error
    if not runs:
        raise InputError(f"{where} is damaged (it holds no runs); {advice}")
    return runs


@cache
def _adapter() -> TypeAdapter[ComparisonRecord]:
    return TypeAdapter(ComparisonRecord)


def _place(content: Any, path: Sequence[int | str]) -> str:
    """A path into plain data, for messages. An entry of a list is shown by its name, if it has one."""
    parts = []
    for part in path:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):  # the path ends in a missing key, or in a type
            content = None
        named = isinstance(part, int) and isinstance(content, dict) and "name" in content
        parts.append(str(content["name"] if named else part))
    return ".".join(parts)


def check_run(run: Run) -> None:
    """Check what the types cannot express.

    Raises ValueError if a run has no results, or values that its task cannot have; InputError for an unknown kind.
    """
    if not run.stages or not set(run.final.dev) - {HOLDOUT}:
        raise ValueError(f"{run.name} without stages or dev sets")
    if run.budget is not None and not 0 < run.budget.total < math.inf:
        raise ValueError(f"the budget of {run.name} is {run.budget.total}")
    if run.final.score is None or not math.isfinite(run.final.score):
        raise ValueError(f"the final score of {run.name} is {run.final.score}")
    if run.study is not None and (problem := question_problem(run.study)):
        raise ValueError(f"the study of {run.name}: {problem}")
    for moment in (run.finished, run.study.named if run.study else None):
        if moment is not None and datetime.fromisoformat(moment).tzinfo is None:
            raise ValueError(f"the time {moment} of {run.name} has no time zone")
    plain = {name: asdict(found) for name in ("budget", "exported", "study") if (found := vars(run)[name])}
    check_values({**vars(run), "stages": None, **plain}, run.name)
    for stage in run.stages:
        recorded_kind(stage.kind, f"stage {stage.name} of {run.name}")
        check_values({**vars(stage), "predictions": list(stage.predictions or {})}, f"stage {stage.name} of {run.name}")
        for name, found in (stage.predictions or {}).items():
            if not _are_valid(found, run.form, run.num_labels):
                raise ValueError(f"predictions of {name} in stage {stage.name} of {run.name}")


def _are_valid(found: Predictions, form: Form, num_labels: int | None) -> bool:
    """Whether predictions are of one or more rows, and have values that a task of this form can have."""
    matched = found.labels if found.matched is None else found.matched
    if not len(found.labels) == len(found.predicted) == len(matched) > 0:
        return False
    if (found.matched is not None) != (form is ENTITIES):
        return False
    values = [*found.labels, *found.predicted, *matched]
    if num_labels is not None:
        return all(value in range(num_labels) for value in values)
    if not all(map(math.isfinite, values)):
        return False
    if form is ANSWERS:
        return set(found.labels) <= {0, 1} and min(found.predicted) >= 0 and max(found.predicted) <= 1
    if form is ENTITIES:
        rows = zip(matched, found.predicted, found.labels)
        return all(value == int(value) for value in values) and all(0 <= right <= min(both) for right, *both in rows)
    return True
