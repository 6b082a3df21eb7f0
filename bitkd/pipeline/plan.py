"""From a configuration to a checked plan: which stages, in which order, with which fingerprints and states."""

import math
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkd.config.schema import PRETRAINED, Config, StageSpec, TrainSpec, parts_of, settings_of
from bitkd.data.augmented import check_augmentation
from bitkd.data.hub import resolve_pretrained
from bitkd.errors import InputError
from bitkd.pipeline.budget import budget_steps, check_budget
from bitkd.pipeline.checks import (
    check_candidates,
    check_checkpoint,
    check_graph,
    check_model,
    check_rows,
    check_shapes,
    check_training,
)
from bitkd.pipeline.facts import SourceFacts, open_facts
from bitkd.pipeline.graph import Node, fingerprints, order
from bitkd.pipeline.identity import identity_of
from bitkd.pipeline.kinds import AUGMENT, TRAINED, upstream_of, wants_augmented
from bitkd.pipeline.memo import Memo, open_memo
from bitkd.pipeline.planned import PlannedStage
from bitkd.store.artifacts import Store, read_artifact, store_root
from bitkd.store.record import RunRecord, state_of

if TYPE_CHECKING:
    from bitkd.pipeline.sources import Sources


@dataclass
class Plan:
    """A checked run: stages in order, facts of their sources, the store, the record of earlier runs."""

    config: Config
    facts: SourceFacts
    stages: list[PlannedStage]
    store: Store
    record: RunRecord

    @property
    def sources(self) -> "Sources":
        """The sources themselves; they are loaded now, unless planning had to look at them."""
        return self.facts.loaded

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

    def given_keys(self) -> list[str]:
        """Artifacts of the store that the settings name by their folders: a teacher, augmented rows, a model."""
        given = [stage.checkpoint or stage.augmented for stage in self.stages] + [self.facts.model]
        if self.config.task.augmentation.model:
            given.append(self.facts.augmentation_model)
        resolved = [path.resolve() for path in given if path is not None]
        return [path.name for path in resolved if path.parent == self.store.root]

    def sources_read(self) -> dict[str, str]:
        """What the run reads, by content: model, rows and corpus, wherever they lie."""
        read = {"model": self.facts.hash_of(self.facts.model), "rows": self.facts.task.hash}
        if any(stage.spec.kind == "general" for stage in self.stages):
            read["corpus"] = self.facts.corpus.hash
        return {f"content of {name}": found[:12] for name, found in read.items()}

    def rows(self) -> list[dict[str, Any]]:
        """The stages as plain data, for `bitkd plan`. steps: null where they are not known yet."""
        return [
            {
                "name": stage.name,
                "kind": stage.spec.kind,
                "title": stage.title,
                "inputs": stage.upstream,
                "bits": stage.spec.quant.weight_bits,
                "steps": stage.total_steps if stage.settled or stage.train.max_steps else None,
                "fingerprint": stage.fingerprint,
                "key": stage.key,
            }
            for stage in self.stages
        ]

    def state(self, stage: PlannedStage) -> str:
        """State of a stage, see `state_of`."""
        return state_of(self.store, self.record, stage.name, stage.key)


