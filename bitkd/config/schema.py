"""Every knob of bitkd, typed; the meaning of each stands under it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from bitkd.data.documents import HubCorpusSpec
from bitkd.data.tasks import TaskSpec
from bitkd.models.spec import ShapeSpec
from bitkd.quant.spec import QuantSpec
from bitkd.stages.spec import LossSpec, OptimSpec

PRETRAINED = "pretrained"
"""The source that stands for `model.pretrained` where a node names its student or teacher."""

DEMO = "demo"
"""In place of a folder: the task, corpus or model that bitkd makes itself."""


@dataclass
class TrainSpec(OptimSpec):
    """How a stage is trained. `train.*` are the defaults of all stages; `stages.NODE.*` overrides them for one."""

    epochs: float = 3.0
    """Passes over the stage's data; ignored where max_steps is given."""

    max_steps: int | None = None
    """Optimizer steps of the stage."""

    max_tokens: int | None = None
    """General KD: tokens of the stage, counted at full length, in place of max_steps."""

    batch_size: int = 32
    """Rows of one optimizer step, over all processes and accumulated batches together."""

    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""

    eval_every: int | None = None
    """Optimizer steps between validations; null validates once an epoch (and always after the last step)."""


@dataclass
class StageSpec:
    """One node of the stage graph."""

    kind: str = MISSING
    """finetune, general, intermediate, prediction, single_stage, init, split or augment."""

    title: str = ""
    """The stage's name for people."""

    student: str = PRETRAINED
    """Where the student comes from: another node, or `pretrained`."""

    teacher: str | None = None
    """Who teaches: another node, or `pretrained`; null for finetune, init and split."""

    augmented: bool | None = None
    """Train on the augmented rows; null: wherever there are any and the stage distils on the task."""

    select: str = "auto"
    """Which checkpoint goes on: `best` on the selection set, `last`, or `auto`: the best, but the last where no
    trained head exists yet."""

    checkpoint: str | None = None
    """finetune only: a fine-tuned checkpoint (folder or hub id) that is used instead of training one."""

    labels: list[str] | None = None
    """The label names of `checkpoint` in its own order, where its config.json has none."""

    quant: QuantSpec = field(default_factory=QuantSpec)
    """Precision of the student from this stage on."""

    loss: LossSpec = field(default_factory=LossSpec)
    """The distillation objective."""

    seed: int | None = None
    """A seed of the stage's own, so that it is not repeated for every run seed; null derives it from `seed`."""

    lr_scale: float = 1.0
    """Factor on `train.lr`, for a stage that wants another learning rate than its neighbours."""

    lr: float | None = None
    """Peak learning rate; null takes train.lr · lr_scale."""

    warmup_ratio: float | None = None
    """Overrides train.warmup_ratio."""

    schedule: str | None = None
    """Overrides train.schedule."""

    weight_decay: float | None = None
    """Overrides train.weight_decay."""

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


@dataclass
class ModelSpec:
    """The pre-trained BERT that everything descends from."""

    pretrained: str = "bert-base-uncased"
    """A hub id or a local folder; `demo` is the tiny BERT that bitkd makes itself."""


@dataclass
class DataSpec:
    """Where rows and text come from, and how they are batched."""

    dir: str | None = None
    """A folder with the task's files (GLUE: the official TSV layout); null loads from the hub."""

    corpus: list[str] = field(default_factory=list)
    """Text files or folders for General KD."""

    hub_corpus: HubCorpusSpec = field(default_factory=HubCorpusSpec)
    """A corpus on the hub instead."""

    streaming: bool = False
    """Read the corpus as a stream: nothing is kept in memory or on the disk, and the budget is in steps or tokens."""

    masking: float = 0.0
    """Share of the corpus's tokens that are masked: 0 (TinyBERT's second version), or 0.15 (its first)."""

    max_length: int = 128
    """Tokens of a row; longer ones are truncated, counted and reported."""

    eval_batch_size: int = 64
    """Rows of one validation batch in each process."""

    selection: str = "dev"
    """What chooses checkpoints: `dev`, as published, or `holdout`, a stratified tenth of the training rows, so that the
    dev sets are looked at once, at the end of a stage."""

    selection_seed: int = 0
    """Chooses the rows that are held out."""

    num_workers: int = 0
    """Loader processes of each training process."""

    segments: int = 2
    """General KD: 2 packs [CLS] A [SEP] B [SEP] with token types, 1 a single segment."""

    importance_rows: int = 512
    """Training rows that the importance of heads and neurons is estimated on, where a student is narrowed."""


