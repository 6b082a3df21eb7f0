"""From a configuration to a checked plan: which stages, in which order, with which fingerprints and states."""

import zlib
from dataclasses import asdict, replace
from pathlib import Path

from bitkd.config.schema import PRETRAINED, Config, StageSpec, TrainSpec, parts_of, settings_of, store_root
from bitkd.data.augment.checks import check_augmentation
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
from bitkd.pipeline.graph import Node, fingerprints, order
from bitkd.pipeline.identity import identity_of
from bitkd.pipeline.inputs import upstream_of, wants_augmented
from bitkd.pipeline.planned import Plan, PlannedStage
from bitkd.sources.cache import Memo, open_memo
from bitkd.sources.facts import SourceFacts, open_facts
from bitkd.stages.kinds import AUGMENT, TRAINED
from bitkd.store.artifacts import Store, read_artifact
from bitkd.store.run_folder import RunFolder


def make_plan(config: Config, memo: Memo | None = None) -> Plan:
    """Check everything that can be checked before work starts; InputError says what is wrong.

    memo: facts of the sources that may be taken from earlier looks; null looks at all of them now.
    """
    record = RunFolder.open(Path(config.run.dir), config.task.name, config.run.name or config.pipeline.name)
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
        stage.count_steps(None)
    elif given.enabled and given.path and wants_augmented(spec):
        stage.augmented = sources.given_rows
        augmented = read_artifact(stage.augmented).stage.augmented
        assert augmented
        stage.count_steps(max(1, augmented.rows // train.batch_size))
    elif spec.kind in TRAINED:
        data = sources.corpus if spec.kind == "general" else sources.task
        check_rows(name, data.rows, train.batch_size, config)
        if train.max_tokens and spec.kind == "general":
            train.max_steps = max(1, train.max_tokens // (train.batch_size * config.data.max_length))
        if spec.kind == "general" and config.data.streaming:
            stage.count_steps(_tenth_of(train))
        else:
            stage.count_steps(data.steps_per_epoch(train.batch_size))
    return stage


def _tenth_of(train: TrainSpec) -> int:
    """A stream has no epochs: a tenth of the stage is validated in their place."""
    assert train.max_steps
    return max(1, train.max_steps // 10)
