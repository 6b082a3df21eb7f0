"""The settings that decide a run's numbers, as flat dotted names: what two runs of one arm have in common."""

from dataclasses import asdict
from typing import Any

from bitkd.config.schema import Config

SILENT = ("seed", "run", "logger", "wandb", "checkpoint", "pipeline", "data.dir", "data.corpus", "data.num_workers",
          "data.eval_batch_size", "model.pretrained", "trainer.accelerator", "trainer.strategy",
          "trainer.log_every_n_steps", "task.augmentation.path", "task.augmentation.model",
          "task.augmentation.vectors")  # fmt: skip
"""What decides no numbers, and where sources lie: two machines keep the same rows at different places."""

SILENT_IN_STAGES = ("title", "checkpoint")


def decisive_settings(config: Config) -> dict[str, Any]:
    """Dotted name -> value of every setting that decides numbers, the seed apart; a teacher that is given counts as true."""
    content = asdict(config)
    if config.budget.total is None:
        del content["budget"]
    for name, stage in content["stages"].items():
        given = config.stages[name].checkpoint is not None
        content["stages"][name] = {key: value for key, value in stage.items() if key not in SILENT_IN_STAGES}
        content["stages"][name] |= {"given": True} if given else {}
    return {name: value for name, value in _flat(content) if not _is_silent(name)}


def _flat(content: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in content.items():
        found += _flat(value, f"{above}{name}.") if isinstance(value, dict) else [(f"{above}{name}", value)]
    return found


def _is_silent(name: str) -> bool:
    return any(name == silent or name.startswith(f"{silent}.") for silent in SILENT)
