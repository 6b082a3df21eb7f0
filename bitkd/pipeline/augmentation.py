"""The augmentation node: every rank writes its own shards, rank zero publishes them as an artifact."""

import os
import shutil
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitkd.data.augment.augmenter import Augmenter, shard_file, write_shard
from bitkd.data.augment.candidates import make_candidates
from bitkd.data.hub import load_tokenizer
from bitkd.errors import StoppedError
from bitkd.pipeline.planned import Plan, PlannedStage
from bitkd.pipeline.stage_record import stage_record
from bitkd.processes.group import Group
from bitkd.processes.signals import Stopping
from bitkd.store.records import AugmentedRecord, MetricsRecord

POLL_SECONDS = 0.5


class OtherRankError(RuntimeError):
    """Another process of the group failed or is gone."""


def augment(plan: Plan, stage: PlannedStage, group: Group, stopping: Stopping, console: Any) -> None:
    """Write the missing shards and publish all of them. A stage that was cut goes on at the next shard; one that another
    run finishes meanwhile is finished.
    """
    spec, sources = plan.config.task.augmentation, plan.sources
    model = plan.facts.augmentation_model
    candidates = make_candidates(
        model, load_tokenizer(model), spec.source, spec.candidates, spec.vectors, spec.precision, group.device
    )
    augmenter = Augmenter(
        sources.task_data.train_texts(), sources.tokenizer, candidates, spec, plan.config.data.max_length
    )
    folder = plan.store.work(stage.key)
    marker = f"failed-{group.broadcast(uuid.uuid4().hex)}"
    try:
        for number in range(group.rank, augmenter.shards, group.world_size):
            if plan.store.finished(stage.key):
                break
            stopping.check()
            write_shard(augmenter, number, folder)
            if group.is_global_zero and augmenter.shards > 1:
                console.print(f"{stage.name}: shard {number + 1} of {augmenter.shards}")
    except FileNotFoundError:  # another run has published, and deleted the work folder
        if not plan.store.finished(stage.key):
            raise
    except BaseException as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{marker}.{group.rank}").write_text(type(error).__name__)
        raise
    # Ranks need not finish together, and a collective would run into its timeout: wait for the files.
    while not plan.store.finished(stage.key) and not all(
        shard_file(folder, number).is_file() for number in range(augmenter.shards)
    ):
        if failed := sorted(folder.glob(f"{marker}.*")):
            stopping.check(failed[0].read_text() == StoppedError.__name__ or stopping.requested)
            raise OtherRankError(f"rank {failed[0].suffix[1:]} failed; its own message says why")
        time.sleep(POLL_SECONDS)
    if not group.broadcast(plan.store.finished(stage.key)) and group.is_global_zero:
        _publish(plan, stage, augmenter, folder, console)
    group.barrier()


def _publish(plan: Plan, stage: PlannedStage, augmenter: Augmenter, folder: Path, console: Any) -> None:
    made = [write_shard(augmenter, number, folder) for number in range(augmenter.shards)]
    facts = AugmentedRecord(
        task=plan.config.task.name,
        source=plan.sources.task_data.source_hash(),
        sources=len(augmenter.rows["label"]),
        rows=sum(record.rows for record in made),
        truncated=sum(record.truncated for record in made),
        max_length=plan.config.data.max_length,
        tokenizer=plan.facts.tokenizer.hash,
    )
    if facts.truncated:
        console.print(
            f"{stage.name}: {facts.truncated} of the augmented rows are longer than {facts.max_length} tokens and are cut"
        )
    record = replace(stage_record(plan, stage, sum(record.seconds for record in made)), augmented=facts)

    def write(target: Path) -> None:
        for number in range(augmenter.shards):
            file = shard_file(folder, number)
            try:
                os.link(file, target / file.name)
            except OSError:  # a file system without links
                shutil.copyfile(file, target / file.name)

    plan.store.publish(stage.key, write, record, MetricsRecord(score=None))