def make_plan(config: Config, memo: Memo | None = None) -> Plan:
    """Check everything that can be checked before work starts; InputError says what is wrong.

    memo: facts of the sources that may be taken from earlier looks; null looks at all of them now.
    """
    record = RunRecord.open(Path(config.run.dir), config.task.name, config.run.name or config.pipeline.name)
    config = check_settings(config)
    sources = open_facts(config, memo or open_memo(config, recall=False))
    config = sources.config
    uses_corpus = any(stage.kind == "general" for stage in config.stages.values())
    check_model(config, sources)
    check_shapes(config, sources)
    check_candidates(config, sources)
    _ = sources.task
    if uses_corpus:
        _ = sources.corpus
    names = order({name: Node(name, upstream_of(stage, config)) for name, stage in config.stages.items()}, {PRETRAINED})
    store = Store(store_root(config))

    def plan_stages(steps: dict[str, int]) -> Plan:
        stages = [_plan_stage(name, config, sources, steps.get(name)) for name in names]
        return Plan(config, sources, stages, store, record)

    plan = plan_stages(budget_steps(config, lambda: _count_flops(plan_stages(dict.fromkeys(config.budget.shares, 1)))))
    stages = plan.stages
    nodes = {stage.name: Node(stage.name, stage.upstream, identity_of(stage, config, sources)) for stage in stages}
    hashes = fingerprints(nodes, {PRETRAINED: sources.hash_of(sources.model)})
    for stage in stages:
        stage.fingerprint = hashes[stage.name]
    for stage in stages:
        if "data" in stage.upstream and plan.store.finished(plan[stage.upstream["data"]].key):
            plan.settle(stage)
    return plan


def check_settings(config: Config) -> Config:
    """What can be checked without a look at models or data; returns the configuration with all its stages."""
    config = _with_augmentation(config)
    if not config.stages:
        raise InputError("the pipeline has no stages; give them under `stages:` in its YAML file")
    check_graph(config)
    check_budget(config)
    check_training(config)
    if config.budget.flops is None:
        budget_steps(config, dict)
    return config


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
        if AUGMENT not in stages and wants_augmented(stage):
            stages[AUGMENT] = node
        stages[name] = stage
    return replace(config, stages=stages or {AUGMENT: node})


def _count_flops(plan: Plan) -> dict[str, float]:
    """FLOPs of an optimizer step of each stage; counted once for the same models, rows and readings of them."""
    config, facts = plan.config, plan.facts
    data = asdict(config.data) | {"dir": None, "corpus": None, "num_workers": None}
    read = [facts.hash_of(facts.model), facts.task_fingerprint, data, parts_of(config.trainer)]
    if any(stage.kind == "general" for stage in config.stages.values()):
        read.append(facts.corpus.hash)

    def look() -> dict[str, float]:
        # Here, not above: it builds every stage's model.
        from bitkd.pipeline.flops import step_flops

        return step_flops(plan)

    stages = [
        [
            *(stage.name, stage.spec.kind, stage.upstream, asdict(stage.spec.quant), asdict(stage.spec.loss)),
            *(stage.train.batch_size, stage.checkpoint and facts.hash_of(stage.checkpoint)),
        ]
        for stage in plan.stages
    ]
    return facts.memo.fact("flops", [read, stages, asdict(config.student)], [], look)


def _plan_stage(name: str, config: Config, sources: SourceFacts, steps: int | None) -> PlannedStage:
    """steps: its share of the run's budget, where it has one."""
    spec = config.stages[name]
    train = TrainSpec(**settings_of(spec, config.train))
    if steps is not None:
        train.max_steps, train.max_tokens = steps, None
    seed = spec.seed if spec.seed is not None else zlib.crc32(f"{config.seed}/{name}".encode())
    stage = PlannedStage(name, spec, train, seed, upstream_of(spec, config))
    given = config.task.augmentation
    if spec.checkpoint:
        checkpoint = Path(resolve_pretrained(spec.checkpoint, setting=f"stages.{name}.checkpoint="))
        check_checkpoint(checkpoint, config, sources, f"stages.{name}.checkpoint={spec.checkpoint}", spec.labels)
        stage.checkpoint = checkpoint
    elif "data" in stage.upstream:
        _count_steps(stage, None)
    elif given.enabled and given.path and wants_augmented(spec):
        stage.augmented = sources.given_rows
        _count_steps(stage, max(1, read_artifact(stage.augmented).stage["augmented"]["rows"] // train.batch_size))
    elif spec.kind in TRAINED:
        data = sources.corpus if spec.kind == "general" else sources.task
        check_rows(name, data.rows, train.batch_size, config)
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
