"""Runs of one pipeline and of the same settings under several seeds are one arm: its means, its shares, its cost."""

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bitkd.compare.checks import budget_text, check_alike, check_predictions, check_tasks, is_constant, named
from bitkd.compare.runs import Run, Stage
from bitkd.compare.scores import majority_score
from bitkd.errors import InputError

ROUNDING = 1e-6
BUDGETS = ("budget.steps", "budget.examples", "budget.flops")
"""Settings that a run's budget stands for."""

MOST_NAMED = 4
"""Settings in an arm's name."""


@dataclass(frozen=True)
class Mean:
    """Mean over seeds.  deviation: with n - 1; null for one seed.  count: seeds that have a value; mean is null for 0."""

    mean: float | None
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Mean":
        known = [value for value in values if value is not None]
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known) if known else None, deviation, len(known))


@dataclass(frozen=True)
class Cost:
    """Training cost of some stages of one run, or its mean over an arm's runs.  seconds: validations on the way included."""

    steps: float
    examples: float
    student_flops: float
    teacher_flops: float
    seconds: float

    @property
    def flops(self) -> float:
        return self.student_flops + self.teacher_flops

    @classmethod
    def of(cls, stages: Iterable[Stage]) -> "Cost":
        """The sum over stages."""
        chosen = list(stages)
        return cls(*(sum(getattr(stage, field.name) for stage in chosen) for field in fields(cls)))

    @classmethod
    def mean(cls, costs: list["Cost"]) -> "Cost":
        return cls(*(statistics.fmean(getattr(cost, field.name) for cost in costs) for field in fields(cls)))


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone, by seed.  label: the pipeline's name, and the settings in which its arms differ."""

    label: str
    runs: list[Run]

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
        return Mean.of(run.final.score for run in self.runs)

    @property
    def teacher(self) -> Mean:
        return mean_of_artifacts([run.teacher for run in self.runs if run.teacher], lambda stage: stage.score)

    @property
    def kept(self) -> Mean:
        return Mean.of(share_kept(run) for run in self.runs)

    @property
    def ratio(self) -> Mean:
        """student / teacher; null where the teacher's score is not positive."""
        return Mean.of(
            run.final.score / run.teacher.score
            if run.teacher and run.final.score is not None and run.teacher.score is not None and run.teacher.score > 0
            else None
            for run in self.runs
        )

    def cost(self, chosen: Callable[[Stage], bool]) -> Cost:
        """Mean over the runs of the cost of the stages that are chosen."""
        return Cost.mean([Cost.of(filter(chosen, run.stages)) for run in self.runs])

    @property
    def chain(self) -> Cost:
        return self.cost(lambda stage: stage.in_chain)

    @property
    def without_general(self) -> Cost:
        return self.cost(lambda stage: stage.in_chain and stage.kind != "general")

    @property
    def shared(self) -> Cost:
        return self.cost(lambda stage: not stage.in_chain)

    @property
    def has_general(self) -> bool:
        return any(stage.kind == "general" for stage in self.first.stages)

    @property
    def num_stages(self) -> int:
        return sum(stage.in_chain for stage in self.first.stages)

    @property
    def devices(self) -> list[str]:
        """What the chain was trained on."""
        return sorted({stage.machine for run in self.runs for stage in run.stages if stage.in_chain and stage.steps})

    def stages(self) -> list[tuple[Stage, Mean]]:
        """Each stage of the first run, with its score over the seeds."""
        columns = zip(*(run.stages for run in self.runs))
        return [(twins[0], mean_of_artifacts(twins, lambda stage: stage.score)) for twins in columns]


def mean_of_artifacts(stages: Iterable[Stage], value: Callable[[Stage], float | None]) -> Mean:
    """The mean over stages of several seeds; an artifact that seeds share counts once."""
    return Mean.of({stage.key: value(stage) for stage in stages}.values())


def majority(run: Run) -> float:
    """The primary metric of the constant prediction of the most frequent label of the first dev set."""
    labels = np.asarray(run.said.labels, dtype=np.float64)
    return majority_score(run.metric, run.num_labels, labels)


def share_kept(run: Run) -> float | None:
    """(student - majority) / (teacher - majority); null where the teacher is not better than the majority."""
    teacher, student = run.teacher.score if run.teacher else None, run.final.score
    floor = majority(run)
    # Recorded scores are rounded to 32 bits; a teacher at the majority must not seem to be above it.
    if teacher is None or student is None or teacher - floor < ROUNDING:
        return None
    return (student - floor) / (teacher - floor)


