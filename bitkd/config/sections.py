"""The small sections of the configuration. The docstring under a setting explains it."""

from dataclasses import dataclass, field
from typing import Literal

from bitkd.data.documents import HubCorpusSpec
from bitkd.data.tasks import Selection
from bitkd.errors import check_choices


@dataclass
class ModelSpec:
    """The pre-trained BERT that every stage descends from."""

    pretrained: str = "bert-base-uncased"
    """A hub id or a local folder; `demo` is the tiny BERT that bitkd makes itself."""


@dataclass
class DataSpec:
    """The rows and texts of a run, and how they are batched."""

    dir: str | None = None
    """A folder with the task's files (GLUE: the official TSV layout); null loads from the hub."""

    corpus: list[str] = field(default_factory=list)
    """Text files or folders for General KD."""

    hub_corpus: HubCorpusSpec = field(default_factory=HubCorpusSpec)
    """A corpus on the Hugging Face hub, used if `corpus` is empty."""

    streaming: bool = False
    """Read the corpus as a stream: nothing is kept in memory or on disk, and the budget is in steps or tokens."""

    masking: float = 0.0
    """Share of the corpus's tokens that are masked: 0 (TinyBERT's second version), or 0.15 (its first)."""

    max_length: int = 128
    """Tokens of a row; longer ones are truncated, counted and reported."""

    pad_to_max_length: bool = False
    """Pad every training batch of the task's rows to `max_length`, as the published scripts do; it is slower, and there to
    compare with. False: to the longest row of a batch, and rows of like length come together. The sequences of a corpus
    are packed and nearly of full length, so this does not change their batches."""

    eval_batch_size: int = 64
    """Rows of one validation batch in each process."""

    selection: Selection = "dev"
    """Rows that select checkpoints: `dev`, as published, or `holdout`, a stratified tenth of the training rows. With
    `holdout`, the dev sets are used once, at the end of a stage."""

    selection_seed: int = 0
    """Seed that chooses the held-out rows."""

    num_workers: int = 0
    """Loader processes of each training process."""

    segments: Literal[1, 2] = 2
    """General KD: 2 packs [CLS] A [SEP] B [SEP] with token types, 1 a single segment."""

    importance_rows: int = 512
    """Training rows for estimating the importance of heads and neurons, where a copy leaves some out."""

    def __post_init__(self) -> None:
        check_choices(self, "data.")


@dataclass
class TrainerSpec:
    """Settings of Lightning's Trainer, under Lightning's names."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    """Kind of processor: `auto` takes a GPU if there is one, `gpu` requires one."""

    devices: int = 1
    """Processes on each node. With another number, a run trains its stages anew."""

    num_nodes: int = 1
    """Machines."""

    strategy: Literal["auto", "ddp"] = "auto"
    """How processes train together: `auto` is one process, or `ddp`. Lightning's other strategies are not supported: they
    start processes in another way, or divide the weights among them (deepspeed, fsdp), so that none has a whole student."""

    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the training: `16-mixed` needs a GPU, `bf16-mixed` is slow on a processor without bf16. Lightning's
    other precisions are not supported: they keep the latent weights in half precision, or train models that cannot be
    saved as artifacts."""

    accumulate_grad_batches: int = 1
    """Batches whose gradients are added up before a step; the effective batch stays `batch_size`."""

    keep_teacher_logits: Literal["auto", "always", "never"] = "auto"
    """Compute the teacher's logits of all training rows once, before the first step, in the stages that read nothing else of
    the teacher (Stage-II KD). They are kept in `cache` for other stages and runs. `auto`: in stages that see more rows than
    there are. `never`, as published: run the teacher in every step."""

    compile: Literal["auto", "true", "false"] = "auto"
    """Compile the encoder layers of student and teacher by torch.compile for the training steps. `auto`: on a CUDA device, in
    stages with enough steps to win back the time it takes. `true`: in every stage that trains, on a CPU too, where it does
    not pay; it needs a C++ compiler there, and Triton on CUDA."""

    cuda_graphs: Literal["auto", "true", "false"] = "auto"
    """Start the kernels of a training step together, as recorded CUDA graphs; the same kernels run. `auto`: on one CUDA device,
    in stages of a BERT without code of your own. `true`: also with other encoders and your own loss terms and quantizers, which
    then must not read values on the host."""

    log_every_n_steps: int = 10
    """Steps between two rows of the training log."""

    def __post_init__(self) -> None:
        check_choices(self, "trainer.")


@dataclass
class RunSpec:
    """Where results go."""

    dir: str = "runs"
    """Folder of all runs; a run is `<dir>/<task>/<name>`."""

    name: str | None = None
    """Name of this run, a component of a path; null takes the pipeline's."""

    store: str | None = None
    """Artifact store that runs share; null is `<dir>/store`."""


@dataclass
class CheckpointSpec:
    """Checkpoints inside a stage; they change no result."""

    every_minutes: float = 5.0
    """At most this much work is lost if the process is killed, plus the step or validation in progress."""

    every_steps: int | None = None
    """Optimizer steps between two checkpoints, besides every_minutes; null: only by time."""


@dataclass
class WandbSpec:
    """Settings of `logger=wandb`; without an API key the run is written offline, for a later `wandb sync`."""

    project: str | None = None
    """Project of the runs; null takes WANDB_PROJECT, or `bitkd` if that is not set. A sweep has its own."""

    entity: str | None = None
    """Team or user; null takes WANDB_ENTITY, or the default of the API key."""

    artifacts: bool = False
    """Also upload the final student's folder."""


@dataclass
class StudySpec:
    """The question that a study decides, named before its runs. Every run keeps it in its record, with the time, and
    `bitkd compare` gives a verdict on it and on nothing else. It changes no result."""

    primary: list[str] = field(default_factory=list)
    """Two pipeline names: the verdict is on first - second. Empty: the run belongs to no study."""

    tasks: list[str] = field(default_factory=list)
    """Names of all the study's tasks; the verdict is on the mean of their differences."""

    seeds: list[int] = field(default_factory=list)
    """Seeds of both pipelines, at least three."""

    margin: float = 1.0
    """The largest difference that is as good as none, in points (hundredths of the tasks' metrics)."""

    alpha: float = 0.05
    """The chance of a false finding; intervals are of the level 1 - alpha."""


@dataclass
class PipelineSpec:
    """Name and title of the pipeline; its stages are under `stages`."""

    name: str = ""
    """Also the default of run.name."""

    title: str = ""
    """What the pipeline is, for people."""
