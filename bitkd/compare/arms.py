"""Arms: runs of one pipeline with the same settings and different seeds; their mean scores and costs."""

import json
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from bitkd.compare.checks import check_predictions, check_same_stages, check_tasks, described
from bitkd.compare.exported import Exported
from bitkd.compare.runs import Run, Stage
from bitkd.compare.scores import majority_score
from bitkd.errors import InputError

BUDGETS = ("budget.steps", "budget.examples", "budget.flops", "budget.seconds")
"""Settings that are recorded in Run.budget."""

MAX_SETTINGS_IN_LABEL = 4

RECORDED_WHERE_SET = (
    (re.compile(r"stages\.[^.]+\.loss\.extra\.[^.]+"), 0.0),
    (re.compile(r"student\.hidden_act"), None),
)
"""Patterns of settings that only the records of runs with them name -> what they are elsewhere."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds."""

    mean: float | None
    """None if no seed has a value."""

    deviation: float | None
    """Standard deviation (n - 1); None for one seed."""

    count: int
    """Seeds that have a value."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Mean":
        """The mean of the values that are not None."""
        known = [value for value in values if value is not None]
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known) if known else None, deviation, len(known))


@dataclass(frozen=True)
class Cost:
    """Training cost of some stages of one run, or its mean over an arm's runs."""

    steps: float
    examples: float
    student_flops: float
    teacher_flops: float
    seconds: float
    """Validations included."""

    importance_flops: float | None = None
    """None here and below: the record of a stage does not say."""

    training_seconds: float | None = None
    """`seconds` without validations and the saving of checkpoints."""

    padded_tokens: float | None = None
    tokens: float | None = None

    @property
    def flops(self) -> float:
        """Of student and teacher, and of importance where it was counted."""
        return self.student_flops + self.teacher_flops + (self.importance_flops or 0)

    @property
    def seconds_per_step(self) -> float | None:
        """Of training alone: what `flops` are the cost of. None without steps."""
        return self.training_seconds / self.steps if self.steps and self.training_seconds is not None else None

    @property
    def seconds_per_tflop(self) -> float | None:
        """Of training alone; None without FLOPs."""
        return self.training_seconds / (self.flops / 1e12) if self.flops and self.training_seconds is not None else None

    @classmethod
    def of(cls, stages: Iterable[Stage]) -> "Cost":
        """The sum over stages."""
        chosen = [_known(stage) for stage in stages]
        return cls(*(_total([getattr(stage, field.name) for stage in chosen], sum) for field in fields(cls)))

    @classmethod
    def mean(cls, costs: list["Cost"]) -> "Cost":
        """The mean over runs."""
        return cls(*(_total([getattr(cost, field.name) for cost in costs], statistics.fmean) for field in fields(cls)))


def _known(stage: Stage) -> Stage:
    """The stage, with nothing unknown of what a stage without steps or of rows cannot have spent."""
    tokens = 0 if not stage.steps else None
    return replace(
        stage,
        importance_flops=0 if stage.importance_flops is None and not stage.is_model else stage.importance_flops,
        padded_tokens=tokens if stage.padded_tokens is None else stage.padded_tokens,
        tokens=tokens if stage.tokens is None else stage.tokens,
    )


def _total(values: list[Any], add: Callable[[list[Any]], float]) -> Any:
    """None if one of the values is."""
    return None if any(value is None for value in values) else add(values)


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seeds."""

    label: str
    """The pipeline's name, and the settings in which its arms differ."""

    runs: list[Run]
    """By seed."""

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def pipeline(self) -> str:
        return self.first.pipeline

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def final(self) -> Mean:
        """The final student's score."""
        return Mean.of(run.final.score for run in self.runs)

    @property
    def teacher(self) -> Mean:
        """The teacher's score; a teacher that seeds share counts once."""
        return mean_of_artifacts([run.teacher for run in self.runs if run.teacher], lambda stage: stage.score)

    @property
    def ratio(self) -> Mean:
        """student / teacher, without the seeds whose teacher has no positive score."""
        return Mean.of(
            run.final.score / run.teacher.score
            if run.teacher and run.final.score is not None and run.teacher.score is not None and run.teacher.score > 0
            else None
            for run in self.runs
        )

    def cost(self, chosen: Callable[[Stage], bool]) -> Cost:
        """The cost of the chosen stages, averaged over the runs."""
        return Cost.mean([Cost.of(filter(chosen, run.stages)) for run in self.runs])

    @property
    def chain(self) -> Cost:
        """The cost of the pipeline's own chain."""
        return self.cost(lambda stage: stage.in_chain)

    @property
    def without_general(self) -> Cost:
        """The cost of the chain without General KD."""
        return self.cost(lambda stage: stage.in_chain and not stage.on_corpus)

    @property
    def shared(self) -> Cost:
        """The cost of what pipelines share: teacher and augmented rows."""
        return self.cost(lambda stage: not stage.in_chain)

    @property
    def has_general(self) -> bool:
        """Whether General KD is among its stages."""
        return any(stage.on_corpus for stage in self.first.stages)

    @property
    def num_stages(self) -> int:
        """Stages of the chain."""
        return sum(stage.in_chain for stage in self.first.stages)

    @property
    def exported(self) -> Exported | None:
        """The final student of the first run that was measured, as `bitkd export` writes it."""
        return next((run.exported for run in self.runs if run.exported is not None), None)

    @property
    def devices(self) -> list[str]:
        """The machines that the chain was trained on, see `Stage.machine`."""
        return sorted({stage.machine for run in self.runs for stage in run.stages if stage.in_chain and stage.steps})

    def stages(self) -> list[tuple[Stage, Mean]]:
        """Each stage of the first run, with its score over the seeds."""
        columns = zip(*(run.stages for run in self.runs))
        return [(same_stage[0], mean_of_artifacts(same_stage, lambda stage: stage.score)) for same_stage in columns]


