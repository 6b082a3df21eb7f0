"""A finished run as plain data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitkd.compare.exported import Exported
from bitkd.compare.forms import Form, form_of
from bitkd.data.tasks import HOLDOUT
from bitkd.errors import InputError
from bitkd.stages.kinds import KINDS, Kind
from bitkd.store.records import BudgetRecord, StudyRecord

Number = int | float
"""A type with which pydantic keeps whole numbers: a 1 in the file is read and written again as 1, not as 1.0."""


@dataclass(frozen=True)
class Predictions:
    """Labels and predictions of each row of a dev set, in the order of the rows."""

    labels: list[Number]
    """Label numbers, or a regression's values; what else they are says `bitkd.compare.forms`."""

    predicted: list[Number]
    """In the same form as `labels`; of answers the rows' scores, of entities how many were found."""

    matched: list[Number] | None = None
    """How many of the found entities are right; None for a task without entities."""

    @property
    def scored(self) -> NDArray[np.float64]:
        """What `bitkd.compare.scores` takes: `predicted` (rows,); of entities (rows, 2), `matched` and `predicted`."""
        if self.matched is None:
            return np.asarray(self.predicted, dtype=np.float64)
        return np.stack([self.matched, self.predicted], axis=1).astype(np.float64)


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    title: str
    """For people, such as Stage-I KD."""

    kind: str
    """Name of a kind of `bitkd.stages.kinds`."""

    key: str
    """The artifact's key in the store: runs that share an artifact have the same one."""

    upstream: dict[str, str]
    """Role (student, teacher, data) -> the stage that plays it, or `pretrained`."""

    in_chain: bool
    """Whether it is part of the pipeline's own chain and its cost, see `bitkd.compare.load.chain_of`."""

    score: float | None
    """The primary metric on the first dev set, larger is better; None without a head (General KD, rows)."""

    dev: dict[str, dict[str, float | None]]
    """Dev set -> metric -> value, the loss among them."""

    precision: str
    """Bits of weights and activations, such as W1A8; empty for rows."""

    parameters: int
    encoder_bits: int
    """Bits of only the encoder's matrices."""

    word_tables: int
    """Word-embedding tables: 2 after a split with split embeddings."""

    paper_mib: float
    """Size by the papers' convention, see `bitkd.store.records.SizeRecord`."""

    packed_mib: float
    """Size by the convention of a packed file (SizeRecord.file_mib)."""

    disk_mib: float
    """The weights' file as it is."""

    steps: int
    examples: int
    student_flops: int
    """Of training, over all processes."""

    teacher_flops: int
    seconds: float
    """From the first step to the last by the clock of the first process, validations included, over all resumptions."""

    device: str
    """Name of the device that it was trained on."""

    world_size: int
    """Processes."""

    trainer_precision: str
    """The trainer's arithmetic, such as bf16-mixed (StageRecord.precision)."""

    curve: list[tuple[int, float]]
    """(step, score) of each validation."""

    predictions: dict[str, Predictions] | None = None
    """By dev set; of the teacher and the final stage, None for the others."""

    importance_flops: int | None = None
    """Of estimating importance. None here and below: not recorded, in older records."""

    validation_seconds: float | None = None
    """Those of `seconds` from the start of a validation to the next step."""

    saving_seconds: float | None = None
    """Those of `seconds` in which checkpoints were saved."""

    padded_tokens: int | None = None
    """Tokens of `examples` with their padding."""

    tokens: int | None = None
    """Tokens of `examples` without padding."""

    selected: str | None = None
    """Which checkpoint was kept, `best` or `last`; also None if nothing was trained."""

    selected_step: int | None = None
    """The step of that checkpoint."""

    selection_rows: int | None = None
    """Rows of the set whose score chose the checkpoint; also None if none did."""

    @property
    def training_seconds(self) -> float | None:
        """`seconds` without validations and the saving of checkpoints; None if they were not measured apart."""
        if self.validation_seconds is None or self.saving_seconds is None:
            return None if self.steps else self.seconds
        return max(0.0, self.seconds - self.validation_seconds - self.saving_seconds)

    @property
    def is_model(self) -> bool:
        """Whether it makes a model, and not rows."""
        return not self._kind.makes_rows

    @property
    def answers_task(self) -> bool:
        """Whether it makes a model with a head for the task."""
        return self.is_model and self._kind.keeps_head

    @property
    def on_corpus(self) -> bool:
        """Whether it trains on the corpus and not on the task, as General KD does."""
        return self._kind.on_corpus

    @property
    def _kind(self) -> Kind:
        return recorded_kind(self.kind, f"stage {self.name}")

    @property
    def machine(self) -> str:
        """Everything about the machine that seconds depend on: device, number of processes, precision."""
        processes = f"{self.world_size} process{'' if self.world_size == 1 else 'es'}"
        return ", ".join(part for part in (self.device, processes, self.trainer_precision) if part)


