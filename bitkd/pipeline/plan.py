"""From a configuration to a checked plan: which stages, in which order, with which fingerprints and states."""

import math
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bitkd.config.load import nearest
from bitkd.config.schema import PRETRAINED, Config, StageSpec, TrainSpec, settings_of
from bitkd.data.augment import check_augmentation
from bitkd.data.base import MULTIPLE
from bitkd.data.candidates import load_masked_lm
from bitkd.data.hub import has_tokenizer, load_tokenizer, resolve_pretrained, same_tokens
from bitkd.data.sampler import fitting_batch
from bitkd.errors import InputError
from bitkd.models.artifact import is_artifact, load_classifier, load_config, permute_labels
from bitkd.models.student import check_shape, spec_of
from bitkd.pipeline.graph import Node, fingerprints, order
from bitkd.pipeline.record import RunRecord
from bitkd.pipeline.sources import Sources, folder_hash, open_sources, store_root
from bitkd.pipeline.store import Store, checksum, read_artifact
from bitkd.stages import (
    DistillationModule,
    FineTune,
    GeneralDistillation,
    IntermediateDistillation,
    PredictionDistillation,
    SingleStageDistillation,
)

FORMAT = 2
"""Version of what artifacts hold; a change makes every older one stale."""

DISTILLATION: dict[str, type[DistillationModule]] = {
    "general": GeneralDistillation,
    "intermediate": IntermediateDistillation,
    "prediction": PredictionDistillation,
    "single_stage": SingleStageDistillation,
}
TRAINED = {"finetune": FineTune, **DISTILLATION}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Others would hold the latent weights themselves in half precision, or train what artifacts cannot hold."""

AUGMENT = "augment"
KINDS = (*TRAINED, "init", "split", AUGMENT)


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


@dataclass
class Plan:
    """A checked run: stages in order, their sources, the store, the record of earlier runs."""

    config: Config
    sources: Sources
    stages: list[PlannedStage]
    store: Store
    record: RunRecord

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
            rows = read_artifact(folder).stage["augmented"]["rows"]
            _count_steps(stage, max(1, rows // stage.train.batch_size))

    def state(self, stage: PlannedStage) -> str:
        """`done`, `partial` (cut inside), `stale` (finished once with other settings), or `todo`."""
        if self.store.finished(stage.key):
            return "done"
        work = self.store.work(stage.key)
        if any(work.glob("step-*.ckpt")) or any(work.glob("shard-*.arrow")):
            return "partial"
        return "stale" if stage.name in self.record.stages else "todo"


def make_plan(config: Config) -> Plan:
    """Check everything that can be checked before work starts; InputError says what is wrong."""
    record = RunRecord.open(Path(config.run.dir), config.task.name, config.run.name or config.pipeline.name)
    config = _with_augmentation(config)
    if not config.stages:
        raise InputError("the pipeline has no stages; give them under `stages:` in its YAML file")
    _check_graph(config)
    _check_training(config)
    sources = open_sources(config)
    config = sources.config
    if is_artifact(sources.model_config):
        raise InputError(
            f"model.pretrained={config.model.pretrained} is a bitkd artifact; name a plain pre-trained encoder (a fine-tuned "
            "teacher goes into stages.teacher.checkpoint=)"
        )
    uses_corpus = any(stage.kind == "general" for stage in config.stages.values())
    _check_shapes(config, sources)
    _check_length(config, sources)
    _check_candidates(config, sources)
    _ = sources.task_data
    if uses_corpus:
        _ = sources.corpus_data
    stages = [_plan_stage(name, config, sources) for name in config.stages]
    nodes = {stage.name: Node(stage.name, stage.upstream, _identity(stage, config, sources)) for stage in stages}
    hashes = fingerprints(nodes, {PRETRAINED: sources.model_hash})
    for stage in stages:
        stage.fingerprint = hashes[stage.name]
    ordered = order(nodes, {PRETRAINED})
    stages.sort(key=lambda stage: ordered.index(stage.name))
    plan = Plan(config, sources, stages, Store(store_root(config)), record)
    for stage in stages:
        if "data" in stage.upstream and plan.store.finished(plan[stage.upstream["data"]].key):
            plan.settle(stage)
    return plan


def _with_augmentation(config: Config) -> Config:
    """The configuration with an `augment` node before the first stage that trains on augmented rows."""
    spec = config.task.augmentation
    check_augmentation(spec)
    nodes = [name for name, stage in config.stages.items() if stage.kind == AUGMENT]
    if len(nodes) > 1:
        raise InputError(f"{', '.join(nodes)} are all of kind {AUGMENT}; a pipeline augments its task once")
    if nodes or not spec.enabled or spec.path:
        return config
    node = StageSpec(kind=AUGMENT, title="Data augmentation")
    stages: dict[str, StageSpec] = {}
    for name, stage in config.stages.items():
        if AUGMENT not in stages and _wants_augmented(stage):
            stages[AUGMENT] = node
        stages[name] = stage
    return replace(config, stages=stages or {AUGMENT: node})


def _check_candidates(config: Config, sources: Sources) -> None:
    """A masked language model that is asked for by name must have a trained head; what is missing would be random."""
    spec = config.task.augmentation
    if any(stage.kind == AUGMENT for stage in config.stages.values()):
        model = sources.augmentation_model
        load_tokenizer(model)
        if spec.source == "masked_lm":
            load_masked_lm(model)


def _wants_augmented(stage: StageSpec) -> bool:
    on_task = stage.kind in DISTILLATION and stage.kind != "general"
    return on_task if stage.augmented is None else stage.augmented


def _upstream(stage: StageSpec, config: Config) -> dict[str, str]:
    upstream = {"student": stage.student} | ({"teacher": stage.teacher} if stage.teacher else {})
    node = next((name for name, other in config.stages.items() if other.kind == AUGMENT), None)
    return upstream | ({"data": node} if node and _wants_augmented(stage) else {})


def _check_graph(config: Config) -> None:
    stages = config.stages
    for name, stage in stages.items():
        if stage.kind not in KINDS:
            raise InputError(f"stages.{name}.kind={stage.kind} is unknown; {nearest(stage.kind, KINDS)}")
        if stage.kind in DISTILLATION and not stage.teacher:
            raise InputError(f"stages.{name}.teacher is missing; a {stage.kind} stage needs a node or {PRETRAINED}")
        if stage.kind not in DISTILLATION and stage.teacher:
            raise InputError(f"stages.{name}.teacher={stage.teacher}: a {stage.kind} stage has no teacher; remove it")
        if stage.checkpoint and stage.kind != "finetune":
            raise InputError(f"stages.{name}.checkpoint is only for a finetune stage, this is {stage.kind}; remove it")
        if stage.select not in ("auto", "best", "last"):
            raise InputError(f"stages.{name}.select={stage.select} is unknown; use auto, best or last")
    for name, stage in stages.items():
        if stage.kind in DISTILLATION:
            terms = DISTILLATION[stage.kind].terms
            if not any(getattr(stage.loss, term) > 0 for term in terms):
                raise InputError(
                    f"stages.{name}.loss has no term left; give one of {', '.join(terms)} a positive weight"
                )
        if stage.kind == "general" and config.data.streaming:
            budget = settings_of(stage, config.train)
            if not budget["max_steps"] and not budget["max_tokens"]:
                raise InputError(
                    f"stages.{name} reads a stream, which has no epochs; give stages.{name}.max_steps= or .max_tokens="
                )
        if stage.kind == AUGMENT and stage.student != PRETRAINED:
            raise InputError(f"stages.{name}.student={stage.student}: an {AUGMENT} stage has none; remove it")
        if stage.augmented and (stage.kind not in TRAINED or stage.kind == "general"):
            raise InputError(
                f"stages.{name}.augmented=true: a {stage.kind} stage does not train on the task; remove it"
            )
        if config.stages.get(stage.student, stage).kind == AUGMENT and stage.kind != AUGMENT:
            raise InputError(f"stages.{name}.student={stage.student} makes rows, not a student; use another")
        if stage.seed is not None and not 0 <= stage.seed < 2**32:
            raise InputError(f"stages.{name}.seed={stage.seed} is out of range; use 0 to {2**32 - 1}")
    nodes = {name: Node(name, _upstream(stage, config)) for name, stage in stages.items()}
    headless = {PRETRAINED}
    split: set[str] = set()
    for name in order(nodes, {PRETRAINED}):
        stage = stages[name]
        if stage.kind == AUGMENT:
            continue
        uses_logits = stage.kind == "prediction" or (stage.kind == "single_stage" and stage.loss.logits > 0)
        if uses_logits and stage.teacher in headless:
            raise InputError(
                f"stages.{name}.teacher={stage.teacher} has no trained head to learn logits from; use another"
            )
        if stage.kind == "finetune" and stage.student in headless - {PRETRAINED}:
            raise InputError(
                f"stages.{name}.student={stage.student} has no head to fine-tune; use {PRETRAINED}, or a stage that has one"
            )
        if stage.kind in ("general", "init") and stage.student in headless:
            headless.add(name)
        elif stage.kind not in ("finetune", *DISTILLATION) and stage.student in headless:
            raise InputError(
                f"stages.{name}.student={stage.student} has no head; put a KD stage on the task between them"
            )
        _check_precision(name, stage, split)


def _check_shapes(config: Config, sources: Sources) -> None:
    """The student's shape must fit what it is cut from: the pre-trained model, or a given teacher."""
    for name, stage in config.stages.items():
        if stage.kind not in ("general", "init"):
            continue
        source = config.stages.get(stage.student)
        given = source.checkpoint if source else None
        folder = resolve_pretrained(given, f"stages.{stage.student}.checkpoint=") if given else sources.model
        model = load_config(folder)
        try:
            check_shape(config.student, spec_of(model), model.num_hidden_layers)
        except InputError as error:
            raise InputError(f"stages.{name}: {error}") from error


