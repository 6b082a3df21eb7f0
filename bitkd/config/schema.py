"""The typed configuration of a run. The docstring under a setting explains it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from bitkd.config.sections import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PipelineSpec,
    RunSpec,
    StudySpec,
    TrainerSpec,
    WandbSpec,
)
from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError, check_choices
from bitkd.models.spec import ShapeSpec
from bitkd.quant.spec import QuantSpec
from bitkd.stages.spec import LossSpec, OptimSpec

PRETRAINED = "pretrained"
"""The `student` or `teacher` of a stage that takes `model.pretrained` instead of another stage."""

DEMO = "demo"
"""In place of a folder: the task, corpus or model that bitkd makes itself."""


@dataclass
class TrainSpec(OptimSpec):
    """How a stage is trained. `train.*` are the defaults of all stages; `stages.NODE.*` overrides them for one."""

    epochs: float = 3.0
    """Passes over the stage's data; ignored if max_steps is given."""

    max_steps: int | None = None
    """Optimizer steps of the stage."""

    max_tokens: int | None = None
    """General KD only: length of the stage in tokens, instead of max_steps; every sequence counts at full length."""

    warmup_epochs: float | None = None
    """Passes over the stage's data spent in linear warm-up, instead of warmup_ratio. A longer warm-up than the stage is cut off
    by its end. XTC warms up for one."""

    batch_size: int = 32
    """Rows of one optimizer step, over all processes and accumulated batches together."""

    gradient_clip: float = 1.0
    """Largest norm of the gradient, with `optimizer=bert_adam` of each tensor's; 0 turns clipping off."""

    eval_every: int | None = None
    """Optimizer steps between validations; null validates once an epoch (and always after the last step)."""


@dataclass
class StageSpec:
    """One stage of the pipeline: a node of the stage graph."""

    kind: str = MISSING
    """finetune, general, intermediate, prediction, single_stage, init, split or augment."""

    title: str = ""
    """The stage's name in tables and plots."""

    student: str = PRETRAINED
    """Stage whose student this one starts from, or `pretrained`."""

    teacher: str | None = None
    """Stage whose student teaches, or `pretrained`; null for finetune, init and split."""

    augmented: bool | None = None
    """Train on the augmented rows; null: yes if there are any and the stage distils on the task."""

    select: Literal["auto", "best", "last"] = "auto"
    """Which checkpoint is kept: `best` on the selection set, `last`, or `auto`: `best`, or `last` if the student has no
    trained head. The student as the stage quantizes it, before its first step, counts for `best` too, unless its head is
    untrained."""

    checkpoint: str | None = None
    """finetune only: a fine-tuned checkpoint (folder or hub id) that is used instead of training one."""

    labels: list[str] | None = None
    """The label names of `checkpoint` in its own order, if its config.json has none."""

    quant: QuantSpec = field(default_factory=QuantSpec)
    """Precision of the student from this stage on."""

    loss: LossSpec = field(default_factory=LossSpec)
    """The distillation objective."""

    seed: int | None = None
    """The stage's seed. If it is set, runs with different seeds share the stage (unless share_across_seeds=false); null
    derives it from the run's `seed`."""

    lr_scale: float = 1.0
    """Factor on `train.lr`, for a stage that needs another learning rate than the others."""

    lr: float | None = None
    """Peak learning rate; null takes train.lr · lr_scale."""

    optimizer: Literal["adamw", "bert_adam"] | None = None
    """Overrides train.optimizer."""

    warmup_ratio: float | None = None
    """Overrides train.warmup_ratio, and train.warmup_epochs."""

    warmup_epochs: float | None = None
    """Overrides train.warmup_epochs, and train.warmup_ratio."""

    schedule: Literal["linear", "constant"] | None = None
    """Overrides train.schedule."""

    weight_decay: float | None = None
    """Overrides train.weight_decay."""

    scales_lr: float | None = None
    """Overrides train.scales_lr."""

    epochs: float | None = None
    """Overrides train.epochs."""

    max_steps: int | None = None
    """Overrides train.max_steps."""

    max_tokens: int | None = None
    """Overrides train.max_tokens."""

    batch_size: int | None = None
    """Overrides train.batch_size."""

    gradient_clip: float | None = None
    """Overrides train.gradient_clip."""

    eval_every: int | None = None
    """Overrides train.eval_every."""

    def __post_init__(self) -> None:
        check_choices(self)


def micro_batches(trainer: TrainerSpec) -> int:
    """Equal parts of an optimizer step's batch: one for each accumulated batch of each process."""
    return trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches


