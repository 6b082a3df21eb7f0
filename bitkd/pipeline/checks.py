"""Checks of a run's settings before it starts. Each one raises InputError if something is wrong."""

import math
from pathlib import Path

from bitkd.config.schema import (
    DEMO,
    PRETRAINED,
    Config,
    StageSpec,
    TrainSpec,
    micro_batches,
    settings_of,
    store_root,
)
from bitkd.data.files import find_file
from bitkd.errors import InputError
from bitkd.names import check_distinct, check_name
from bitkd.pipeline.graph import Node, order
from bitkd.pipeline.inputs import row_makers, upstream_of, uses_corpus
from bitkd.pipeline.precision_checks import check_precision
from bitkd.sources.locations import make_documents
from bitkd.stages.kinds import AUGMENT, Kind, kind_of
from bitkd.stages.spec import ATTENTION, ATTENTION_OUTPUT, HIDDEN, TERMS, LossSpec

RESERVED_STAGES = (PRETRAINED, "logs", "report")
"""What a run calls its own: a source, the folder of its logs, its summary in wandb."""


def check_names(config: Config) -> None:
    """Check the names of the run, the pipeline and the stages, which become names of folders."""
    run, pipeline = config.run.name, config.pipeline.name
    if run is not None:
        check_name(run, "run.name=")
    if pipeline or run is None:
        check_name(pipeline, "pipeline.name=")
    for name, stage in config.stages.items():
        check_name(name, "stages.")
        if not all(character.isalnum() or character in "_-" for character in name):
            raise InputError(
                f"stages.{name}: the name of a stage is a part of dotted keys; use letters, digits, _ and -"
            )
        if name.casefold() in RESERVED_STAGES or (name.casefold() == AUGMENT and stage.kind != AUGMENT):
            raise InputError(f"stages.{name}: {name} has a meaning of its own in a run; choose another name")
    check_distinct(config.stages, "stages.")
    folder = Path(config.run.dir).expanduser().resolve() / config.task.name / (run or pipeline)
    if folder.is_relative_to(store_root(config)):
        raise InputError(f"the run {folder} would be inside the store {store_root(config)}; set another run.store=")


def check_graph(config: Config) -> None:
    """Check that the kinds, teachers, heads and precisions of the stages fit together."""
    for name, stage in config.stages.items():
        _check_stage(name, stage, kind_of(stage.kind, f"stages.{name}.kind="), config)
    stages = config.stages
    nodes = {name: Node(name, upstream_of(stage, config)) for name, stage in stages.items()}
    headless = {PRETRAINED}
    split: set[str] = set()
    for name in order(nodes, {PRETRAINED}):
        stage, kind = stages[name], kind_of(stages[name].kind)
        if kind.makes_rows:
            continue
        if kind.distils and kind.trains_head(stage.loss) and stage.teacher in headless:
            raise InputError(
                f"stages.{name}.teacher={stage.teacher} has no trained head to learn logits from; use another"
            )
        if kind.fine_tunes and stage.student in headless - {PRETRAINED}:
            raise InputError(
                f"stages.{name}.student={stage.student} has no head to fine-tune; use {PRETRAINED}, or a stage that has one"
            )
        if kind.reshapes and stage.student in headless:
            headless.add(name)
        elif not kind.trains and stage.student in headless:
            raise InputError(
                f"stages.{name}.student={stage.student} has no head; put a KD stage on the task between them"
            )
        check_precision(name, stage, kind, stages, split)