def _check_length(config: Config, sources: Sources) -> None:
    longest = min(sources.model_config.max_position_embeddings, sources.tokenizer.model_max_length)
    padded = math.ceil(config.data.max_length / MULTIPLE) * MULTIPLE
    if config.data.max_length < 8 or padded > longest:
        raise InputError(
            f"data.max_length={config.data.max_length} is outside what {config.model.pretrained} can read; "
            f"use 8 to {longest // MULTIPLE * MULTIPLE} (batches are padded to a multiple of {MULTIPLE})"
        )


def _check_precision(name: str, stage: StageSpec, split: set[str]) -> None:
    if stage.kind in ("general", "init") and stage.student in split:
        raise InputError(
            f"stages.{name}.student={stage.student} is split and cannot be cut again; cut before splitting"
        )
    if stage.kind == "split":
        if stage.quant.embedding_bits == 2:
            raise InputError(
                f"stages.{name}.quant.embedding_bits=2: splitting makes binary embeddings of ternary ones; use 1, or 32"
            )
        if stage.student in split:
            raise InputError(f"stages.{name}.student={stage.student} is split already; split a 2-bit student")
        if stage.quant.weight_bits != 1:
            raise InputError(
                f"stages.{name}.quant.weight_bits={stage.quant.weight_bits}: a split student is binary; use 1"
            )
        split.add(name)
    elif stage.student in split:
        if stage.quant.weight_bits != 1:
            raise InputError(
                f"stages.{name}.quant.weight_bits={stage.quant.weight_bits}, but its student {stage.student} is split into "
                "binary halves; use 1"
            )
        split.add(name)


