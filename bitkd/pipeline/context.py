"""Everything that a stage needs to run, in one object."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from bitkd.config.schema import PRETRAINED, Config
from bitkd.models.artifact import load_encoder, load_student
from bitkd.pipeline.observer import Observer
from bitkd.pipeline.plan import Plan
from bitkd.pipeline.stage import PlannedStage
from bitkd.processes.group import Group
from bitkd.processes.signals import Stopping
from bitkd.sources.sources import Sources
from bitkd.store.artifacts import Store


class Console(Protocol):
    """Where a run's lines go, such as rich's Console."""

    def print(self, *objects: Any) -> None: ...


@dataclass(frozen=True)
class StageContext:
    """One stage of a run, on one process of its group."""

    plan: Plan
    stage: PlannedStage
    group: Group
    stopping: Stopping
    console: Console
    observer: Observer
    progress_bar: bool = False
    """Whether `console` is a terminal on which a line can change."""

    @property
    def config(self) -> Config:
        return self.plan.config

    @property
    def sources(self) -> Sources:
        return self.plan.sources

    @property
    def store(self) -> Store:
        return self.plan.store

    @property
    def work(self) -> Path:
        """Folder of the stage's checkpoints, or of its shards, until it is finished."""
        return self.store.work(self.stage.key)

    @property
    def finished(self) -> bool:
        """Whether the stage's artifact exists."""
        return self.store.finished(self.stage.key)

    @property
    def place(self) -> str:
        """Such as "stage 2 of 8: stage1"."""
        names = [stage.name for stage in self.plan.stages]
        return f"stage {names.index(self.stage.name) + 1} of {len(names)}: {self.stage.name}"

    @property
    def label(self) -> str:
        """Such as "stage 2 of 8: stage1 (Stage-I KD)"."""
        return self.place + (f" ({self.stage.title})" if self.stage.title != self.stage.name else "")

    def say(self, text: str) -> None:
        """Print a line, on rank zero."""
        if self.group.is_global_zero:
            self.console.print(text)

    def load(self, name: str) -> PreTrainedModel:
        """A finished stage's student, or the pre-trained encoder."""
        if name == PRETRAINED:
            return load_encoder(self.sources.model)
        return load_student(self.store.path(self.plan[name].key))