@dataclass
class TrainerSpec:
    """Lightning's own names and meanings."""

    accelerator: str = "auto"
    """cpu, gpu, … or auto."""

    devices: int = 1
    """Processes on each node; the number is fixed for a run."""

    num_nodes: int = 1
    """Machines."""

    strategy: str = "auto"
    """auto, or ddp."""

    precision: str = "32-true"
    """32-true, bf16-mixed, or 16-mixed."""

    accumulate_grad_batches: int = 1
    """Batches whose gradients are added up before a step; the effective batch stays `batch_size`."""

    log_every_n_steps: int = 10
    """Steps between two rows of the training log."""


def parts_of(trainer: TrainerSpec) -> int:
    """Equal parts that the batch of an optimizer step is dealt out in: to processes, and to accumulated batches of each."""
    return trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches


@dataclass
class RunSpec:
    """Where results go."""

    dir: str = "runs"
    """Folder of all runs; a run is `<dir>/<task>/<name>`."""

    name: str | None = None
    """Name of this run; null takes the pipeline's."""

    store: str | None = None
    """Artifact store that runs share; null is `<dir>/store`."""


@dataclass
class CheckpointSpec:
    """Checkpoints inside a stage; they change no result."""

    every_minutes: float = 5.0
    """At most this much work is lost to a kill, and the step or validation under way."""

    every_steps: int | None = None
    """Also every so many optimizer steps."""


@dataclass
class WandbSpec:
    """Settings of `logger=wandb`; without an API key the run is written offline, for a later `wandb sync`."""

    project: str = "bitkd"
    """Project of the runs."""

    entity: str | None = None
    """Team or user; null is the key's own."""

    artifacts: bool = False
    """Also upload the final student's folder."""


@dataclass
class PipelineSpec:
    """The pipeline's name; its nodes stand under `stages`."""

    name: str = ""
    """Also the run's name by default."""

    title: str = ""
    """What the pipeline is, for people."""


@dataclass
class BudgetSpec:
    """One total for a whole pipeline, so that two pipelines train at the same cost. The teacher is counted apart."""

    steps: int | None = None
    """Optimizer steps of all stages together."""

    examples: int | None = None
    """Training rows of all stages together, counted as often as they are seen."""

    flops: float | None = None
    """Floating-point operations of all stages together, the teacher's forwards included."""

    shares: dict[str, float | None] = field(default_factory=dict)
    """Share of the total that each stage gets, as its pipeline's file says; they add up to 1."""

    @property
    def given_shares(self) -> dict[str, float]:
        """The shares that are not null."""
        return {name: share for name, share in self.shares.items() if share is not None}

    @property
    def total(self) -> tuple[str, float] | None:
        """The unit that is given, and its total; null where none is."""
        given = [(unit, getattr(self, unit)) for unit in ("steps", "examples", "flops")]
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
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    wandb: WandbSpec = field(default_factory=WandbSpec)
    stages: dict[str, StageSpec] = field(default_factory=dict)
    embedding_bits: int | None = None
    """Bits of the word embeddings in every stage that quantizes weights and says nothing else itself: 32 keeps them FP32; null
    takes the weights' bits."""
    logger: str = "csv"
    """csv, or wandb (which writes the CSV files too)."""
    seed: int = 42
    """Seed of the run; every stage derives its own from it and from its name."""


def settings_of(stage: StageSpec, train: TrainSpec) -> dict[str, Any]:
    """The training settings in force for one stage: its own where given, else those of `train`."""
    names = [f for f in train.__dataclass_fields__ if f != "lr"]
    settings = {
        name: getattr(stage, name) if getattr(stage, name) is not None else getattr(train, name) for name in names
    }
    # A stage's own budget counts, in whatever unit it is.
    if stage.max_steps is None and (stage.epochs is not None or stage.max_tokens is not None):
        settings["max_steps"] = None
    if stage.max_tokens is None and (stage.epochs is not None or stage.max_steps is not None):
        settings["max_tokens"] = None
    settings["lr"] = stage.lr if stage.lr is not None else train.lr * stage.lr_scale
    return settings


def store_root(config: Config) -> Path:
    """Folder of the artifact store of a run."""
    return Path(config.run.store or Path(config.run.dir) / "store").expanduser().resolve()
