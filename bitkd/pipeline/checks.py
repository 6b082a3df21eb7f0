"""Everything that can be wrong with a run and be found before it starts; each check raises an InputError."""

import math
from pathlib import Path

from bitkd.config.schema import PRETRAINED, Config, StageSpec, TrainSpec, micro_batches, settings_of
from bitkd.data.batches import MULTIPLE, fitting_batch
from bitkd.data.hub import has_tokenizer, resolve_pretrained
from bitkd.errors import InputError, nearest
from bitkd.models.labels import label_order
from bitkd.models.spec import check_shape
from bitkd.pipeline.graph import Node, order
from bitkd.pipeline.inputs import upstream_of
from bitkd.sources.facts import SourceFacts
from bitkd.stages.kinds import AUGMENT, DISTILLATION, KINDS, TRAINED


def check_graph(config: Config) -> None:
    """Kinds, teachers, heads, precisions: what each node says must fit what it comes from."""
    stages = config.stages
    kinds = {stage.kind for stage in stages.values()}
    for name, stage in stages.items():
        if stage.kind not in KINDS:
            raise InputError(f"stages.{name}.kind={stage.kind} is unknown; {nearest(stage.kind, KINDS)}")
        if stage.kind in DISTILLATION and not stage.teacher:
            raise InputError(f"stages.{name}.teacher is missing; a {stage.kind} stage needs a node or {PRETRAINED}")
        if stage.kind not in DISTILLATION and stage.teacher:
            raise InputError(f"stages.{name}.teacher={stage.teacher}: a {stage.kind} stage has no teacher; remove it")
        if stage.checkpoint and stage.kind != "finetune":
            raise InputError(f"stages.{name}.checkpoint is only for a finetune stage, this is {stage.kind}; remove it")
    for name, stage in stages.items():
        if stage.kind in DISTILLATION:
            terms = DISTILLATION[stage.kind]
            if not any(getattr(stage.loss, term) > 0 for term in terms):
                raise InputError(
                    f"stages.{name}.loss has no term left; give one of {', '.join(terms)} a positive weight"
                )
        if stage.kind == "general" and config.data.streaming:
            settings = settings_of(stage, config.train)
            shares = config.budget.total is not None and config.budget.shares.get(name)
            if not settings["max_steps"] and not settings["max_tokens"] and not shares:
                raise InputError(
                    f"stages.{name} reads a stream, which has no epochs; give stages.{name}.max_steps= or .max_tokens="
                )
        if stage.kind == AUGMENT and stage.student != PRETRAINED:
            raise InputError(f"stages.{name}.student={stage.student}: an {AUGMENT} stage has none; remove it")
        if stage.augmented and not config.task.augmentation.enabled and AUGMENT not in kinds:
            raise InputError(
                f"stages.{name}.augmented=true, but nothing is augmented; set task.augmentation.enabled=true"
            )
        if stage.augmented and (stage.kind not in TRAINED or stage.kind == "general"):
            raise InputError(
                f"stages.{name}.augmented=true: a {stage.kind} stage does not train on the task; remove it"
            )
        if config.stages.get(stage.student, stage).kind == AUGMENT and stage.kind != AUGMENT:
            raise InputError(f"stages.{name}.student={stage.student} makes rows, not a student; use another")
        if stage.seed is not None and not 0 <= stage.seed < 2**32:
            raise InputError(f"stages.{name}.seed={stage.seed} is out of range; use 0 to {2**32 - 1}")
    nodes = {name: Node(name, upstream_of(stage, config)) for name, stage in stages.items()}
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
        _check_precision(name, stage, stages, split)