def _check_training(config: Config) -> None:
    trainer = config.trainer
    parts = trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches
    if min(trainer.devices, trainer.num_nodes, trainer.accumulate_grad_batches) < 1:
        raise InputError("trainer.devices, trainer.num_nodes and trainer.accumulate_grad_batches must be at least 1")
    if trainer.precision not in PRECISIONS:
        raise InputError(f"trainer.precision={trainer.precision} is unsupported; use {', '.join(PRECISIONS)}")
    if config.logger not in ("csv", "wandb"):
        raise InputError(f"logger={config.logger} is unknown; use csv or wandb")
    counts = {
        "data.eval_batch_size": config.data.eval_batch_size,
        "data.importance_rows": config.data.importance_rows,
        "trainer.log_every_n_steps": trainer.log_every_n_steps,
    }
    for key, count in counts.items():
        if count < 1:
            raise InputError(f"{key}={count} is too small; use at least 1")
    if config.data.num_workers < 0:
        raise InputError(f"data.num_workers={config.data.num_workers} is negative; use 0 or more")
    for name, stage in config.stages.items():
        if stage.max_tokens is not None and stage.kind != "general":
            raise InputError(f"stages.{name}.max_tokens: a budget in tokens is for General KD; use max_steps or epochs")
        if stage.kind in TRAINED and not stage.checkpoint:
            _check_stage_training(name, stage, config.train, parts)


