"""The teacher's logits of all training rows: computed once before a stage's first step, and kept beside the store."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitkd.config.schema import PRETRAINED, cache_root
from bitkd.data.batches import LoaderSpec
from bitkd.data.sampler import EvalBatchSampler
from bitkd.data.tokenized import lengths_of
from bitkd.files import digest, follow_umask, is_left_over, temporary_name
from bitkd.models.inputs import model_inputs
from bitkd.pipeline.context import StageContext
from bitkd.pipeline.identity import FORMAT
from bitkd.stages.distillation import DistillationModule
from bitkd.store.artifacts import read_artifact

BATCH_ROWS = 64
"""Rows of a batch. Fixed, because the rounding of logits follows the batch, and the logits decide the result."""


@dataclass(frozen=True)
class KeptLogits:
    """What is kept of a teacher on a training set."""

    logits: Tensor
    """(largest index + 1, outputs) FP32; row i is that of the training row with `index` i, NaN if there is none."""

    rows: list[int]
    """Sums over the rows of 1, padded length and its square: the FLOPs of the forwards follow from them."""

    seconds: float
    """What computing them took. Every stage that trains on them counts it, so that its cost does not depend on what was
    kept before."""


def teacher_logits(context: StageContext, module: DistillationModule, trainer: pl.Trainer) -> KeptLogits:
    """The logits of a stage's teacher on its training rows: read from `cache`, else computed by all ranks and kept there.

    trainer: gives the precision.  Raises StoppedError if the run is asked to stop meanwhile; nothing is kept then.
    """
    config, group = context.config, context.group
    loader = LoaderSpec(eval_batch_size=BATCH_ROWS, num_workers=config.data.num_workers)
    data = context.sources.task_module(loader, context.plan.augmented_rows(context.stage))
    index = np.asarray(data.train.with_format("numpy")["index"][:])
    file = cache_root(config) / "logits" / f"{_identity(context)}.safetensors"
    shape = int(index.max()) + 1, int(module.teacher.config.num_labels)
    kept = group.broadcast(_read(file, shape) if group.is_global_zero else None)
    if kept is not None:
        context.say(f"{context.stage.name}: the teacher's logits of {len(index):,} rows were kept before")
        return kept
    context.say(f"{context.stage.name}: computing the teacher's logits of {len(index):,} rows")
    kept = _compute(context, module.teacher, trainer, data, shape)
    where = ""
    if group.is_global_zero:
        try:
            _write(file, kept)
        except OSError as error:  # the run itself can go on
            where = f", but not on the disk: {file.parent} cannot be written ({error.strerror or error})"
    context.say(f"{context.stage.name}: the teacher's logits of {len(index):,} rows are kept{where}")
    return kept


def _identity(context: StageContext) -> str:
    """Digest of all that decides the logits: the teacher's weights, the rows, their tokens, and the arithmetic."""
    plan, sources, config = context.plan, context.sources, context.config
    teacher, augmented = context.stage.upstream["teacher"], plan.augmented_rows(context.stage)
    checkpoint = sources.model if teacher == PRETRAINED else context.store.path(plan[teacher].key)
    return digest(
        [
            [FORMAT, BATCH_ROWS, config.trainer.precision, torch.device(context.group.device).type],
            sources.hash_of(checkpoint) if teacher == PRETRAINED else read_artifact(checkpoint).stage.checksums,
            [sources.task_fingerprint, config.data.max_length],
            [sources.tokenizer_info(sources.model).hash, list(sources.tokenizer.model_input_names)],
            read_artifact(augmented).stage.checksums if augmented is not None else None,
        ]
    )


def _compute(context: StageContext, teacher: Any, trainer: pl.Trainer, data: Any, shape: tuple[int, int]) -> KeptLogits:
    began, device = time.monotonic(), torch.device(context.group.device)
    teacher.to(device)
    found = [(torch.empty(0, dtype=torch.long), torch.empty(0, shape[1], device=device))]  # a rank may have no batch
    sums = [0, 0, 0]
    with torch.inference_mode():
        for batch in _batches(context, data):
            columns = {name: column.to(device, non_blocking=True) for name, column in batch.items()}
            with trainer.precision_plugin.forward_context():
                logits = teacher(**model_inputs(columns, teacher)).logits
            found.append((batch["index"], logits.float()))
            rows, length = batch["input_ids"].shape
            sums = [total + rows * length**power for power, total in enumerate(sums)]
    own = (
        torch.cat([index for index, _ in found]),
        torch.cat([logits for _, logits in found]).cpu(),
    )
    kept, totals = torch.full(shape, torch.nan), [0, 0, 0]
    parts: list[Any] = [(own, sums)]
    if context.group.world_size > 1:  # the trainer has not joined the group yet
        parts = [None] * context.group.world_size
        torch.distributed.all_gather_object(parts, (own, sums))
    for (index, logits), part in parts:
        kept[index] = logits
        totals = [total + more for total, more in zip(totals, part)]
    return KeptLogits(kept, totals, round(time.monotonic() - began, 2))


def _batches(context: StageContext, data: Any) -> Iterator[dict[str, Tensor]]:
    """This rank's batches, of rows of similar length. The batches are the same for any number of processes.

    All ranks vote before each on whether to stop; raises StoppedError on all of them.
    """
    group, rows = context.group, data.train
    batches = EvalBatchSampler(lengths_of(rows), BATCH_ROWS).batches
    loader = iter(data.loader_of(_rows_of_rank(rows, batches, group.rank, group.world_size)))
    for number in range(0, len(batches), group.world_size):
        context.stopping.check(group.any(context.stopping.requested))
        if number + group.rank < len(batches):
            yield next(loader)


def _rows_of_rank(rows: Dataset, batches: list[list[int]], rank: int, world_size: int) -> Dataset:
    """The rows of every world_size-th batch. They are sorted by length, so that a loader makes the same batches again."""
    if world_size == 1:
        return rows
    return rows.select([row for batch in batches[rank::world_size] for row in batch])


def _read(file: Path, shape: tuple[int, int]) -> KeptLogits | None:
    """What a file holds; None if there is none, or it is damaged or of another shape."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as content:
            facts, logits = content.metadata() or {}, content.get_tensor("logits").clone()
        kept = KeptLogits(logits, [int(total) for total in json.loads(facts["rows"])], float(facts["seconds"]))
        whole = tuple(logits.shape) == shape and logits.dtype == torch.float32 and len(kept.rows) == 3
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return kept if whole and facts.get("checksum") == _checksum(logits) else None


def _write(file: Path, kept: KeptLogits) -> None:
    """Write a file under another name, then rename it: a reader sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in file.parent.iterdir():
        if is_left_over(old.name):
            old.unlink(missing_ok=True)
    facts = {"rows": json.dumps(kept.rows), "seconds": str(kept.seconds), "checksum": _checksum(kept.logits)}
    temporary = file.with_name(temporary_name(file.name))
    try:
        save_file({"logits": kept.logits}, temporary, metadata=facts)
        follow_umask(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _checksum(logits: Tensor) -> str:
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()
