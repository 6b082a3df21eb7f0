"""From a configuration to a checked plan: which stages, in which order, with which fingerprints and states."""

import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bitkd.config.schema import PRETRAINED, Config, StageSpec, TrainSpec, micro_batches, settings_of, store_root
from bitkd.data.augment.checks import check_augmentation
from bitkd.data.hub import resolve_pretrained
from bitkd.data.task_checks import check_metrics, check_task
from bitkd.errors import InputError
from bitkd.files import digest
from bitkd.pipeline.attention_checks import check_attention
from bitkd.pipeline.budget import StageCost, budget_steps, check_budget
from bitkd.pipeline.checks import check_graph, check_names, check_paths, check_training
from bitkd.pipeline.estimate import Estimate, estimate_of
from bitkd.pipeline.graph import Node, fingerprints, order
from bitkd.pipeline.identity import identity_of
from bitkd.pipeline.inputs import row_makers, upstream_of, uses_corpus, wants_augmented
from bitkd.pipeline.source_checks import check_checkpoint, check_rows, check_sources
from bitkd.pipeline.stage import PlannedStage
from bitkd.pipeline.study import check_study, study_record
from bitkd.pipeline.throughput import Throughput, read_throughput, stage_seconds
from bitkd.processes.machine import check_machine
from bitkd.sources.cache import FactCache, open_cache
from bitkd.sources.sources import Sources, open_sources
from bitkd.stages.kinds import AUGMENT, kind_of
from bitkd.store.artifacts import Store, read_artifact
from bitkd.store.records import StudyRecord
from bitkd.store.run_folder import RunFolder, state_of