def _check_stage_training(name: str, stage: StageSpec, train: TrainSpec, parts: int) -> None:
    settings = settings_of(stage, train)

    def refuse(key: str, problem: str) -> None:
        own = getattr(stage, key) is not None or (key == "lr" and stage.lr_scale != 1)
        raise InputError(f"{f'stages.{name}' if own else 'train'}.{key}={settings[key]} {problem}")

    for key, low, high in (
        ("lr", 0, 1),
        ("warmup_ratio", 0, 1),
        ("weight_decay", 0, 1),
        ("gradient_clip", 0, math.inf),
    ):
        if not low <= settings[key] <= high:
            refuse(key, "is negative" if high == math.inf else f"is outside {low} to {high}")
    for key in ("batch_size", "max_steps", "max_tokens", "eval_every"):
        if settings[key] is not None and settings[key] < 1:
            refuse(key, "is too small; use at least 1")
    if settings["max_steps"] is None and not 0 < settings["epochs"] < math.inf:
        refuse("epochs", "is no training; use a positive number, or max_steps")
    if settings["batch_size"] % parts:
        refuse(
            "batch_size",
            f"does not divide into {parts} equal parts (trainer.devices · trainer.num_nodes · "
            f"trainer.accumulate_grad_batches); use a multiple of {parts}",
        )
    if settings["schedule"] not in ("linear", "constant"):
        refuse("schedule", "is unknown; use linear or constant")