def mean_of_artifacts(stages: Iterable[Stage], value: Callable[[Stage], float | None]) -> Mean:
    """The mean over stages of several seeds; an artifact that seeds share counts once."""
    return Mean.of({stage.key: value(stage) for stage in stages}.values())


def majority(run: Run) -> float:
    """The primary metric, on the first dev set, of a model that looks at no text, see `majority_prediction`."""
    labels = np.asarray(run.final_predictions.labels, dtype=np.float64)
    return majority_score(run.metric, run.num_labels, labels)


def runs_by_task(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Task -> its runs, both in the order of the runs."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.task, []).append(run)
    return found


def make_arms(runs: list[Run]) -> list[Arm]:
    """The arms in the order of their first runs; a run that is given twice counts once.

    Raises InputError for runs of different tasks or dev sets, and for runs of one arm that differ in more than their seeds.
    """
    check_tasks(runs)
    for run in runs:
        check_predictions(run)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        budget = asdict(run.budget) if run.budget else None
        group = groups.setdefault(json.dumps([run.pipeline, budget, run.settings], sort_keys=True), [])
        same_seed = next((other for other in group if other.seed == run.seed), None)
        if same_seed is None:
            group.append(run)
        elif [s.key for s in same_seed.stages] != [s.key for s in run.stages]:
            raise InputError(
                f"{same_seed.name} and {run.name} are both {described(run)} with seed {run.seed}, but not the same run; leave "
                "one out, or give one of them another pipeline.name="
            )
    for group in groups.values():
        group.sort(key=lambda run: run.seed)
        check_same_stages(group)
    labels = _labels([group[0] for group in groups.values()])
    return [Arm(label, group) for label, group in zip(labels, groups.values())]


def _labels(firsts: list[Run]) -> list[str]:
    """A label for each arm: the pipeline's name, and the settings in which it differs from other arms of that pipeline."""
    labels: list[str] = []
    for run in firsts:
        parts = _distinction(run, [other for other in firsts if other.pipeline == run.pipeline])
        label = f"{run.pipeline} ({', '.join(parts)})" if parts else run.pipeline
        while label in labels:
            label += "'"
        labels.append(label)
    return labels


def _distinction(run: Run, rivals: list[Run]) -> list[str]:
    """The budget and settings in which a run differs from its rivals.  rivals: all runs of its pipeline, itself included."""
    parts = []
    if any(other.budget_total != run.budget_total for other in rivals):
        parts.append(run.budget_text or "no budget")
    named = dict.fromkeys(name for other in (run, *rivals) for name in other.settings if name not in BUDGETS)
    own, *others = (with_unset(other.settings, named) for other in (run, *rivals))
    names = [name for name in named if name in own]
    common = [name for name in names if all(name in other for other in others)]
    differing = [name for name in common if any(other[name] != own[name] for other in others)]
    if not parts and not differing:  # one of them has stages that another has not
        differing = [name for name in names if name not in common]
    elif len(differing) > MAX_SETTINGS_IN_LABEL:  # its own values before those that others have too
        differing.sort(key=lambda name: sum(other[name] == own[name] for other in others))
    shown = [f"{name}={value_text(own[name])}" for name in differing[:MAX_SETTINGS_IN_LABEL]]
    return parts + shown + (["…"] if len(differing) > MAX_SETTINGS_IN_LABEL else [])


def with_unset(settings: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Settings of a run, and those among `names` that its record leaves out because they are not set."""
    unset = {name: value for name in names for pattern, value in RECORDED_WHERE_SET if pattern.fullmatch(name)}
    return unset | settings


def value_text(value: Any) -> str:
    """A setting's value for people."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
