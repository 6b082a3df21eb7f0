"""The augmentation node: every rank writes its own shards, rank zero publishes them as an artifact."""

import os
import shutil
import time
import uuid
from pathlib import Path

from bitkd.data.augment.augmenter import Augmenter, shard_file, write_shard
from bitkd.data.augment.candidates import make_candidates
from bitkd.data.hub import load_tokenizer
from bitkd.errors import StoppedError
from bitkd.pipeline.context import StageContext
from bitkd.pipeline.stage_record import stage_record
from bitkd.processes.machine import augmentation_precision
from bitkd.store.records import AugmentedRecord, MetricsRecord

POLL_SECONDS = 0.5


class OtherRankError(RuntimeError):
    """Another process of the group failed or is gone."""


def augment(context: StageContext) -> None:
    """Run a stage that makes rows: write the missing shards and publish all of them.

    A stopped stage continues at the next shard. If another run finishes the stage meanwhile, its artifact is used.
    """
    group, folder = context.group, context.work
    augmenter = _make_augmenter(context)
    marker = f"failed-{group.broadcast(uuid.uuid4().hex)}"
    try:
        for number in range(group.rank, augmenter.shards, group.world_size):
            if context.finished:
                break
            context.stopping.check()
            write_shard(augmenter, number, folder)
            if augmenter.shards > 1:
                context.say(f"{context.stage.name}: shard {number + 1} of {augmenter.shards}")
    except FileNotFoundError:  # another run has published, and deleted the work folder
        if not context.finished:
            raise
    except BaseException as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{marker}.{group.rank}").write_text(type(error).__name__)
        raise
    # Ranks may finish at very different times, and a collective would time out: wait for the files.
    while not context.finished and not all(shard_file(folder, number).is_file() for number in range(augmenter.shards)):
        if failed := sorted(folder.glob(f"{marker}.*")):
            context.stopping.check(failed[0].read_text() == StoppedError.__name__ or context.stopping.requested)
            raise OtherRankError(f"rank {failed[0].suffix[1:]} failed; its own message says why")
        time.sleep(POLL_SECONDS)
    if not group.broadcast(context.finished) and group.is_global_zero:
        _publish(context, augmenter)
    group.barrier()


def _make_augmenter(context: StageContext) -> Augmenter:
    spec, sources = context.config.task.augmentation, context.sources
    model = sources.augmentation_model
    precision = augmentation_precision(context.config)
    candidates = make_candidates(
        model, load_tokenizer(model), spec.source, spec.candidates, spec.vectors, precision, context.group.device
    )
    rows = sources.task_rows.train_texts()
    apart = context.config.task.of_kind.texts_per_row > 1
    return Augmenter(rows, sources.tokenizer, candidates, spec, context.config.data.max_length, apart)


def _publish(context: StageContext, augmenter: Augmenter) -> None:
    sources, folder = context.sources, context.work
    shards = [write_shard(augmenter, number, folder) for number in range(augmenter.shards)]
    record = AugmentedRecord(
        task=context.config.task.name,
        source=sources.task_rows.source_hash(),
        sources=len(augmenter.rows["label"]),
        rows=sum(shard.rows for shard in shards),
        truncated=sum(shard.truncated for shard in shards),
        max_length=context.config.data.max_length,
        tokenizer=sources.tokenizer_info(sources.model).hash,
    )
    if record.truncated:
        context.say(
            f"{context.stage.name}: {record.truncated} of the augmented rows are longer than {record.max_length} tokens and "
            "are truncated"
        )

    def write(target: Path) -> None:
        for number in range(augmenter.shards):
            file = shard_file(folder, number)
            try:
                os.link(file, target / file.name)
            except OSError:  # a file system without links
                shutil.copyfile(file, target / file.name)

    stage = stage_record(context, sum(shard.seconds for shard in shards), augmented=record)
    context.store.publish(context.stage.key, write, stage, MetricsRecord(None))
