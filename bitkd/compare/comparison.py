"""A comparison: arms, their differences, what a reader must know first."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from bitkd.compare.arms import Arm, Mean, majority, make_arms, mean_of_artifacts, warnings_of
from bitkd.compare.bootstrap import Difference, differences
from bitkd.compare.rows import Row, rows_of
from bitkd.compare.runs import Run


@dataclass(frozen=True)
class Comparison:
    """Runs of one task, as arms.  warnings: plain sentences for the top of every output."""

    arms: list[Arm]
    warnings: list[str]

    @classmethod
    def of(cls, runs: list[Run]) -> "Comparison":
        """InputError where the runs cannot stand beside each other (see `make_arms`)."""
        arms = make_arms(runs)
        return cls(arms, warnings_of(arms))

    @cached_property
    def differences(self) -> list[Difference]:
        return differences(self.arms)

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs]

    @property
    def rows(self) -> list[tuple[str, Row]]:
        """A row for each run and stage, with its arm's label."""
        return [(arm.label, row) for arm in self.arms for run in arm.runs for row in rows_of(run)]

    @property
    def first(self) -> Run:
        return self.arms[0].first

    @property
    def metric(self) -> str:
        return self.first.metric

    @cached_property
    def majority(self) -> float:
        return majority(self.first)

    @property
    def teacher(self) -> Mean:
        """Over all seeds' teachers, each counted once."""
        return mean_of_artifacts([run.teacher for run in self.runs if run.teacher], lambda stage: stage.score)

    def as_data(self) -> dict[str, Any]:
        """For machines: what the report's tables say."""
        return {
            "task": self.first.task,
            "metric": self.metric,
            "majority": self.majority,
            "warnings": self.warnings,
            "arms": [_arm_data(arm) for arm in self.arms],
            "differences": [asdict(difference) for difference in self.differences],
            "rows": [{"arm": label} | asdict(row) for label, row in self.rows],
        }


def _arm_data(arm: Arm) -> dict[str, Any]:
    final = arm.first.final
    return {
        "arm": arm.label,
        "pipeline": arm.pipeline,
        "budget": arm.first.budget,
        "runs": [run.name for run in arm.runs],
        "seeds": arm.seeds,
        "score": asdict(arm.final),
        "teacher": asdict(arm.teacher),
        "kept": asdict(arm.kept),
        "ratio": asdict(arm.ratio),
        "precision": final.precision,
        "parameters": final.parameters,
        "encoder_bits": final.encoder_bits,
        "word_tables": final.word_tables,
        "paper_mib": final.paper_mib,
        "packed_mib": final.packed_mib,
        "disk_mib": final.disk_mib,
        "cost": asdict(arm.chain),
        "cost_without_general": asdict(arm.without_general),
        "shared_cost": asdict(arm.shared),
        "devices": arm.devices,
        "stages": arm.num_stages,
        "hyperparameters": arm.first.hyperparameters,
    }
