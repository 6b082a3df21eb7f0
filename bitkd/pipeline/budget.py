"""One total, distributed over a pipeline's stages by the shares in its file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bitkd.config.schema import BUDGET_UNITS, BudgetSpec, Config, settings_of
from bitkd.errors import InputError, nearest
from bitkd.stages.kinds import kind_of


@dataclass(frozen=True)
class StageCost:
    """What a stage costs, whose steps are not known yet, in the unit of the budget: FLOP, seconds or rows."""

    step: float
    """Of one optimizer step, the teacher's forward included; 0 if the stage has none."""

    before: float = 0.0
    """Before the first step, such as estimating importance."""

    kept_step: float | None = None
    """Of one optimizer step on kept logits of the teacher; None if the stage cannot keep them, or `step` is that already."""

    kept_pass: float = 0.0
    """Of the teacher's forward over all training rows, before the first step on kept logits."""

    kept_from: int = 0
    """Steps from which on the logits are kept."""

    def steps_for(self, total: float) -> int:
        """Optimizer steps that cost at most `total`, apart from what comes before them."""
        steps = int(total / self.step + 1e-9)
        if self.kept_step is None or steps < self.kept_from:
            return steps
        return int((total - self.kept_pass) / self.kept_step + 1e-9)

    @property
    def least(self) -> float:
        """What one step costs."""
        return self.step if self.kept_step is None or self.kept_from > 1 else self.kept_pass + self.kept_step


def budget_steps(config: Config, costs: Mapping[str, StageCost]) -> dict[str, int]:
    """Optimizer steps of every stage that has a share of the run's budget; none if no budget is set.

    costs: of each stage; only used for a budget in FLOPs or seconds.
    Steps add up to the total exactly; the other units are rounded down to whole steps of each stage. A budget in FLOPs or
    seconds also pays for what comes before the steps, and what is left of it is shared; not for a General KD stage without
    a share.
    """
    budget = config.budget
    if budget.total is None:
        return {}
    shares = check_budget(config)
    unit, total = budget.total
    apart = 0.0
    if unit == "steps":
        steps = _apportion(int(total), shares)
    else:
        if unit == "examples":
            costs = {name: StageCost(batch_size(config, name)) for name in shares}
        apart = sum(costs[name].before for name in costs if name in shares or not _on_corpus(config, name))
        steps = {name: costs[name].steps_for(share * (total - apart)) for name, share in shares.items()}
    if short := [name for name, count in steps.items() if count < 1]:
        each = {name: 1.0 if unit == "steps" else costs[name].least for name in shares}
        least = max(each[name] / share for name, share in shares.items()) + apart
        raise InputError(
            f"budget.{unit}={total:g} leaves less than one step for {', '.join(short)}; use at least {math.ceil(least)}, or "
            "other budget.shares"
        )
    return steps


def _on_corpus(config: Config, name: str) -> bool:
    return kind_of(config.stages[name].kind).on_corpus


def batch_size(config: Config, name: str) -> int:
    """Rows of an optimizer step of a stage."""
    return settings_of(config.stages[name], config.train)["batch_size"]


def check_budget(config: Config) -> dict[str, float]:
    """The shares of the stages. Raises InputError if the shares or the total are wrong."""
    budget, stages = config.budget, config.stages
    given = [unit for unit in BUDGET_UNITS if getattr(budget, unit) is not None]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(f'budget.{unit}' for unit in given)} are both given; a run has one total, use one"
        )
    if given and not 0 < getattr(budget, given[0]) < math.inf:
        raise InputError(f"budget.{given[0]}={getattr(budget, given[0])} is no budget; use a positive number")
    if budget.seconds is not None:
        _check_seconds(config)
    elif budget.throughput is not None:
        raise InputError(f"budget.throughput={budget.throughput} is only for budget.seconds=; leave it out")
    shares = budget.given_shares
    trained = [name for name, stage in stages.items() if kind_of(stage.kind).distils]
    for name, share in shares.items():
        if name not in stages:
            raise InputError(f"budget.shares.{name} is no stage of this pipeline; {nearest(name, stages)}")
        if name not in trained:
            raise InputError(
                f"budget.shares.{name}: a {stages[name].kind} stage has no share; shares are for {', '.join(trained)}"
            )
        if not 0 < share <= 1:
            raise InputError(f"budget.shares.{name}={share} is outside 0 to 1; use a positive share, or null for none")
    if given:
        _check_whole(budget, config, trained, shares)
    if shares and abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(
            f"budget.shares add up to {sum(shares.values()):.6g} ({', '.join(f'{n} {s:g}' for n, s in shares.items())}); "
            "they must add up to 1"
        )
    return shares


def _check_seconds(config: Config) -> None:
    """A step must take the same time however many steps the budget turns out to give."""
    if config.budget.throughput is None:
        raise InputError(
            "budget.seconds needs budget.throughput=FILE, the seconds of a step of each stage on one device; "
            "`bitkd throughput RUN… --out FILE` writes it"
        )
    trainer = config.trainer
    if trainer.keep_teacher_logits == "auto":
        raise InputError(
            "trainer.keep_teacher_logits=auto depends on the number of steps, which budget.seconds is to decide; use always or "
            "never, here and in the runs of budget.throughput"
        )
    if trainer.compile == "auto" and trainer.accelerator != "cpu":
        raise InputError(
            "trainer.compile=auto depends on the number of steps, which budget.seconds is to decide; use true or false, here "
            "and in the runs of budget.throughput"
        )


def _check_whole(budget: BudgetSpec, config: Config, trained: list[str], shares: dict[str, float]) -> None:
    if not shares:
        raise InputError(
            f"this pipeline's file has no budget.shares; give each of {', '.join(trained)} its share, such as "
            f"budget.shares.{trained[0]}={1 / len(trained):.2g}"
            if trained
            else "no stage of this pipeline distils, so there is nothing to spend a budget on; leave budget.* out"
        )
    # General KD may be left out of the budget, because its student is for all tasks.
    missing = [name for name in trained if name not in shares and not _on_corpus(config, name)]
    if missing:
        raise InputError(f"budget.shares has none for {', '.join(missing)}; every KD stage but General KD needs one")
    for name in shares:
        stage = config.stages[name]
        own = next((key for key in ("max_steps", "epochs", "max_tokens") if getattr(stage, key) is not None), None)
        if own:
            raise InputError(
                f"stages.{name}.{own}={getattr(stage, own)} and a budget that gives {name} a share; leave one of them out"
            )


def _apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole steps that add up to `total`. What is rounded is the boundary between two stages, not their lengths: if two
    pipelines begin with equal shares, these stages get equal steps and are computed only once.
    """
    steps, before, boundary = {}, 0, 0.0
    for place, (name, share) in enumerate(shares.items(), start=1):
        boundary += share
        end = total if place == len(shares) else math.floor(boundary * total + 0.5)
        steps[name] = end - before
        before = end
    return steps
