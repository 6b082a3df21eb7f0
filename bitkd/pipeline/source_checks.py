"""Checks of what a run reads: model, rows, corpus, checkpoints. Each one raises InputError if something is wrong."""

import math
from pathlib import Path

from bitkd.config.schema import Config
from bitkd.data.batches import MULTIPLE, effective_batch_size
from bitkd.data.hub import has_tokenizer, resolve_pretrained
from bitkd.errors import InputError
from bitkd.files import read_json
from bitkd.models.labels import label_order
from bitkd.models.marks import is_packed
from bitkd.models.spec import check_shape
from bitkd.pipeline.inputs import row_makers, uses_corpus
from bitkd.pretrained.files import read_config_data
from bitkd.sources.sources import Sources
from bitkd.stages.kinds import kind_of

POOLING = "1_Pooling/config.json"
"""What sentence-transformers writes of how a sentence encoder makes embeddings."""


def check_sources(sources: Sources) -> None:
    """Check that the model, the student's shape, the task's rows, the corpus and augmentation fit together."""
    _check_model(sources)
    _check_shapes(sources)
    _check_candidates(sources)
    _ = sources.task
    if uses_corpus(sources.config):
        _ = sources.corpus


def _check_shapes(sources: Sources) -> None:
    """Check that the student's shape fits the model that it is made from: the pre-trained one, or a given teacher."""
    config = sources.config
    for name, stage in config.stages.items():
        if not kind_of(stage.kind).reshapes:
            continue
        source = config.stages.get(stage.student)
        given = source.checkpoint if source else None
        folder = resolve_pretrained(given, f"stages.{stage.student}.checkpoint=") if given else sources.model
        try:
            check_shape(config.student, sources.shape_of(folder))
        except InputError as error:
            raise InputError(f"stages.{name}: {error}") from error


def _check_model(sources: Sources) -> None:
    """Check that the pre-trained model is a plain one and can read rows of data.max_length."""
    config, model = sources.config, sources.model_info(sources.model)
    if model.artifact:
        raise InputError(
            f"model.pretrained={config.model.pretrained} is a bitkd artifact; name a plain pre-trained encoder (a fine-tuned "
            "teacher goes into stages.teacher.checkpoint=)"
        )
    _check_architecture(sources, sources.model, f"model.pretrained={config.model.pretrained}")
    sources.check_encoder(sources.model)
    longest = min(model.positions, sources.tokenizer_info(sources.model).longest)
    padded = math.ceil(config.data.max_length / MULTIPLE) * MULTIPLE
    if config.data.max_length < 8 or padded > longest:
        raise InputError(
            f"data.max_length={config.data.max_length} is outside what {config.model.pretrained} can read; "
            f"use 8 to {longest // MULTIPLE * MULTIPLE} (batches are padded to a multiple of {MULTIPLE})"
        )


def _check_architecture(sources: Sources, folder: Path, where: str) -> None:
    """Check that a model like the one in `folder` can be distilled and quantized as the run does."""
    try:
        found = sources.architecture(folder)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    config = sources.config
    for name, stage in config.stages.items():
        if stage.quant.pooler and not found.pooler:
            raise InputError(f"stages.{name}.quant.pooler=true: {where} has no pooler to quantize; use false")
        if stage.quant.pooler and not config.task.of_kind.pools:
            raise InputError(
                f"stages.{name}.quant.pooler=true: tasks of kind {config.task.kind} use no pooler; use false"
            )
    if config.student.leaves_out and found.narrowing:
        raise InputError(
            f"{' '.join(config.student.leaves_out)}: heads and neurons of {where} cannot be left out ({found.narrowing}); use "
            "student.width=1 and null for the others"
        )


def _check_candidates(sources: Sources) -> None:
    """Check the trained head of a masked language model if the settings ask for one: a missing head would be random."""
    if row_makers(sources.config):
        model, spec = sources.augmentation_model, sources.config.task.augmentation
        sources.tokenizer_info(model)
        if spec.source != "vectors" or not spec.vectors:
            sources.check_embeddings(model)
        if spec.source == "masked_lm":
            sources.check_masked_lm(model)


def check_rows(name: str, rows: dict[str, int], batch_size: int, config: Config) -> None:
    """Check that every process has rows to train on and to validate on. Lightning would skip a process that has none."""
    processes = config.trainer.devices * config.trainer.num_nodes
    if "train" in rows:  # the rows of a stream are not counted
        effective_batch_size(rows["train"], batch_size, processes * config.trainer.accumulate_grad_batches)
    for split, count in rows.items():
        if count < processes:
            raise InputError(
                f"stages.{name}: {count} rows of {split} cannot be shared by {processes} processes; use fewer, or more data"
            )


def _takes_mean(folder: Path) -> bool:
    """Whether a sentence encoder's embedding is the mean over tokens, as far as its folder says."""
    pooling = read_json(folder / POOLING)
    return not isinstance(pooling, dict) or pooling.get("pooling_mode_mean_tokens") is not False


def check_checkpoint(folder: Path, sources: Sources, where: str, names: list[str] | None) -> None:
    """Raise InputError if the checkpoint in `folder` is packed, has no trained head for this task, or another tokenizer."""
    config = sources.config
    if is_packed(read_config_data(folder)):
        raise InputError(
            f"{where} is packed, for inference only; name the artifact that it was exported from, or save what "
            "bitkd.load_student(FOLDER) makes of it with bitkd.save_student"
        )
    if not sources.model_info(folder).artifact:
        _check_architecture(sources, folder, where)
    try:
        own = sources.labels_of(folder, config.task.kind)
        if config.task.of_kind.labels is not False:
            label_order(own, config.task.labels, names)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if config.task.of_kind.cosines and not _takes_mean(folder):
        raise InputError(
            f"{where} does not take the mean over tokens as its embedding ({POOLING}); bitkd does: use a sentence encoder that "
            "does too, or leave the setting out to train a teacher on the labels"
        )
    found, tokenizer = sources.model_info(folder), sources.tokenizer_info(sources.model)
    advice = "set model.pretrained= to the model that it was fine-tuned from"
    if found.vocabulary < tokenizer.size:
        raise InputError(
            f"{where} has {found.vocabulary} tokens, {config.model.pretrained}'s tokenizer {tokenizer.size}; {advice}"
        )
    if found.positions < config.data.max_length:
        raise InputError(
            f"{where} reads at most {found.positions} tokens; lower data.max_length={config.data.max_length}"
        )
    if has_tokenizer(folder) and (difference := sources.token_difference(folder)):
        raise InputError(f"{where} has another tokenizer than {config.model.pretrained}: {difference}; {advice}")