def make_arms(runs: list[Run]) -> list[Arm]:
    """The arms in the order in which they come; a run that is given twice counts once.

    InputError for runs of different tasks or dev sets, and for runs of one arm that differ in more than their seeds.
    """
    check_tasks(runs)
    for run in runs:
        check_predictions(run)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps([run.pipeline, run.budget, run.settings], sort_keys=True), [])
        twin = next((other for other in group if other.seed == run.seed), None)
        if twin is None:
            group.append(run)
        elif [s.key for s in twin.stages] != [s.key for s in run.stages]:
            raise InputError(
                f"{twin.name} and {run.name} are both {named(run)} with seed {run.seed}, but not the same run; leave one "
                "out, or run one of them under a name of its own (pipeline.name=)"
            )
    for group in groups.values():
        group.sort(key=lambda run: run.seed)
        check_alike(group)
    labels = _labels([group[0] for group in groups.values()])
    return [Arm(label, group) for label, group in zip(labels, groups.values())]


def warnings_of(arms: list[Arm]) -> list[str]:
    """What a reader must know before any number: other budgets, teachers that differ for one seed, other devices."""
    found = []
    totals = {arm.label: budget_text(arm.first.budget) or "none" for arm in arms}
    if len({arm.first.total for arm in arms}) > 1:
        shown = "; ".join(f"{label}: {total}" for label, total in totals.items())
        found.append(f"Budgets differ ({shown}): a difference between such arms is that of their budgets as well.")
    teachers: dict[int, dict[str, list[str]]] = {}
    for arm in arms:
        for run in arm.runs:
            key = run.teacher.key if run.teacher else "no teacher"
            teachers.setdefault(run.seed, {}).setdefault(key, []).append(arm.label)
    for seed, by_key in sorted(teachers.items()):
        if len(by_key) > 1:
            sides = " against ".join(", ".join(names) for names in by_key.values())
            found.append(
                f"Different teachers at seed {seed}: {sides}. Their differences are those of the teachers as well; compare "
                "the shares kept, or run the pipelines again with one teacher."
            )
    steps = {arm.label: arm.chain.steps for arm in arms}
    if len(set(steps.values())) > 1 and all(arm.first.total is None for arm in arms):
        shown = "; ".join(f"{label}: {count:,.0f} steps" for label, count in steps.items())
        found.append(
            f"No common budget ({shown}): a difference is that of the training's length as well; budget.steps= or "
            "budget.flops= makes it equal."
        )
    for arm in arms:
        constant = [str(run.seed) for run in arm.runs if is_constant(run.said.predicted)]
        if constant:
            found.append(
                f"{arm.label}: the final student says the same for every dev row (seed {', '.join(constant)}): it learned "
                "nothing that the metric shows."
            )
    if any(arm.seeds != arms[0].seeds for arm in arms):
        seeds = "; ".join(f"{arm.label} {', '.join(map(str, arm.seeds))}" for arm in arms)
        found.append(
            f"Means are over different seeds ({seeds}), and so over different teachers where each seed has its own."
        )
    devices = sorted({device for arm in arms for device in arm.devices})
    if len(devices) > 1:
        found.append(f"Trained on different devices ({'; '.join(devices)}): seconds cannot be compared.")
    counts = {len(arm.runs) for arm in arms}
    if counts == {1}:
        found.append("One seed: nothing here says how much the numbers vary from seed to seed.")
    return found


def _labels(firsts: list[Run]) -> list[str]:
    """A name for each arm: the pipeline's, with what parts it from the pipeline's other arms."""
    labels: list[str] = []
    for run in firsts:
        parted = _distinction(run, [other for other in firsts if other.pipeline == run.pipeline])
        label = f"{run.pipeline} ({', '.join(parted)})" if parted else run.pipeline
        while label in labels:
            label += "'"
        labels.append(label)
    return labels


def _distinction(run: Run, rivals: list[Run]) -> list[str]:
    """The budget and the settings of a run in which its rivals, itself among them, differ."""
    parted = []
    if any(other.total != run.total for other in rivals):
        parted.append(budget_text(run.budget) or "no budget")
    names = [name for name in run.settings if name not in BUDGETS]
    common = [name for name in names if all(name in other.settings for other in rivals)]
    differing = [name for name in common if any(other.settings[name] != run.settings[name] for other in rivals)]
    if not parted and not differing:  # one of them has stages that another has not
        differing = [name for name in names if name not in common]
    shown = [f"{name}={_value_text(run.settings[name])}" for name in differing[:MOST_NAMED]]
    return parted + shown + (["…"] if len(differing) > MOST_NAMED else [])


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
