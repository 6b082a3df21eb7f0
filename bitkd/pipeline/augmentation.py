"""The augmentation node: every rank writes its own shards, rank zero publishes them as an artifact."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from bitkd.data.augment import Augmented, Augmenter, shard_file, write_shard
from bitkd.data.candidates import make_candidates
from bitkd.data.hub import load_tokenizer
from bitkd.pipeline.group import Group
from bitkd.pipeline.plan import Plan, PlannedStage
from bitkd.pipeline.stage_record import stage_record

POLL_SECONDS = 0.5


def augment(plan: Plan, stage: PlannedStage, group: Group, console: Any) -> None:
    """Write the missing shards and publish all of them. A stage that was cut goes on at the next shard."""
    spec, sources = plan.config.task.augmentation, plan.sources
    model = sources.augmentation_model
    candidates = make_candidates(
        model, load_tokenizer(model), spec.source, spec.candidates, spec.vectors, spec.precision, group.device
    )
    augmenter = Augmenter(
        sources.task_data.train_texts(), sources.tokenizer, candidates, spec, plan.config.data.max_length
    )
    folder = plan.store.work(stage.key)
    records = {}
    for number in range(group.rank, augmenter.shards, group.world_size):
        records[number] = write_shard(augmenter, number, folder)
        if group.is_global_zero and augmenter.shards > 1:
            console.print(f"{stage.name}: shard {number + 1} of {augmenter.shards}")
    # Ranks need not finish together, and a collective would run into its timeout: wait for the files.
    while not all(shard_file(folder, number).is_file() for number in range(augmenter.shards)):
        time.sleep(POLL_SECONDS)
    group.barrier()
    if group.is_global_zero:
        made = [write_shard(augmenter, number, folder) for number in range(augmenter.shards)]
        truncated = sum(record.truncated for record in made)
        facts = Augmented(
            task=plan.config.task.name,
            sources=len(augmenter.rows["label"]),
            rows=sum(record.rows for record in made),
            truncated=truncated,
            max_length=plan.config.data.max_length,
            tokenizer=sources.tokenizer_hash,
        )
        if truncated:
            console.print(f"{stage.name}: {truncated} rows are longer than {facts.max_length} tokens and are cut")
        record = stage_record(plan, stage, sum(record.seconds for record in made)) | {"augmented": vars(facts)}

        def write(target: Path) -> None:
            for file in sorted(folder.glob("shard-*.arrow")):
                try:
                    os.link(file, target / file.name)
                except OSError:  # a file system without links
                    shutil.copyfile(file, target / file.name)

        plan.store.publish(stage.key, write, record, {"score": None})
    group.barrier()
