"""A comparison: arms, their differences, and warnings."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from bitkd.compare.arms import Arm, Mean, majority, make_arms, mean_of_artifacts, runs_by_task
from bitkd.compare.caveats import constant
from bitkd.compare.differences import Difference, differences
from bitkd.compare.forms import metric_text
from bitkd.compare.resampling import ScoredArms
from bitkd.compare.retained import Retained, retained
from bitkd.compare.rows import Row, rows_of
from bitkd.compare.runs import Run
from bitkd.compare.shared import shared_stages
from bitkd.compare.sizes import MOST_NAMED, size_notes, size_ratio
from bitkd.compare.study import Study, study_of
from bitkd.data.tasks import HOLDOUT
from bitkd.errors import InputError
from bitkd.names import joined


@dataclass(frozen=True)
class Comparison:
    """Runs of one task, as arms."""

    scored: ScoredArms
    warnings: list[str]
    """Plain sentences for the top of every output."""

    study: Study | None = None
    """The study that the runs name, over all its tasks, see `bitkd.compare.study.study_of`."""

    @classmethod
    def of(cls, runs: list[Run]) -> "Comparison":
        """The comparison of runs of one task. Raises InputError if they cannot be compared (see `make_arms`)."""
        return StudyComparison.of([make_arms(runs)]).tasks[0]

    @property
    def arms(self) -> list[Arm]:
        return self.scored.arms

    @cached_property
    def differences(self) -> list[Difference]:
        """Between the arms, see `bitkd.compare.differences.differences`."""
        return differences(self.arms, self.scored.scores, self.study)

    @cached_property
    def retained(self) -> list[Retained | None]:
        """The share of the teacher's score that each arm retains, see `bitkd.compare.retained.retained`."""
        return retained(self.scored.scores)

    def size_ratio(self, difference: Difference) -> float:
        """The real size of the first arm's final student in multiples of the second's, see `bitkd.compare.sizes`."""
        return size_ratio(*self._arms_of(difference))

    @property
    def size_notes(self) -> list[str]:
        """Sentences about the real sizes of arms that are compared, see `bitkd.compare.sizes.size_notes`."""
        return size_notes([self._arms_of(difference) for difference in self.differences])

    def _arms_of(self, difference: Difference) -> tuple[Arm, Arm]:
        arms = {arm.label: arm for arm in self.arms}
        return arms[difference.first], arms[difference.second]

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs]

    @property
    def rows(self) -> list[tuple[str, Row]]:
        """A row for each run and stage, with its arm's label."""
        return [(arm.label, row) for arm in self.arms for run in arm.runs for row in rows_of(run)]

    @property
    def first(self) -> Run:
        """The first run, for what all runs have in common."""
        return self.arms[0].first

    @property
    def metric(self) -> str:
        return self.first.metric

    @property
    def metric_text(self) -> str:
        """The metric's name for people."""
        return metric_text(self.metric)

    @cached_property
    def majority(self) -> float:
        """The metric of a model that looks at no text, see `bitkd.compare.scores.majority_prediction`."""
        return majority(self.first)

    @property
    def teacher(self) -> Mean:
        """The score of the teachers of all seeds, each counted once."""
        return mean_of_artifacts([run.teacher for run in self.runs if run.teacher], lambda stage: stage.score)

    @property
    def speed_shapes(self) -> list[tuple[int, int]]:
        """Texts and tokens of the batches that exported students were timed with, the smallest first; empty without any."""
        measured = [arm.exported for arm in self.arms if arm.exported]
        return sorted({(speed.batch, speed.length) for exported in measured for speed in exported.speeds})

    @property
    def times_faster(self) -> list[tuple[float | None, float | None]]:
        """Each arm's speed in multiples of its teacher's, with the largest batch and with the smallest; None where there is
        none.
        """
        shapes = self.speed_shapes[-1:] + self.speed_shapes[:1]
        found = []
        for arm in self.arms:
            speeds = [arm.exported.speed(shape) if arm.exported else None for shape in shapes] or [None, None]
            large, small = (speed.times_faster if speed else None for speed in speeds)
            found.append((large, small))
        return found

    @property
    def has_speed(self) -> bool:
        """Whether an arm has a score and a speed beside its teacher."""
        pairs = zip(self.arms, self.times_faster, strict=True)
        return any(large is not None and arm.final.mean is not None for arm, (large, _) in pairs)

    def as_data(self) -> dict[str, Any]:
        """What the report's tables show, as plain data. Users' programs read these keys, so they stay if the code
        renames a value."""
        return {
            "task": self.first.task,
            "metric": self.metric,
            "majority": self.majority,
            "study": asdict(self.study) if self.study else None,
            "warnings": self.warnings,
            "arms": [_arm_data(arm, share) for arm, share in zip(self.arms, self.retained, strict=True)],
            "differences": [
                _difference_data(difference) | {"size_ratio": self.size_ratio(difference)}
                for difference in self.differences
            ],
            "rows": [{"arm": label} | asdict(row) for label, row in self.rows],
        }


@dataclass(frozen=True)
class StudyComparison:
    """Runs of one task, or of the tasks of a study."""

    tasks: list[Comparison]
    study: Study | None

    @classmethod
    def of(cls, tasks: list[list[Arm]]) -> "StudyComparison":
        """The comparison of arms, those of each task together, see `arms_of`."""
        scored = [ScoredArms(arms) for arms in tasks]
        study = study_of(scored)
        told = study.caveats if study else ()
        warnings = [[text for text in warnings_of(one.arms) if text not in told] for one in scored]
        return cls([Comparison(one, texts, study) for one, texts in zip(scored, warnings)], study)

    @property
    def runs(self) -> list[Run]:
        return [run for comparison in self.tasks for run in comparison.runs]

    @property
    def warnings(self) -> list[str]:
        """Those of all tasks, each once; one that is not of every task begins with its task."""
        tasks: dict[str, list[str]] = {}
        for comparison in self.tasks:
            for text in comparison.warnings:
                tasks.setdefault(text, []).append(comparison.first.task)
        return [text if len(of) == len(self.tasks) else f"{joined(of)}: {text}" for text, of in tasks.items()]