def _check_stage(name: str, stage: StageSpec, kind: Kind, config: Config) -> None:
    """Check that a stage's settings fit its kind."""
    where, augmentation = f"stages.{name}", config.task.augmentation
    if kind.distils and not stage.teacher:
        raise InputError(f"{where}.teacher is missing; a {kind.name} stage needs a node or {PRETRAINED}")
    if not kind.distils and stage.teacher:
        raise InputError(f"{where}.teacher={stage.teacher}: a {kind.name} stage has no teacher; remove it")
    if stage.checkpoint and not kind.fine_tunes:
        raise InputError(f"{where}.checkpoint is only for a finetune stage, this is {kind.name}; remove it")
    if kind.distils and not kind.active_terms(stage.loss):
        more = [name for name in TERMS if name not in LossSpec.__dataclass_fields__]
        raise InputError(
            f"{where}.loss has no term left; give one of {', '.join(kind.terms)} a positive weight, or one of "
            f"{', '.join(f'extra.{name}' for name in more)}"
        )
    if stage.loss.extra and not kind.distils:
        name = next(iter(stage.loss.extra))
        raise InputError(f"{where}.loss.extra.{name}: a {kind.name} stage has no teacher to learn it from; remove it")
    reads_tokens = bool({HIDDEN, ATTENTION, ATTENTION_OUTPUT} & set(kind.active_terms(stage.loss)))
    one_length = kind.on_corpus or config.data.pad_to_max_length
    if stage.loss.padding != "skip" and reads_tokens and not one_length:
        raise InputError(
            f"{where}.loss.padding={stage.loss.padding} takes means over padding, so all batches must have one length; set "
            f"data.pad_to_max_length=true, or {where}.loss.padding=skip"
        )
    if kind.on_corpus and config.data.streaming:
        settings = settings_of(stage, config.train)
        share = config.budget.total is not None and config.budget.shares.get(name)
        if not settings["max_steps"] and not settings["max_tokens"] and not share:
            raise InputError(f"{where} reads a stream, which has no epochs; give {where}.max_steps= or .max_tokens=")
        if settings["warmup_epochs"] is not None:
            raise InputError(
                f"{where} reads a stream, which has no epochs to warm up for (warmup_epochs={settings['warmup_epochs']}); give "
                f"{where}.warmup_ratio="
            )
    if kind.makes_rows and stage.student != PRETRAINED:
        raise InputError(f"{where}.student={stage.student}: an {kind.name} stage has none; remove it")
    if stage.augmented and not augmentation.enabled and not row_makers(config):
        raise InputError(f"{where}.augmented=true, but nothing is augmented; set task.augmentation.enabled=true")
    if stage.augmented and (not kind.trains or kind.on_corpus):
        raise InputError(f"{where}.augmented=true: a {kind.name} stage does not train on the task; remove it")
    if stage.student in row_makers(config) and not kind.makes_rows:
        raise InputError(f"{where}.student={stage.student} makes rows, not a student; use another")
    if stage.seed is not None and not 0 <= stage.seed < 2**32:
        raise InputError(f"{where}.seed={stage.seed} is out of range; use 0 to {2**32 - 1}")


def check_training(config: Config) -> None:
    """Check the budgets, rates and batch sizes of the run and of each stage that trains."""
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
    if config.train.warmup_epochs is not None and config.train.warmup_ratio != TrainSpec().warmup_ratio:
        raise InputError(
            f"train.warmup_epochs={config.train.warmup_epochs} and train.warmup_ratio={config.train.warmup_ratio} both say how "
            "long stages warm up; set train.warmup_epochs=null for the ratio"
        )
    for name, stage in config.stages.items():
        kind = kind_of(stage.kind)
        if stage.max_tokens is not None and not kind.on_corpus:
            raise InputError(f"stages.{name}.max_tokens: a budget in tokens is for General KD; use max_steps or epochs")
        if kind.trains and not stage.checkpoint:
            _check_stage_training(name, stage, config.train, parts)


def _check_stage_training(name: str, stage: StageSpec, train: TrainSpec, parts: int) -> None:
    settings = settings_of(stage, train)
    if stage.warmup_epochs is not None and stage.warmup_ratio is not None:
        raise InputError(
            f"stages.{name}.warmup_epochs={stage.warmup_epochs} and .warmup_ratio={stage.warmup_ratio} both say how long the "
            "stage warms up; set one of them to null"
        )

    def refuse(key: str, problem: str) -> None:
        own = getattr(stage, key) is not None or (key == "lr" and stage.lr_scale != 1)
        raise InputError(f"{f'stages.{name}' if own else 'train'}.{key}={settings[key]} {problem}")

    for key, low, high in (
        ("lr", 0, 1),
        ("scales_lr", 0, 1),
        ("warmup_ratio", 0, 1),
        ("weight_decay", 0, 1),
        ("gradient_clip", 0, math.inf),
    ):
        if not low <= settings[key] <= high:
            refuse(key, "is negative" if high == math.inf else f"is outside {low} to {high}")
    if settings["warmup_epochs"] is not None and not 0 <= settings["warmup_epochs"] < math.inf:
        refuse("warmup_epochs", "is no length; use 0 or a positive number")
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


def check_paths(config: Config) -> None:
    """Check that the local files and folders that the settings name exist, without opening them."""
    data, task = config.data, config.task
    check_files(config, [task.files.train, *task.files.dev.values()])
    if uses_corpus(config) and DEMO not in data.corpus:
        make_documents(config)
    models = {f"stages.{name}.checkpoint=": stage.checkpoint for name, stage in config.stages.items()}
    models |= {"model.pretrained=": config.model.pretrained, "task.augmentation.model=": task.augmentation.model}
    for setting, model in models.items():
        if model is None or model == DEMO:
            continue
        folder = Path(model).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise InputError(
                f"{setting}{model} is no checkpoint: it has no config.json; name a folder with a saved model"
            )
        if not folder.is_dir() and (folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1):
            raise InputError(f"{setting}{model}: there is no such folder; give an existing folder or a hub id")


def check_files(config: Config, names: list[str]) -> None:
    """Check that the task's files `names` are in data.dir, if that is given."""
    data = config.data
    if data.dir is not None and data.dir != DEMO:
        for name in names:
            find_file(config.task, name, data.dir)
