"""A run and its stages with everything about them decided."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkd.config.schema import Config, StageSpec, TrainSpec
from bitkd.files import digest
from bitkd.sources.facts import SourceFacts
from bitkd.stages.kinds import AUGMENT, TRAINED
from bitkd.store.artifacts import Store, read_artifact
from bitkd.store.run_folder import RunFolder, state_of

if TYPE_CHECKING:
    from bitkd.sources.sources import Sources


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

    def count_steps(self, per_epoch: int | None) -> None:
        """Fill in the steps.  per_epoch: steps of a pass over the stage's rows; null where they are not there yet."""
        train = self.train
        self.settled = per_epoch is not None or bool(train.max_steps and train.eval_every)
        self.total_steps = train.max_steps or (max(1, math.ceil(train.epochs * per_epoch)) if per_epoch else 0)
        self.eval_every = min(train.eval_every or per_epoch or 0, self.total_steps) if self.settled else 0


@dataclass
class Plan:
    """A checked run: stages in order, facts of their sources, the store, the record of earlier runs."""

    config: Config
    facts: SourceFacts
    stages: list[PlannedStage]
    store: Store
    record: RunFolder

    @property
    def sources(self) -> "Sources":
        """The sources themselves; they are loaded now, unless planning had to look at them."""
        return self.facts.loaded

    def __getitem__(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)

    def augmented_rows(self, stage: PlannedStage) -> Path | None:
        """Folder of the augmented rows that a stage trains on, if it does."""
        if stage.augmented is not None:
            return stage.augmented
        return self.store.path(self[stage.upstream["data"]].key) if "data" in stage.upstream else None

    def settle(self, stage: PlannedStage) -> None:
        """Count the steps of a stage on augmented rows, which are there by now."""
        folder = self.augmented_rows(stage)
        if not stage.settled and folder is not None:
            augmented = read_artifact(folder).stage.augmented
            assert augmented
            stage.count_steps(max(1, augmented.rows // stage.train.batch_size))

    def given_keys(self) -> list[str]:
        """Artifacts of the store that the settings name by their folders: a teacher, augmented rows, a model."""
        given = [stage.checkpoint or stage.augmented for stage in self.stages] + [self.facts.model]
        if self.config.task.augmentation.model:
            given.append(self.facts.augmentation_model)
        resolved = [path.resolve() for path in given if path is not None]
        return [path.name for path in resolved if path.parent == self.store.root]

    def sources_read(self) -> dict[str, str]:
        """What the run reads, by content: model, rows, corpus and augmented rows, wherever they lie."""
        read = {"model": self.facts.hash_of(self.facts.model), "rows": self.facts.task.hash}
        if any(stage.spec.kind == "general" for stage in self.stages):
            read["corpus"] = self.facts.corpus.hash
        if made := next((stage.fingerprint for stage in self.stages if stage.spec.kind == AUGMENT), None):
            read["augmented rows"] = made
        elif given := next((stage.augmented for stage in self.stages if stage.augmented), None):
            read["augmented rows"] = digest(read_artifact(given).stage.checksums)
        return {f"content of {name}": found[:12] for name, found in read.items()}

    def rows(self) -> list[dict[str, Any]]:
        """The stages as plain data, for `bitkd plan`. steps: null where they are not known yet."""
        return [
            {
                "name": stage.name,
                "kind": stage.spec.kind,
                "title": stage.title,
                "inputs": stage.upstream,
                "bits": stage.spec.quant.weight_bits,
                "steps": stage.total_steps if stage.settled or stage.train.max_steps else None,
                "fingerprint": stage.fingerprint,
                "key": stage.key,
            }
            for stage in self.stages
        ]

    def state(self, stage: PlannedStage) -> str:
        """State of a stage, see `state_of`."""
        return state_of(self.store, self.record, stage.name, stage.key)
