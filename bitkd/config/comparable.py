"""Which settings can change a result, as dotted names; and how many hyper-parameters a configuration sets."""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from bitkd.config.schema import Config, ShapeSpec, StageSpec, TrainSpec
from bitkd.data.tasks import TaskSpec
from bitkd.quant.spec import NEWER as NEWER_IN_QUANT
from bitkd.quant.spec import QuantSpec
from bitkd.stages.kinds import kind_of
from bitkd.stages.spec import LossSpec

NO_EFFECT_ON_RESULTS = ("run", "study", "logger", "wandb", "checkpoint", "data.num_workers", "data.eval_batch_size",
              "trainer.accelerator", "trainer.strategy", "trainer.log_every_n_steps", "trainer.cuda_graphs")  # fmt: skip
"""Settings that cannot change a result."""

LOCAL_PATHS = ("data.dir", "data.corpus", "budget.throughput")
"""Paths of this machine: another one may keep the same content elsewhere."""

NOT_COMPARED = (*NO_EFFECT_ON_RESULTS, *LOCAL_PATHS, "seed", "share_across_seeds", "pipeline", "model.pretrained",
          "task.augmentation.path", "task.augmentation.model", "task.augmentation.vectors")  # fmt: skip
"""Settings that may differ between two runs of one arm: those above, the seed, and the paths of models and rows. Models
and rows are compared by content; what `share_across_seeds` does is seen in the stages' seeds."""

CORPUS_ONLY = ("hub_corpus", "streaming", "masking", "segments")
"""Settings of `data` that only General KD reads."""

OF_OTHER_KINDS = ("kind", "windows", "answers", "similarity")
"""Settings of `task` that text classification does not read: its runs of before they came have none."""

STRUCTURAL = ("kind", "title", "student", "teacher", "augmented", "checkpoint", "labels", "seed")
"""What a stage is, as opposed to how it is trained and quantized."""

NOT_COMPARED_IN_STAGES = ("title", "checkpoint")


NEWER = {
    "quant.weight_bits": {f"quant.{name}": getattr(QuantSpec(), name) for name in NEWER_IN_QUANT},
    "loss.temperature": {f"loss.{name}": getattr(LossSpec(), name) for name in ("intervention", "intervention_share")},
}
"""A setting of stages that runs always had -> those beside it that came later, and their defaults, which change nothing."""


def result_settings(config: Config) -> dict[str, Any]:
    """Dotted name -> value of every setting that can change a result, except the seed.

    A given teacher appears as `given: true`, without its path.
    """
    content = asdict(config)
    if config.budget.total is None:
        del content["budget"]
    if not any(kind_of(stage.kind).on_corpus for stage in config.stages.values()):
        for key in CORPUS_ONLY:
            del content["data"][key]
    if config.task.kind == TaskSpec().kind:
        for key in OF_OTHER_KINDS:
            del content["task"][key]
    if config.student.hidden_act is None:
        del content["student"]["hidden_act"]
    if not any(stage.quant.learns for stage in config.stages.values()):  # runs of before it came have none
        for section in (content["train"], *content["stages"].values()):
            del section["scales_lr"]
    if not config.task.augmentation.enabled:
        content["task"]["augmentation"] = {"enabled": False}
    for name, stage in content["stages"].items():
        given = config.stages[name].checkpoint is not None
        content["stages"][name] = {key: value for key, value in stage.items() if key not in NOT_COMPARED_IN_STAGES}
        content["stages"][name] |= {"given": True} if given else {}
    return {name: value for name, value in _flat(content) if not is_among(name, NOT_COMPARED)}


def with_newer(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a recorded run, with those that did not exist then at their defaults: it is one arm with runs of now."""
    added = {
        name.removesuffix(old) + new: default
        for name in settings
        for old, defaults in NEWER.items()
        if name.startswith("stages.") and name.endswith(f".{old}")
        for new, default in defaults.items()
    }
    return added | settings


def hyperparameters(config: Config) -> int:
    """How many hyper-parameters a configuration sets.

    Counted are: values of `student`, `train` and every stage except the teacher that differ from their defaults;
    `embedding_bits`; the shares of a budget (the last one follows from the others) and its total.
    """
    stages = [stage for stage in config.stages.values() if not kind_of(stage.kind).fine_tunes]
    bits = config.embedding_bits
    if bits is not None:  # one setting counts once, however many stages it applies to
        own = [replace(s.quant, embedding_bits=None) if s.quant.embedding_bits == bits else s.quant for s in stages]
        stages = [replace(stage, quant=quant) for stage, quant in zip(stages, own)]
    count = _differing(config.student, ShapeSpec()) + _differing(config.train, TrainSpec())
    count += sum(_differing(stage, StageSpec(), STRUCTURAL) for stage in stages)
    return count + (bits is not None) + (len(config.budget.given_shares) if config.budget.total else 0)


def _differing(spec: Any, default: Any, skipped: tuple[str, ...] = ()) -> int:
    count = 0
    for name in spec.__dataclass_fields__:
        if name not in skipped:
            value, usual = getattr(spec, name), getattr(default, name)
            if is_dataclass(value):
                count += _differing(value, usual)
            elif isinstance(value, dict):
                count += sum(weight != usual.get(key, 0) for key, weight in value.items())
            else:
                count += value != usual
    return count


def _flat(content: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in content.items():
        found += _flat(value, f"{above}{name}.") if isinstance(value, dict) else [(f"{above}{name}", value)]
    return found


def is_among(name: str, settings: Sequence[str]) -> bool:
    """Whether a dotted name is one of `settings`, or is in a section that is."""
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)