def arms_of(runs: list[Run]) -> list[list[Arm]]:
    """The arms of each task, in the order of the first runs.

    Raises InputError if runs of one task cannot be compared, or runs of several tasks name no study.
    """
    by_task = runs_by_task(runs)
    if len(by_task) > 1 and not any(run.study for run in runs):
        raise InputError(
            f"these runs are of different tasks ({', '.join(sorted(by_task))}) and name no study of them; compare runs of one "
            f"task at a time, or start all of them with study.tasks=[{','.join(by_task)}] and the other settings of a study"
        )
    return [make_arms(group) for group in by_task.values()]


def warnings_of(arms: list[Arm]) -> list[str]:
    """What a reader must know before any number, such as different budgets, teachers or devices."""
    found = []
    totals = {arm.label: arm.first.budget_text or "none" for arm in arms}
    if len({arm.first.budget_total for arm in arms}) > 1:
        shown = _of_arms(totals)
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
                f"Different teachers at seed {seed}: {sides}. Their differences are those of the teachers as well; run the "
                "pipelines again with one teacher."
            )
    steps = {arm.label: arm.chain.steps for arm in arms}
    if len(set(steps.values())) > 1 and all(arm.first.budget is None for arm in arms):
        shown = _of_arms({label: f"{count:,.0f} steps" for label, count in steps.items()})
        found.append(
            f"No common budget ({shown}): a difference is that of the training's length as well; budget.steps=, budget.flops= "
            "or budget.seconds= makes it equal."
        )
    found += [text for arm in arms for text in constant(arm)]
    if any(arm.seeds != arms[0].seeds for arm in arms):
        seeds = _of_arms({arm.label: ", ".join(map(str, arm.seeds)) for arm in arms})
        found.append(
            f"Means are over different seeds ({seeds}), and so over different teachers if each seed has its own."
        )
    found += _unequal_looks(arms)
    found += shared_stages(arms)
    devices = sorted({device for arm in arms for device in arm.devices})
    if len(devices) > 1:
        found.append(f"Trained on different devices ({'; '.join(devices)}): seconds cannot be compared.")
    if all(len(arm.runs) == 1 for arm in arms):
        found.append("One seed: nothing here says how much the numbers vary from seed to seed.")
    return found


def _of_arms(values: dict[str, str]) -> str:
    """The value of each arm by its label. Arms of one value are counted, not named, if they are more than MOST_NAMED."""
    shown: dict[str, None] = {}
    for label, value in values.items():
        count = list(values.values()).count(value)
        shown[f"{f'{count} arms' if count > MOST_NAMED else label}: {value}"] = None
    return "; ".join(shown)


def _unequal_looks(arms: list[Arm]) -> list[str]:
    """A warning if the final checkpoints were chosen from unequally many validations; else none."""
    looks = {arm.label: max(run.looks for run in arm.runs) for arm in arms}
    if len(set(looks.values())) == 1:
        return []
    shown = _of_arms({label: str(count) if count > 1 else "no choice" for label, count in looks.items()})
    apart = all(HOLDOUT in run.final.dev for arm in arms for run in arm.runs)
    return [
        f"Unequal looks: the final checkpoint is the best of unequally many validations ({shown}). "
        + (
            "More validations give more to choose from. By chance the hold-out score of the chosen one is too high; its dev "
            "score is not. "
            if apart
            else "Dev rows choose it, so that the best of more has a higher score by chance alone. "
        )
        + "stages.NODE.select=last, or an eval_every that gives all arms equally many, makes them equal."
    ]


def _difference_data(difference: Difference) -> dict[str, Any]:
    found = difference.estimate
    low, high = found.interval() or (None, None)
    return {
        "first": difference.first,
        "second": difference.second,
        "question": difference.question,
        "difference": found.value,
        "these_models": list(found.rows),
        "low": low,
        "high": high,
        "p": found.p,
        "primary": difference.primary,
        "p_holm": difference.p_holm,
        "shares": asdict(found.shares) if found.shares else None,
        "detectable": found.detectable(),
    }


def _arm_data(arm: Arm, share: Retained | None) -> dict[str, Any]:
    final = arm.first.final
    return {
        "arm": arm.label,
        "pipeline": arm.pipeline,
        "budget": arm.first.budget.as_data() if arm.first.budget else None,
        "runs": [run.name for run in arm.runs],
        "seeds": arm.seeds,
        "score": asdict(arm.final),
        "teacher": asdict(arm.teacher),
        "kept": asdict(share) if share else None,
        "ratio": asdict(arm.ratio),
        "precision": final.precision,
        "parameters": final.parameters,
        "encoder_bits": final.encoder_bits,
        "word_tables": final.word_tables,
        "paper_mib": final.paper_mib,
        "packed_mib": final.packed_mib,
        "disk_mib": final.disk_mib,
        "teacher_mib": arm.first.teacher.disk_mib if arm.first.teacher else None,
        "exported": asdict(arm.exported) if arm.exported else None,
        "cost": asdict(arm.chain),
        "cost_without_general": asdict(arm.without_general),
        "shared_cost": asdict(arm.shared),
        "devices": arm.devices,
        "stages": arm.num_stages,
        "hyperparameters": arm.first.hyperparameters,
    }