def _plan_stage(name: str, config: Config, sources: Sources) -> PlannedStage:
    spec = config.stages[name]
    train = TrainSpec(**settings_of(spec, config.train))
    seed = spec.seed if spec.seed is not None else zlib.crc32(f"{config.seed}/{name}".encode())
    stage = PlannedStage(name, spec, train, seed, _upstream(spec, config))
    given = config.task.augmentation
    if spec.checkpoint:
        checkpoint = Path(resolve_pretrained(spec.checkpoint, setting=f"stages.{name}.checkpoint="))
        _check_checkpoint(checkpoint, config, sources, f"stages.{name}.checkpoint={spec.checkpoint}", spec.labels)
        stage.checkpoint = checkpoint
    elif "data" in stage.upstream:
        _count_steps(stage, None)
    elif given.enabled and given.path and _wants_augmented(spec):
        stage.augmented = sources.given_rows
        _count_steps(stage, max(1, read_artifact(stage.augmented).stage["augmented"]["rows"] // train.batch_size))
    elif spec.kind in TRAINED:
        data = sources.corpus_data if spec.kind == "general" else sources.task_data
        _check_rows(name, data.num_rows, train.batch_size, config)
        if train.max_tokens and spec.kind == "general":
            train.max_steps = max(1, train.max_tokens // (train.batch_size * config.data.max_length))
        if spec.kind == "general" and config.data.streaming:
            _count_steps(stage, _tenth_of(train))
        else:
            _count_steps(stage, data.steps_per_epoch(train.batch_size))
    return stage


def _tenth_of(train: TrainSpec) -> int:
    """A stream has no epochs: a tenth of the stage is validated in their place."""
    assert train.max_steps
    return max(1, train.max_steps // 10)


def _count_steps(stage: PlannedStage, per_epoch: int | None) -> None:
    """Fill in the steps of a stage.  per_epoch: steps of a pass over its rows; null where they are not there yet."""
    train = stage.train
    stage.settled = per_epoch is not None or bool(train.max_steps and train.eval_every)
    stage.total_steps = train.max_steps or (max(1, math.ceil(train.epochs * per_epoch)) if per_epoch else 0)
    stage.eval_every = min(train.eval_every or per_epoch or 0, stage.total_steps) if stage.settled else 0


def _check_rows(name: str, rows: dict[str, int], batch_size: int, config: Config) -> None:
    """Every process must have something to train on and, as Lightning skips one without, something to validate on."""
    processes = config.trainer.devices * config.trainer.num_nodes
    if "train" in rows:  # a stream's are not counted
        fitting_batch(rows["train"], batch_size, processes * config.trainer.accumulate_grad_batches)
    for split, count in rows.items():
        if count < processes:
            raise InputError(
                f"stages.{name}: {count} rows of {split} cannot be shared by {processes} processes; use fewer, or more data"
            )


def _check_checkpoint(folder: Path, config: Config, sources: Sources, where: str, names: list[str] | None) -> None:
    """InputError where the checkpoint in `folder` has no trained head for this task, or reads other tokens."""
    found = load_config(folder)
    permute_labels(load_classifier(folder), config.task.labels, names)
    advice = "set model.pretrained= to the model that it was fine-tuned from"
    if found.vocab_size < len(sources.tokenizer):
        raise InputError(
            f"{where} has {found.vocab_size} tokens, {config.model.pretrained}'s tokenizer {len(sources.tokenizer)}; {advice}"
        )
    if found.max_position_embeddings < config.data.max_length:
        raise InputError(
            f"{where} reads at most {found.max_position_embeddings} tokens; lower data.max_length={config.data.max_length}"
        )
    if has_tokenizer(folder) and not same_tokens(load_tokenizer(folder), sources.tokenizer):
        raise InputError(f"{where} has another tokenizer than {config.model.pretrained}; {advice}")


def _identity(stage: PlannedStage, config: Config, sources: Sources) -> dict[str, Any]:
    """What changes a stage's numbers, besides what it descends from; never paths, loggers, worker counts."""
    spec = stage.spec
    identity: dict[str, Any] = {"format": FORMAT, "kind": spec.kind, "quant": asdict(spec.quant)}
    identity["precision"] = config.trainer.precision
    if stage.checkpoint is not None:
        return identity | {
            "checkpoint": folder_hash(stage.checkpoint),
            "labels": spec.labels,
            **_task_identity(config, sources),
        }
    if spec.kind == "general":
        identity |= {"data": sources.corpus_data.fingerprint(), "segments": config.data.segments}
        identity |= {"masking": config.data.masking, "streaming": config.data.streaming}
        if config.data.streaming:  # how it is dealt out to readers decides the order of its sequences
            identity |= {"readers": max(1, config.data.num_workers)}
        identity |= {"max_length": config.data.max_length}
    else:
        identity |= _task_identity(config, sources)
    if spec.kind in ("general", "init"):
        identity |= {"shape": asdict(config.student), "seed": stage.seed}
        if config.student.width < 1:
            identity |= {"importance_rows": config.data.importance_rows}
    if spec.kind == AUGMENT:
        return identity | _augmentation_identity(config, sources)
    if stage.trains:
        settings = asdict(stage.train)
        del settings["max_tokens"]
        if "data" not in stage.upstream:
            for name in ("epochs", "max_steps", "eval_every"):
                del settings[name]
            settings |= {"total_steps": stage.total_steps, "eval_every": stage.eval_every}
        if stage.augmented is not None:
            identity["augmented"] = read_artifact(stage.augmented).stage["checksums"]
        identity |= {
            "train": settings,
            "select": spec.select,
            "seed": stage.seed,
            "world_size": config.trainer.devices * config.trainer.num_nodes,
            "accumulate": config.trainer.accumulate_grad_batches,
        }
    if spec.kind in DISTILLATION:
        unread = {"logits", "hidden", "attention"} - set(DISTILLATION[spec.kind].terms)
        identity["loss"] = {name: value for name, value in asdict(spec.loss).items() if name not in unread}
    return identity


def _task_identity(config: Config, sources: Sources) -> dict[str, Any]:
    return {"data": sources.task_data.fingerprint(), "max_length": config.data.max_length}


def _augmentation_identity(config: Config, sources: Sources) -> dict[str, Any]:
    spec = asdict(config.task.augmentation)
    vectors = spec["vectors"]
    for name in ("enabled", "path", "model", "vectors"):
        del spec[name]
    return {
        "spec": spec,
        "model": folder_hash(sources.augmentation_model),
        "vectors": checksum(Path(vectors).expanduser()) if vectors else None,
        "tokenizer": sources.tokenizer_hash,
    }