def recorded_kind(name: str, where: str) -> Kind:
    """The kind that a record names.  where: whose kind it is, for the message. Raises InputError if it is unknown."""
    if name not in KINDS:
        raise InputError(
            f"{where} is of kind {name}, which is none of {', '.join(KINDS)}; import the code that registers it in "
            "bitkd.stages.kinds.KINDS, or read the record with the version that made it"
        )
    return KINDS[name]


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    pipeline: str
    title: str
    """The pipeline's title, for people."""

    task: str
    metric: str
    """The task's primary metric."""

    metrics: list[str]
    """All metrics of the task."""

    labels: list[str] | None
    """Names in the order of the model's outputs; None for a regression, and a task that is not text classification."""

    seed: int
    hyperparameters: int
    """How many settings the pipeline and the run set."""

    budget: BudgetRecord | None
    settings: dict[str, Any]
    """Dotted name -> value of every setting that can change a result, except the seed. Runs with equal settings are one arm."""

    versions: dict[str, str]
    """Library -> version, or versions if stages were made by several."""

    stages: list[Stage]
    """In the order of the graph; the last one is the final student."""

    exported: Exported | None = None
    """The final student as `bitkd export` writes it; None if nobody measured it. Of an arm's runs, one is measured."""

    study: StudyRecord | None = None
    """The study that the run belongs to; None if it names none."""

    finished: str | None = None
    """When its final student was made (ISO 8601, UTC); None in older records."""

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    @property
    def teacher(self) -> Stage | None:
        """The fine-tuned teacher; None if the pipeline has none."""
        return next((stage for stage in self.stages if stage.is_model and not stage.in_chain), None)

    @property
    def budget_total(self) -> tuple[str, float] | None:
        """Unit and total of the budget, without its shares, which differ between pipelines; None without a budget."""
        if self.budget is None:
            return None
        return (
            f"{self.budget.unit} on {self.budget.device}" if self.budget.device else self.budget.unit,
            self.budget.total,
        )

    @property
    def budget_text(self) -> str:
        """The total for people, such as 960 steps; empty without a budget."""
        return f"{self.budget_total[1]:,.6g} {self.budget_total[0]}" if self.budget_total else ""

    @property
    def looks(self) -> int:
        """Validations that the final checkpoint is the best of; 1 if its score did not choose it."""
        final = self.final
        setting = self.settings.get(f"stages.{final.name}.select")  # for older records
        chosen = setting != "last" if final.selected is None else final.selected == "best"
        return max(1, len(final.curve)) if chosen else 1

    @property
    def form(self) -> Form:
        """What its predictions are."""
        return form_of(self.metric)

    @property
    def num_labels(self) -> int | None:
        """None where `labels` is."""
        return None if self.labels is None else len(self.labels)

    @property
    def final_predictions(self) -> Predictions:
        """The final student's predictions on the first dev set. Raises InputError if the run has none."""
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
