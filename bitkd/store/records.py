"""The JSON records of artifacts and runs, as types.

They are written only by `as_data` and read only by `parse_record`, so that a field has one name and one type. `bitkd.store.gc`
alone also reads what it can of damaged and older ones, so that it deletes nothing that their runs use.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from bitkd.errors import InputError
from bitkd.names import CONTROL, shown

T = TypeVar("T")

MIB = 2**20


@dataclass(frozen=True)
class SizeRecord:
    """Size of a student, by the two conventions that papers use (they differ by up to 2 MiB at one bit)."""

    parameters: int
    """Stored weights; both halves of a split count."""

    precision: str
    """Bits of weights and activations, such as W1A8."""

    paper_mib: float
    """Every parameter at weight_bits, the word embeddings at embedding_bits, as XTC counts."""

    file_mib: float
    """What the tensors of a packed file take: quantized matrices at their bits with FP32 scales, the rest in fp16 (models
    without a quantized matrix: everything at 32 bits). The file's header is not counted."""

    encoder_bits: int
    """Bits of only the encoder's matrices; pipelines are compared at equal encoder bits."""

    word_tables: int
    """Word-embedding tables: 2 if the embedding is split."""


@dataclass(frozen=True)
class FlopsRecord:
    """Floating-point operations of a stage's training, over all processes: those of matrix products."""

    student: int
    """The student's forward and backward passes."""

    teacher: int
    """The teacher's forward passes, and its own products in the loss."""

    importance: int | None = None
    """Of estimating the importance of heads and neurons, for a student that is made narrower; 0 for others. None: not
    counted, in older records.
    """


@dataclass(frozen=True)
class AugmentedRecord:
    """How a folder of augmented rows was made."""

    task: str
    source: str
    """Hash of the training rows that were augmented, without the held-out ones."""

    sources: int
    """Number of training rows that were augmented."""

    rows: int
    truncated: int
    """Rows that were truncated to max_length."""

    max_length: int
    tokenizer: str
    """Hash of the tokenizer's state."""


@dataclass(frozen=True)
class TaskRecord:
    """The task that a classifier was trained for, so that it can be used with nothing but its folder."""

    definition: dict[str, Any]
    """The settings under `task`, without those of augmentation."""

    max_length: int
    """Tokens of a row at most; longer rows were truncated."""

    source: Literal["demo", "files", "hub"]
    """Where its rows came from. The folder of files is not recorded: it is a path on one machine."""


@dataclass(frozen=True)
class StageRecord:
    """stage.json: how an artifact was made. Only the fingerprint decides whether it can be used again."""

    format: int
    """2; artifacts of format 1 lack `trained_for`."""

    name: str
    kind: str
    title: str
    task: str
    texts: int
    """Texts in a row, 1 or 2."""

    fingerprint: str
    inputs: dict[str, str]
    """Role (student, teacher, data) -> key of the artifact in that role, or `pretrained`."""

    settings: dict[str, Any]
    """The stage's settings, and those of its training under `train`."""

    seed: int
    steps: int
    """Optimizer steps; 0 if nothing was trained."""

    examples: int
    """Training rows seen, over all processes, before and after interruptions."""

    seconds: float
    world_size: int
    precision: str
    """The trainer's arithmetic, such as bf16-mixed."""

    device: str
    created: str
    versions: dict[str, str]
    size: SizeRecord | None = None
    """Of a student; None for rows."""

    selected: str | None = None
    """Which checkpoint was kept, `best` or `last`; None if nothing was trained."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, score) of each validation."""

    flops: FlopsRecord | None = None
    """Of a student; None for rows."""

    selected_step: int | None = None
    augmented: AugmentedRecord | None = None
    """Of rows; None for a student."""

    trained_for: TaskRecord | None = None
    """Of a student with a task head; None for others, and in format 1."""

    workload: str | None = None
    """Hash of what decides the time and the memory of a step, see `bitkd.pipeline.estimate`; None if nothing was trained."""

    seconds_before: float = 0.0
    """Those of `seconds` that do not depend on the steps: estimating importance, computing the teacher's logits, and compiling
    in the first step."""

    validation_seconds: float | None = None
    """Those of `seconds` from the start of a validation to the next step. None: not measured, in older records and for rows.
    """

    saving_seconds: float | None = None
    """Those of `seconds` in which checkpoints to resume from were saved; None as above."""

    padded_tokens: int | None = None
    """Tokens of `examples` with their padding: rows times length of each batch; None as above."""

    tokens: int | None = None
    """Tokens of `examples` without padding; None as above."""

    selection_rows: int | None = None
    """Rows of the set whose score chose the checkpoint; None if it was not chosen by a score, and in older records."""

    memory_mib: float | None = None
    """Peak of the first process: of its GPU if it has one, else its resident memory; None if it is not known."""

    checksums: dict[str, str] = field(default_factory=dict)
    """File name -> SHA-256 of every other file of the artifact."""

    def as_data(self) -> dict[str, Any]:
        """The content of the JSON file: a student has no `augmented`, rows have no fields of a student."""
        data = asdict(self)
        absent = {"augmented"} if self.augmented is None else {"size", "selected", "curve", "flops", "selected_step"}
        optional = ("selected_step", "trained_for", "workload", "memory_mib", *_MEASURED)
        absent |= {name for name in optional if data[name] is None}
        absent |= set() if self.seconds_before else {"seconds_before"}
        if data["flops"] and data["flops"]["importance"] is None:
            del data["flops"]["importance"]
        return {name: value for name, value in data.items() if name not in absent}


_MEASURED = ("validation_seconds", "saving_seconds", "padded_tokens", "tokens", "selection_rows")


