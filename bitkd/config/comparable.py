"""The settings that decide a run's numbers: which they are, as flat dotted names, and how many were set."""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from bitkd.config.schema import Config, ShapeSpec, StageSpec, TrainSpec

NUMBERLESS = ("run", "logger", "wandb", "checkpoint", "data.num_workers", "data.eval_batch_size", "trainer.accelerator",
              "trainer.strategy", "trainer.log_every_n_steps")  # fmt: skip
"""What changes no number."""

PLACES = ("data.dir", "data.corpus")
"""Where a machine keeps its rows: another may keep the same elsewhere."""

SILENT = (*NUMBERLESS, *PLACES, "seed", "pipeline", "model.pretrained", "task.augmentation.path",
          "task.augmentation.model", "task.augmentation.vectors")  # fmt: skip
"""What two runs of one arm need not have in common: also their seed, and paths of the same models and rows."""

OF_CORPORA = ("hub_corpus", "streaming", "masking", "segments")
"""Settings of `data` that only General KD reads."""

NOT_TUNED = ("kind", "title", "student", "teacher", "augmented", "checkpoint", "labels", "seed")
"""What a stage is, in distinction to how it is trained and quantized."""

SILENT_IN_STAGES = ("title", "checkpoint")


def decisive_settings(config: Config) -> dict[str, Any]:
    """Dotted name -> value of every setting that decides numbers, the seed apart; a teacher that is given counts as true."""
    content = asdict(config)
    if config.budget.total is None:
        del content["budget"]
    if all(stage.kind != "general" for stage in config.stages.values()):
        for key in OF_CORPORA:
            del content["data"][key]
    if not config.task.augmentation.enabled:
        content["task"]["augmentation"] = {"enabled": False}
    for name, stage in content["stages"].items():
        given = config.stages[name].checkpoint is not None
        content["stages"][name] = {key: value for key, value in stage.items() if key not in SILENT_IN_STAGES}
        content["stages"][name] |= {"given": True} if given else {}
    return {name: value for name, value in _flat(content) if not is_among(name, SILENT)}


def hyperparameters(config: Config) -> int:
    """How many hyper-parameters a configuration sets: values of `student`, `train` and of every stage but the teacher that differ
    from their defaults, `embedding_bits`, and the shares of a budget (the last follows from the others) with its total.
    """
    stages = [stage for stage in config.stages.values() if stage.kind != "finetune"]
    words = config.embedding_bits
    if words is not None:  # one setting, however many stages it reaches
        own = [replace(s.quant, embedding_bits=None) if s.quant.embedding_bits == words else s.quant for s in stages]
        stages = [replace(stage, quant=quant) for stage, quant in zip(stages, own)]
    count = _differing(config.student, ShapeSpec()) + _differing(config.train, TrainSpec())
    count += sum(_differing(stage, StageSpec(), NOT_TUNED) for stage in stages)
    return count + (words is not None) + (len(config.budget.given_shares) if config.budget.total else 0)


def _differing(spec: Any, default: Any, skipped: tuple[str, ...] = ()) -> int:
    count = 0
    for name in spec.__dataclass_fields__:
        if name not in skipped:
            value, usual = getattr(spec, name), getattr(default, name)
            count += _differing(value, usual) if is_dataclass(value) else value != usual
    return count


def _flat(content: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in content.items():
        found += _flat(value, f"{above}{name}.") if isinstance(value, dict) else [(f"{above}{name}", value)]
    return found


def is_among(name: str, settings: Sequence[str]) -> bool:
    """Whether a dotted name is one of `settings`, or lies in a section that is."""
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)