@dataclass(frozen=True)
class Plan:
    """A checked run: its stages in order, their sources, the store, the folder with the record of earlier starts."""

    stages: list[PlannedStage]
    sources: Sources
    store: Store
    folder: RunFolder
    throughput: Throughput | None = None
    """What a budget in seconds is divided by; None for another budget."""

    study: StudyRecord | None = None
    """What the run's record says of its study; None if it belongs to none."""

    @property
    def config(self) -> Config:
        """The run's configuration, with all stages, and folders in place of `demo`."""
        return self.sources.config

    def __getitem__(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def by_name(self) -> dict[str, PlannedStage]:
        return {stage.name: stage for stage in self.stages}

    def estimate(self, stage: PlannedStage) -> Estimate | None:
        """What a stage that is not done is expected to take; None if nothing like it was measured."""
        return None if self.state(stage) == "done" else estimate_of(stage, self.by_name, self.sources, self.store)

    def augmented_rows(self, stage: PlannedStage) -> Path | None:
        """Folder of the augmented rows that a stage trains on; None if it trains on others."""
        if stage.augmented is not None:
            return stage.augmented
        return self.store.path(self[stage.upstream["data"]].key) if "data" in stage.upstream else None

    def with_known_rows(self) -> "Plan":
        """The plan with the steps of stages on augmented rows, if these rows exist by now."""
        return replace(self, stages=[self._counted(stage) for stage in self.stages])

    def _counted(self, stage: PlannedStage) -> PlannedStage:
        folder = self.augmented_rows(stage)
        if stage.rows is not None or folder is None or not self.store.finished(folder.name):
            return stage
        record = read_artifact(folder).stage.augmented
        return stage if record is None else _with_augmented(stage, record.rows)

    def state(self, stage: PlannedStage) -> str:
        """`done`, `partial`, `stale` or `todo`, see `state_of`."""
        return state_of(self.store, self.folder, stage.name, stage.key)

    def given_keys(self) -> list[str]:
        """Keys of the artifacts in this store that the settings name by path: a teacher, augmented rows, a model."""
        given = [stage.checkpoint or stage.augmented for stage in self.stages] + [self.sources.model]
        if self.config.task.augmentation.model:
            given.append(self.sources.augmentation_model)
        resolved = [path.resolve() for path in given if path is not None]
        return [path.name for path in resolved if path.parent == self.store.root]

    def content_read(self) -> dict[str, str]:
        """Hashes of what the run reads: model, rows, corpus, augmented rows and throughput. Paths do not count."""
        read = {"model": self.sources.hash_of(self.sources.model), "rows": self.sources.task.hash}
        if any(stage.kind.on_corpus for stage in self.stages):
            read["corpus"] = self.sources.corpus.hash
        if made := next((stage.fingerprint for stage in self.stages if stage.kind.makes_rows), None):
            read["augmented rows"] = made
        elif given := next((stage.augmented for stage in self.stages if stage.augmented), None):
            read["augmented rows"] = digest(read_artifact(given).stage.checksums)
        if self.throughput is not None:
            read["throughput"] = digest(asdict(self.throughput))
        return {f"content of {name}": found[:12] for name, found in read.items()}

    def rows(self) -> list[dict[str, Any]]:
        """The stages as plain data, for `bitkd plan`.

        steps: None if they are not known yet.  saved_step: where an interrupted stage goes on.  estimate: seconds,
        memory_mib, and the device that they were measured on; None if the stage is done or nothing like it was measured.
        """
        return [
            {
                "name": stage.name,
                "kind": stage.kind.name,
                "title": stage.title,
                "inputs": stage.upstream,
                "bits": stage.spec.quant.weight_bits,
                "precision": "" if stage.kind.makes_rows else stage.spec.quant.precision,
                "steps": stage.total_steps if stage.steps_known or stage.train.max_steps else None,
                "fingerprint": stage.fingerprint,
                "key": stage.key,
                "state": self.state(stage),
                "saved_step": self.store.saved_step(stage.key) if self.state(stage) == "partial" else None,
                "estimate": asdict(found) if (found := self.estimate(stage)) else None,
                "artifact": str(self.store.path(stage.key)) if self.store.finished(stage.key) else None,
            }
            for stage in self.stages
        ]


def make_plan(config: Config, cache: FactCache | None = None) -> Plan:
    """Plan a run, and check everything that can be checked before it starts. Raises InputError if something is wrong.

    cache: facts of the sources that earlier processes may have found; None computes all of them now.
    """
    config = check_settings(config)
    folder = RunFolder.open(Path(config.run.dir), config.task.name, config.run.name or config.pipeline.name)
    check_paths(config)
    check_machine(config.trainer)
    sources = open_sources(config, cache or open_cache(config, read_disk=False))
    config = sources.config
    check_sources(sources)
    check_attention(sources)
    nodes = {name: Node(name, upstream_of(stage, config)) for name, stage in config.stages.items()}
    drafts = [_draft(name, sources) for name in order(nodes, {PRETRAINED})]
    for stage in drafts:
        _check_rows(stage, sources)
    throughput = read_throughput(config.budget)
    if throughput is not None:
        costs = stage_seconds(drafts, sources, throughput)
    else:
        costs = _count_flops(drafts, sources) if config.budget.flops is not None else {}
    steps = budget_steps(config, costs)
    stages = _with_fingerprints([_with_steps(stage, sources, steps.get(stage.name)) for stage in drafts], sources)
    store, final = Store(store_root(config)), stages[-1]
    study = study_record(config, folder.manifest, (final.name, final.key), store)
    return Plan(stages, sources, store, folder, throughput, study).with_known_rows()


def check_settings(config: Config) -> Config:
    """Make the checks that read neither models nor data. Returns the configuration with all its stages."""
    check_names(config)
    check_task(config.task)
    check_metrics(config.task)
    config = _with_augmentation(config)
    if not config.stages:
        raise InputError("the pipeline has no stages; give them under `stages:` in its YAML file")
    check_graph(config)
    check_budget(config)
    check_study(config)
    check_training(config)
    if config.budget.flops is None and config.budget.seconds is None:
        budget_steps(config, {})
    return config


def _with_augmentation(config: Config) -> Config:
    """The configuration with an `augment` node before the first stage that trains on augmented rows."""
    spec = config.task.augmentation
    check_augmentation(spec)
    for name, stage in config.stages.items():
        kind_of(stage.kind, f"stages.{name}.kind=")
    nodes = row_makers(config)
    if len(nodes) > 1:
        raise InputError(f"{', '.join(nodes)} are all of kind {AUGMENT}; a pipeline augments its task once")
    if nodes or not spec.enabled or spec.path:
        return config
    node = StageSpec(kind=AUGMENT, title="Data augmentation")
    stages: dict[str, StageSpec] = {}
    for name, stage in config.stages.items():
        if AUGMENT not in stages and wants_augmented(stage):
            stages[AUGMENT] = node
        stages[name] = stage
    return replace(config, stages=stages or {AUGMENT: node})


def _draft(name: str, sources: Sources) -> PlannedStage:
    """A stage whose steps and fingerprint are not known yet."""
    config = sources.config
    spec = config.stages[name]
    train = TrainSpec(**settings_of(spec, config.train))
    seed = spec.seed if spec.seed is not None else zlib.crc32(f"{config.seed}/{name}".encode())
    stage = PlannedStage(name, spec, kind_of(spec.kind), train, seed, upstream_of(spec, config))
    given = config.task.augmentation
    if spec.checkpoint:
        checkpoint = Path(resolve_pretrained(spec.checkpoint, setting=f"stages.{name}.checkpoint="))
        check_checkpoint(checkpoint, sources, f"stages.{name}.checkpoint={spec.checkpoint}", spec.labels)
        return replace(stage, checkpoint=checkpoint)
    if given.enabled and given.path and wants_augmented(spec) and "data" not in stage.upstream:
        return replace(stage, augmented=sources.given_rows)
    return stage


def _with_steps(stage: PlannedStage, sources: Sources, budget: int | None) -> PlannedStage:
    """A stage with its steps counted.  budget: its part of the run's budget, if there is one."""
    config, train = sources.config, stage.train
    if budget is not None:
        train = replace(train, max_steps=budget, max_tokens=None)
    if stage.trains and stage.kind.on_corpus and train.max_tokens:
        tokens = train.batch_size * config.data.max_length
        train = replace(train, max_steps=max(1, train.max_tokens // tokens))
    stage = replace(stage, train=train)
    if not stage.trains:
        return stage
    if "data" in stage.upstream:
        return stage.with_steps(None)
    counted = _training_rows(stage, sources)
    if stage.augmented is not None:
        assert counted is not None
        return _with_augmented(stage, counted)
    rows = sources.corpus if stage.kind.on_corpus else sources.task
    if stage.kind.on_corpus and config.data.streaming:
        assert train.max_steps  # checked by `check_graph`
        return stage.with_steps(max(1, train.max_steps // 10))  # no epochs: validate after each tenth of the stage
    return stage.with_steps(rows.steps_per_epoch(train.batch_size), counted)


def _training_rows(stage: PlannedStage, sources: Sources) -> int | None:
    """Number of a stage's training rows; None for a stream, and for augmented rows that the run makes itself."""
    if "data" in stage.upstream:
        return None
    if stage.augmented is not None:
        record = read_artifact(stage.augmented).stage.augmented
        assert record is not None  # checked by `Sources.given_rows`
        return record.rows
    return (sources.corpus if stage.kind.on_corpus else sources.task).rows.get("train")


def _with_augmented(stage: PlannedStage, rows: int) -> PlannedStage:
    """A stage with its steps counted on this number of augmented rows."""
    return stage.with_steps(max(1, rows // stage.train.batch_size), rows)


def _check_rows(stage: PlannedStage, sources: Sources) -> None:
    """Raise InputError if there are too few rows for the run's processes; augmented ones are not counted yet."""
    if stage.trains and "data" not in stage.upstream and stage.augmented is None:
        rows = sources.corpus if stage.kind.on_corpus else sources.task
        check_rows(stage.name, rows.rows, stage.train.batch_size, sources.config)


def _with_fingerprints(stages: list[PlannedStage], sources: Sources) -> list[PlannedStage]:
    nodes = {stage.name: Node(stage.name, stage.upstream, identity_of(stage, sources)) for stage in stages}
    found = fingerprints(nodes, {PRETRAINED: sources.hash_of(sources.model)})
    return [replace(stage, fingerprint=found[stage.name]) for stage in stages]


def _count_flops(stages: list[PlannedStage], sources: Sources) -> dict[str, StageCost]:
    """FLOPs of each stage that makes a student; cached for the same models, rows and settings of the data.

    The teacher's pass over all rows, where its logits are kept, is taken at the mean cost of a row in training.
    """
    config = sources.config
    setting = config.trainer.keep_teacher_logits
    data = asdict(config.data) | {"dir": None, "corpus": None, "num_workers": None}
    read = [sources.hash_of(sources.model), sources.task_fingerprint, data, micro_batches(config.trainer)]
    if uses_corpus(config):
        read.append(sources.corpus.hash)
    described = [
        [
            *(stage.name, stage.kind.name, stage.upstream, asdict(stage.spec.quant), asdict(stage.spec.loss)),
            *(stage.train.batch_size, stage.checkpoint and sources.hash_of(stage.checkpoint)),
        ]
        for stage in stages
    ]

    def compute() -> dict[str, tuple[float, float, float]]:
        # Imported here, because it imports torch.
        from bitkd.pipeline.flops import count_flops

        return count_flops(stages, sources)

    counted = sources.cache.get("flops", [read, described, asdict(config.student)], [], compute)
    found = {}
    for stage in stages:
        if stage.name not in counted:
            continue
        student, teacher, before = counted[stage.name]
        found[stage.name] = StageCost(student + teacher, before)
        rows, size = _training_rows(stage, sources), stage.train.batch_size
        if rows is not None and setting != "never" and stage.kind.can_keep_logits(stage.spec.loss, config.task):
            least = rows // size + 1 if setting == "auto" else 0
            found[stage.name] = StageCost(student + teacher, before, student, teacher * rows / size, least)
    return found
