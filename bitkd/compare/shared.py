"""Stages that several seeds of an arm share: how they vary from seed to seed is in none of the arm's numbers."""

from bitkd.compare.arms import Arm, Cost
from bitkd.compare.runs import Stage

GIVEN = "stages.{name}.given"
"""The setting that a record holds for a stage whose checkpoint was given."""


def shared_stages(arms: list[Arm]) -> list[str]:
    """A sentence for each trained stage, teachers included, that is the same artifact at several seeds of an arm."""
    places: dict[tuple[str, str, tuple[int, ...], bool], list[str]] = {}
    for arm in arms:
        for stage, given, seeds in _shared_in(arm):
            share = _share_of_cost(arm, stage)
            where = places.setdefault((stage.title, stage.name, seeds, given), [])
            where.append(arm.label + (f" ({100 * share:.0f} % of its FLOP)" if share else ""))
    return [_sentence(*place, labels, len(arms)) for place, labels in places.items()]


def in_common(arms: list[Arm]) -> list[str]:
    """What seeds of an arm share, in words: “one General KD”, or “one teacher for several seeds” if not all share it."""
    found = [
        f"one {_name(stage)}" if len(seeds) == len(arm.seeds) else f"one {_name(stage)} for several seeds"
        for arm in arms
        for stage, _, seeds in _shared_in(arm)
    ]
    return list(dict.fromkeys(found))


def _shared_in(arm: Arm) -> list[tuple[Stage, bool, tuple[int, ...]]]:
    """The trained stages whose artifact is the same at several seeds: whether it was given, and these seeds."""
    found = []
    for position, stage in enumerate(arm.first.stages):
        given = bool(arm.first.settings.get(GIVEN.format(name=stage.name)))
        seeds_of: dict[str, tuple[int, ...]] = {}
        for run in arm.runs:
            key = run.stages[position].key
            seeds_of[key] = (*seeds_of.get(key, ()), run.seed)
        if stage.steps or given:
            found += [(stage, given, seeds) for seeds in seeds_of.values() if len(seeds) > 1]
    return found


def _name(stage: Stage) -> str:
    return stage.name if stage.title.lower() == stage.name else stage.title


def _share_of_cost(arm: Arm, stage: Stage) -> float:
    """A stage's share of the FLOP of an arm's chain; 0 if it is not part of it."""
    whole = arm.chain.flops
    return Cost.of([stage]).flops / whole if stage.in_chain and whole else 0.0


def _sentence(title: str, name: str, seeds: tuple[int, ...], given: bool, labels: list[str], arms: int) -> str:
    every = arms > 1 and len(labels) == arms and not any("FLOP)" in label for label in labels)
    where = "all arms" if every else ", ".join(labels)
    stage = title if title.lower() == name else f"{title} ({name})"
    text = (
        f"One artifact of {stage} is shared by the seeds {', '.join(map(str, seeds))} of {where}: its variance is in no "
        "± and in no interval."
    )
    if given:
        return f"{text} It was given as a checkpoint: the results are those with this one."
    return f"{text} share_across_seeds=false trains one for each seed."