@dataclass(frozen=True)
class ExportRecord:
    """export.json: what `bitkd export` made, so that the folder can be used with nothing else. It holds no paths."""

    format: int
    """1."""

    form: str
    """packed, unpacked or onnx."""

    task: str
    """Name of the task; empty if the artifact recorded none."""

    texts: int
    """Texts in a row, 1 or 2; 0 if the artifact recorded no task."""

    stage: str
    """Name of the stage that made the artifact; empty if it is not known."""

    fingerprint: str
    """Of that stage; empty if it is not known."""

    created: str
    versions: dict[str, str]
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Dev set -> metric -> value, measured with the exported files, or as the artifact recorded them."""

    measured_on: TaskRecord | None = None
    """The task, length and rows that `metrics` were measured with; None if they are the artifact's. The student may have been
    trained for another task.
    """

    trained_for: TaskRecord | None = None
    checksums: dict[str, str] = field(default_factory=dict)
    """File name -> SHA-256 of every other file but README.md, which may be edited."""

    def as_data(self) -> dict[str, Any]:
        """The content of the JSON file."""
        optional = ("measured_on", "trained_for")
        return {name: value for name, value in asdict(self).items() if name not in optional or value is not None}


@dataclass(frozen=True)
class MetricsRecord:
    """metrics.json: the score, and every metric of each dev set."""

    score: float | None
    """The task's primary metric on the first dev set, larger is better; None without a task head (General KD, rows)."""

    sets: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Dev set -> metric -> value; None if a metric is undefined."""

    def as_data(self) -> dict[str, Any]:
        """The content of the JSON file: the dev sets beside the score."""
        return {"score": self.score, **self.sets}


@dataclass(frozen=True)
class BudgetRecord:
    """The total cost that a run distributes over its stages."""

    unit: str
    """steps, examples, flops or seconds."""

    total: int | float
    shares: dict[str, float | None] = field(default_factory=dict)
    device: str | None = None
    """That the seconds are of; None for other units."""

    def as_data(self) -> dict[str, Any]:
        """Its content in JSON files."""
        return {name: value for name, value in asdict(self).items() if name != "device" or value is not None}


@dataclass(frozen=True)
class StudyRecord:
    """The question that a study decides, see `bitkd.config.sections.StudySpec`."""

    primary: list[str]
    tasks: list[str]
    seeds: list[int]
    margin: float
    alpha: float
    named: str
    """When the run's record first named it (ISO 8601, UTC)."""


@dataclass(frozen=True)
class RunManifest:
    """manifest.json: what a run is. Dictionaries from stage to something are in graph order."""

    task: str
    pipeline: str
    title: str
    seed: int
    metric: str
    metrics: list[str]
    labels: list[str] | None
    """The classes of a row; None if its answer is none of them, as in a regression."""

    processes: int
    hyperparameters: int
    """Number of hyper-parameters that the pipeline and the run set."""

    budget: BudgetRecord | None
    settings: dict[str, Any]
    """Dotted name -> value of every setting that can change a result, and hashes of the data and the model."""

    titles: dict[str, str]
    kinds: dict[str, str]
    upstream: dict[str, dict[str, str]]
    planned: dict[str, str]
    """Stage -> key that its artifact will have."""

    artifacts: dict[str, str] = field(default_factory=dict)
    """Stage -> key of its artifact, for the finished ones."""

    study: StudyRecord | None = None
    """None if the run belongs to no study."""

    def as_data(self) -> dict[str, Any]:
        """The content of the JSON file."""
        data = asdict(self) | {"budget": self.budget.as_data() if self.budget else None}
        return {name: value for name, value in data.items() if name != "study" or value is not None}


@cache
def _adapter(record: Any) -> TypeAdapter[Any]:
    return TypeAdapter(record)


def parse_record(record: type[T], text: str | bytes, where: Path | str, advice: str) -> T:
    """Read a record from its JSON text; no type is converted, except that a whole number is accepted for a float.

    where: the file, for messages.  advice: what to do if it is damaged.  Raises InputError with both and the field.
    """
    try:
        if record is MetricsRecord:
            content = _adapter(dict[str, Any]).validate_json(text, strict=True)
            score = {"score": content.pop("score")} if "score" in content else {}
            text = json.dumps({**score, "sets": content})
        parsed: T = _adapter(record).validate_json(text, strict=True)  # type: ignore[arg-type]  # a class is hashable
        check_values(asdict(parsed), "it", infinite=True)  # type: ignore[call-overload]  # all records are dataclasses
        return parsed
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = f"{place}: {first['msg']}" if place else first["msg"]
        raise InputError(f"{where} is damaged or of another version ({shown(problem, 300)}); {advice}") from error
    except ValueError as error:
        raise InputError(f"{where} is damaged ({error}); {advice}") from error


LARGEST = 1e30
"""Numbers beyond it are no counts, sizes or costs of a training."""


def check_values(content: Any, where: str, infinite: bool = False) -> None:
    """Raise ValueError for numbers without meaning, and for control characters in a text.

    content: plain data of a record.  where: whose it is.
    infinite: allow any float, also inf and nan, which a training that diverged records.
    """
    if isinstance(content, str):
        if wrong := CONTROL.search(content):
            raise ValueError(f"the control character {wrong[0]!r} in {shown(content)} of {shown(where)}")
    elif isinstance(content, int | float):
        if not abs(content) < LARGEST and not (infinite and isinstance(content, float)):
            raise ValueError(f"the number {shown(str(content))} of {shown(where)}")
    elif isinstance(content, dict):
        for key, value in content.items():
            check_values(key, where, infinite)
            check_values(value, where, infinite)
    elif isinstance(content, list | tuple):
        for value in content:
            check_values(value, where, infinite)