def _check_precision(name: str, stage: StageSpec, stages: dict[str, StageSpec], split: set[str]) -> None:
    if stage.kind in ("general", "init") and stage.student in split:
        raise InputError(
            f"stages.{name}.student={stage.student} is split and cannot be cut again; cut before splitting"
        )
    if stage.kind == "split":
        if stage.quant.embedding_bits == 2:
            raise InputError(
                f"stages.{name}.quant.embedding_bits=2: splitting makes binary embeddings of ternary ones; use 1, or 32"
            )
        student = stages.get(stage.student, stage)
        if student.quant.weight_bits == 2 and student.quant.word_bits not in (2, 32):
            raise InputError(
                f"stages.{name}: the word embeddings of its student {stage.student} are {student.quant.word_bits}-bit and cannot "
                "be split; use embedding_bits=32, or null for the weights' bits"
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


def check_training(config: Config) -> None:
    """Budgets, rates and batches, of the run and of each stage that trains."""
    trainer = config.trainer
    parts = micro_batches(trainer)
    if min(trainer.devices, trainer.num_nodes, trainer.accumulate_grad_batches) < 1:
        raise InputError("trainer.devices, trainer.num_nodes and trainer.accumulate_grad_batches must be at least 1")
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


def check_shapes(config: Config, sources: SourceFacts) -> None:
    """The student's shape must fit what it is cut from: the pre-trained model, or a given teacher."""
    for name, stage in config.stages.items():
        if stage.kind not in ("general", "init"):
            continue
        source = config.stages.get(stage.student)
        given = source.checkpoint if source else None
        folder = resolve_pretrained(given, f"stages.{stage.student}.checkpoint=") if given else sources.model
        source_shape = sources.shape_of(folder)
        try:
            check_shape(config.student, *source_shape)
        except InputError as error:
            raise InputError(f"stages.{name}: {error}") from error


def check_model(config: Config, sources: SourceFacts) -> None:
    """The pre-trained model must be a plain one, and read rows of data.max_length."""
    model = sources.model_of(sources.model)
    if model.artifact:
        raise InputError(
            f"model.pretrained={config.model.pretrained} is a bitkd artifact; name a plain pre-trained encoder (a fine-tuned "
            "teacher goes into stages.teacher.checkpoint=)"
        )
    longest = min(model.positions, sources.tokenizer.longest)
    padded = math.ceil(config.data.max_length / MULTIPLE) * MULTIPLE
    if config.data.max_length < 8 or padded > longest:
        raise InputError(
            f"data.max_length={config.data.max_length} is outside what {config.model.pretrained} can read; "
            f"use 8 to {longest // MULTIPLE * MULTIPLE} (batches are padded to a multiple of {MULTIPLE})"
        )


def check_candidates(config: Config, sources: SourceFacts) -> None:
    """A masked language model that is asked for by name must have a trained head; what is missing would be random."""
    spec = config.task.augmentation
    if any(stage.kind == AUGMENT for stage in config.stages.values()):
        model = sources.augmentation_model
        sources.tokenizer_of(model)
        if spec.source == "masked_lm":
            sources.check_masked_lm(model)


def check_rows(name: str, rows: dict[str, int], batch_size: int, config: Config) -> None:
    """Every process must have something to train on and, as Lightning skips one without, something to validate on."""
    processes = config.trainer.devices * config.trainer.num_nodes
    if "train" in rows:  # a stream's are not counted
        fitting_batch(rows["train"], batch_size, processes * config.trainer.accumulate_grad_batches)
    for split, count in rows.items():
        if count < processes:
            raise InputError(
                f"stages.{name}: {count} rows of {split} cannot be shared by {processes} processes; use fewer, or more data"
            )


def check_checkpoint(folder: Path, config: Config, sources: SourceFacts, where: str, names: list[str] | None) -> None:
    """InputError where the checkpoint in `folder` has no trained head for this task, or reads other tokens."""
    label_order(sources.labels_of(folder), config.task.labels, names)
    found = sources.model_of(folder)
    advice = "set model.pretrained= to the model that it was fine-tuned from"
    if found.vocabulary < sources.tokenizer.size:
        raise InputError(
            f"{where} has {found.vocabulary} tokens, {config.model.pretrained}'s tokenizer {sources.tokenizer.size}; {advice}"
        )
    if found.positions < config.data.max_length:
        raise InputError(
            f"{where} reads at most {found.positions} tokens; lower data.max_length={config.data.max_length}"
        )
    if has_tokenizer(folder) and not sources.reads_alike(folder):
        raise InputError(f"{where} has another tokenizer than {config.model.pretrained}; {advice}")
