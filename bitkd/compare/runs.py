"""A finished run as plain data, written to comparison.json and read again."""

import json
import math
import re
import reprlib
from dataclasses import asdict, dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from bitkd.errors import InputError

FORMAT = 1
HOLDOUT = "holdout"
"""Rows of the training set that choose checkpoints (bitkd.data.task.HOLDOUT, which is slow to import); not the first dev set."""


@dataclass(frozen=True)
class Predictions:
    """What a stage says about each row of a dev set, in the order of the rows: label numbers, or a regression's values."""

    labels: list[float]
    predicted: list[float]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    in_chain: whether it is part of the pipeline's own chain and its cost, see `bitkd.report.reading`.
    score: the primary metric on the first dev set, larger is better; null where there is no head (General KD, rows).
    dev: each dev set's metrics and loss.  paper_mib, packed_mib: sizes by the two conventions (bitkd.models.size).
    disk_mib: the file as it lies there.  word_tables: 2 after a split with split embeddings.
    student_flops, teacher_flops: of training, over all processes.  seconds: from the first step to the last by the clock of
    the first process, validations included, over all resumptions.  device, world_size, trainer_precision: what it was
    trained on, processes, arithmetic (bf16-mixed).  curve: (step, score) at each validation.  predictions: by dev set; of the
    teacher and the final stage, else null.
    """

    name: str
    title: str
    kind: str
    key: str
    upstream: dict[str, str]
    in_chain: bool
    score: float | None
    dev: dict[str, dict[str, float | None]]
    precision: str
    parameters: int
    encoder_bits: int
    word_tables: int
    paper_mib: float
    packed_mib: float
    disk_mib: float
    steps: int
    examples: int
    student_flops: int
    teacher_flops: int
    seconds: float
    device: str
    world_size: int
    trainer_precision: str
    curve: list[tuple[int, float]]
    predictions: dict[str, Predictions] | None = None

    @property
    def is_model(self) -> bool:
        return self.kind != "augment"

    @property
    def machine(self) -> str:
        """What it was trained on, as far as seconds depend on it."""
        processes = f"{self.world_size} process{'' if self.world_size == 1 else 'es'}"
        return ", ".join(part for part in (self.device, processes, self.trainer_precision) if part)


@dataclass(frozen=True)
class Run:
    """A finished run.  metric: the task's primary metric.  labels: names in order; null for a regression.
    hyperparameters: how many the pipeline and the run set.  budget: unit, total and shares, or null.
    settings: dotted name -> value of all that decides numbers but the seed; runs with the same ones are one arm.
    stages: in the order of the graph; the last one is the final student.
    """

    name: str
    pipeline: str
    title: str
    task: str
    metric: str
    metrics: list[str]
    labels: list[str] | None
    seed: int
    hyperparameters: int
    budget: dict[str, Any] | None
    settings: dict[str, Any]
    versions: dict[str, str]
    stages: list[Stage]

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    @property
    def teacher(self) -> Stage | None:
        """The fine-tuned teacher; null where the pipeline has none."""
        return next((stage for stage in self.stages if stage.kind == "finetune" and not stage.in_chain), None)

    @property
    def total(self) -> tuple[str, float] | None:
        """Unit and total of the budget, which pipelines have in common while their shares differ; null where there is none."""
        return (self.budget["unit"], self.budget["total"]) if self.budget else None

    @property
    def num_labels(self) -> int | None:
        """Null for a regression."""
        return None if self.labels is None else len(self.labels)

    @property
    def said(self) -> Predictions:
        """The final student's predictions on the first dev set; InputError where there are none."""
        found = (self.final.predictions or {}).get(self.dev_set)
        if found is None:
            raise InputError(
                f"{self.name}: its final stage {self.final.name} keeps no predictions of {self.dev_set}; run it again"
            )
        return found

    @property
    def dev_set(self) -> str:
        """Name of the first dev set, whose primary metric is the score."""
        return next(name for name in self.final.dev if name != HOLDOUT)


def to_json(runs: list[Run]) -> str:
    """The record of a comparison: everything that its report is made from. Lists of numbers stand on one line."""
    text = json.dumps({"format": FORMAT, "runs": [asdict(run) for run in runs]}, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s*(-?\d[-+.\deE,\s]*?)\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def from_json(text: str, where: str) -> list[Run]:
    """The runs of a comparison.json; InputError where it is damaged or of another format. where: its name in messages."""
    advice = "make it again with `bitkd compare RUN… --out DIR`"
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or "format" not in content:
            raise InputError(f"{where} is no record of a comparison, or one of an older version; {advice}")
        if content["format"] != FORMAT:
            raise InputError(f"{where} has format {content['format']}, this version reads {FORMAT}; {advice}")
        runs = [_run_of(run) for run in content["runs"]]
        for run in runs:
            check_numbers(run)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is damaged ({type(error).__name__}: {error}); {advice}") from error
    if not runs:
        raise InputError(f"{where} is damaged (it holds no runs); {advice}")
    return runs


def check_numbers(run: Run) -> None:
    """ValueError where a run says nothing, or something that is no number or label of its task."""
    parts: list[Run | Stage] = [run, *run.stages]
    for part in parts:
        for name, kind in get_type_hints(type(part)).items():
            if not _is_a(getattr(part, name), kind):
                where = "" if part is run else f"stage {part.name} of "
                raise ValueError(f"the {name} of {where}{run.name} is {reprlib.repr(getattr(part, name))}")
    if not run.stages or not set(run.final.dev) - {HOLDOUT}:
        raise ValueError(f"{run.name} without stages or dev sets")
    if run.budget is not None and not (set(run.budget) >= {"unit", "total"} and _is_a(run.budget["total"], float)):
        raise ValueError(f"the budget of {run.name} is {run.budget}")
    if run.final.score is None or not math.isfinite(run.final.score):
        raise ValueError(f"the final score of {run.name} is {run.final.score}")
    for stage in run.stages:
        for name, said in (stage.predictions or {}).items():
            values = [*said.labels, *said.predicted]
            wrong = [value for value in values if not math.isfinite(value)]
            if run.num_labels is not None:
                wrong = [value for value in values if value not in range(run.num_labels)]
            if wrong or not values or len(said.labels) != len(said.predicted):
                raise ValueError(f"predictions of {name} in stage {stage.name} of {run.name}")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as a record's fields are annotated: a whole number is a float too, true is no number."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_is_a(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is_a(item, parts[0]) for item in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_a, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(k, parts[0]) and _is_a(v, parts[1]) for k, v in value.items())
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)


def _run_of(content: dict[str, Any]) -> Run:
    stages = []
    for stage in content["stages"]:
        given = stage["predictions"]
        predictions = None if given is None else {name: Predictions(**value) for name, value in given.items()}
        curve = [(step, score) for step, score in stage["curve"]]
        stages.append(Stage(**(stage | {"predictions": predictions, "curve": curve})))
    return Run(**(content | {"stages": stages}))
