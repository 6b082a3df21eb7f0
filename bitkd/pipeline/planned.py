"""A stage with everything about it decided."""

from dataclasses import dataclass
from pathlib import Path

from bitkd.config.schema import StageSpec, TrainSpec
from bitkd.pipeline.kinds import TRAINED


@dataclass
class PlannedStage:
    """One stage, everything about it decided.

    upstream: role (student, teacher, data) -> node or source.  checkpoint: local folder of a given fine-tuned teacher.
    augmented: folder of augmented rows that were given.  settled: whether the number of steps is known; epochs over
    rows that are still to be augmented are not.
    """

    name: str
    spec: StageSpec
    train: TrainSpec
    seed: int
    upstream: dict[str, str]
    total_steps: int = 0
    eval_every: int = 0
    settled: bool = True
    fingerprint: str = ""
    checkpoint: Path | None = None
    augmented: Path | None = None

    @property
    def title(self) -> str:
        return self.spec.title or self.name

    @property
    def key(self) -> str:
        """Name of the artifact's folder in the store."""
        return f"{self.spec.kind}-{self.fingerprint}"

    @property
    def trains(self) -> bool:
        return self.spec.kind in TRAINED and self.checkpoint is None