BUDGET_UNITS = ("steps", "examples", "flops", "seconds")


@dataclass
class BudgetSpec:
    """One total for a whole pipeline, so that two pipelines train at the same cost. The teacher is not included."""

    steps: int | None = None
    """Optimizer steps of all stages together."""

    examples: int | None = None
    """Training rows of all stages together, counted as often as they are seen."""

    flops: float | None = None
    """Floating-point operations of matrix products, of all stages together: the teacher's forwards and the estimate of
    importance included."""

    seconds: float | None = None
    """Seconds of training of all stages together, on the device that `budget.throughput` was measured on: without validations
    and checkpoints."""

    throughput: str | None = None
    """File of `bitkd throughput`: how long a step of each stage takes on one device. A budget in seconds needs it."""

    shares: dict[str, float | None] = field(default_factory=dict)
    """Stage -> its share of the total, see the pipeline's file; they add up to 1."""

    @property
    def given_shares(self) -> dict[str, float]:
        """The shares that are not None."""
        return {name: share for name, share in self.shares.items() if share is not None}

    @property
    def total(self) -> tuple[str, float] | None:
        """The given unit and its total; None if there is no budget."""
        given = [(unit, getattr(self, unit)) for unit in BUDGET_UNITS]
        return next(((unit, total) for unit, total in given if total is not None), None)


@dataclass
class Config:
    """The whole configuration of a run."""

    task: TaskSpec = field(default_factory=TaskSpec)
    pipeline: PipelineSpec = field(default_factory=PipelineSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    student: ShapeSpec = field(default_factory=ShapeSpec)
    data: DataSpec = field(default_factory=DataSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    budget: BudgetSpec = field(default_factory=BudgetSpec)
    trainer: TrainerSpec = field(default_factory=TrainerSpec)
    run: RunSpec = field(default_factory=RunSpec)
    study: StudySpec = field(default_factory=StudySpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    wandb: WandbSpec = field(default_factory=WandbSpec)
    stages: dict[str, StageSpec] = field(default_factory=dict)
    embedding_bits: int | None = None
    """Bits of the word embeddings in every stage that quantizes weights and does not set quant.embedding_bits: 32 keeps
    them FP32, null takes the weights' bits."""
    logger: Literal["csv", "wandb"] = "csv"
    """`csv`, or `wandb` (which writes the CSV files too)."""
    seed: int = 42
    """Seed of the run; every stage derives its own from it and from its name."""
    share_across_seeds: bool = True
    """Let runs with different seeds share the stages whose stages.NODE.seed is set, as General KD's is in conf/pipeline.
    false: every stage derives its seed from the run's, also a stage with a seed of its own, so that each run seed trains
    all its stages and a comparison shows how all of them vary. It then takes a General KD for each seed."""

    def __post_init__(self) -> None:
        check_choices(self)


def settings_of(stage: StageSpec, train: TrainSpec) -> dict[str, Any]:
    """The training settings of one stage: its own if given, else those of `train`. A warm-up in epochs goes before a ratio."""
    names = [f for f in train.__dataclass_fields__ if f != "lr"]
    settings = {
        name: getattr(stage, name) if getattr(stage, name) is not None else getattr(train, name) for name in names
    }
    # A stage's own budget replaces that of `train`, whatever its unit.
    if stage.max_steps is None and (stage.epochs is not None or stage.max_tokens is not None):
        settings["max_steps"] = None
    if stage.max_tokens is None and (stage.epochs is not None or stage.max_steps is not None):
        settings["max_tokens"] = None
    if stage.warmup_epochs is None and stage.warmup_ratio is not None:
        settings["warmup_epochs"] = None
    settings["lr"] = stage.lr if stage.lr is not None else train.lr * stage.lr_scale
    return settings


def store_root(config: Config) -> Path:
    """Folder of the artifact store of a run."""
    return Path(config.run.store or Path(config.run.dir) / "store").expanduser().resolve()


def cache_root(config: Config) -> Path:
    """Folder of facts about files, tokenized rows, teachers' logits, compiled graphs and the demo. Runs with one store share it.

    Raises InputError if a link leads it elsewhere.
    """
    folder = store_root(config).parent / "cache"
    places = (folder, *(folder / name for name in ("facts", "demo", "logits", "compiled")))
    if link := next((place for place in places if place.is_symlink()), None):
        raise InputError(f"{link} is a link, so that bitkd would write elsewhere; delete it, or set another run.store=")
    return folder
