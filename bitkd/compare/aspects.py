"""In what two runs differ, as far as their records show it."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bitkd.compare.arms import value_text, with_unset
from bitkd.compare.runs import Run, Stage, recorded_kind

FP32 = "W32A32"
FINAL = "final"
"""In place of the final student's precision, where two pipelines are compared whatever that precision is."""

NEARLY = 0.01
"""Steps that differ by less than this share (or by one step) count as equal: budgets in rows or FLOP are rounded."""

SAME_DIVISION = 0.02
"""Stages of one precision divide its steps alike if no stage's share differs by more than this."""

WIDTH = "student.width"
BY_DEFINITION = re.compile(r"stages\.[^.]+\.student|budget\.shares\..+")
"""Settings that differ by definition between two pipelines and are therefore not reported as differences."""

SHOWN_BY_STAGES = re.compile(
    r"budget\..+|(train|stages\.[^.]+)\.(epochs|max_steps|max_tokens)"
    r"|stages\.[^.]+\.(kind|quant\.weight_bits|quant\.activation_bits)"
)
"""Settings whose effect the records of the stages show: their steps, kind and precision."""


@dataclass(frozen=True)
class Aspect:
    """Something in which the first of two runs differs from the second."""

    text: str
    """As it stands in a list."""

    alone: str = ""
    """What the difference of the scores shows if nothing else differs; empty if it has several causes."""

    is_setting: bool = False
    """Whether it is a setting, and `text` its name."""


def aspects(one: Run, other: Run) -> list[Aspect]:
    """Everything in which `one` differs from `other`, the pipelines first, then each setting. Teachers are not looked at."""
    ours, theirs = _trained(one), _trained(other)
    found = _of_shape(one, other)
    keys = _precisions(one, other)
    steps = [_steps(stages, key) for stages, key in zip((ours, theirs), keys)]
    found += _of_steps(*steps)
    both = steps[0].keys() & steps[1].keys()
    plans = [
        [(key[stage.precision], stage) for stage in stages if key[stage.precision] in both]
        for stages, key in zip((ours, theirs), keys)
    ]
    found += _of_plans(*plans)
    own, others = _compared_settings(one, other)
    names = [name for name in differing_settings(one, other) if not SHOWN_BY_STAGES.fullmatch(name)]
    return found + [
        Aspect(name, f"{name}: {value_text(own[name])} against {value_text(others[name])}", is_setting=True)
        for name in names
    ]


def differing_settings(one: Run, other: Run) -> list[str]:
    """Settings that both runs have and that differ, without those that differ by definition.

    Settings of a stage are compared with those of its counterpart, which may have another name.
    """
    own, others = _compared_settings(one, other)
    differing = [name for name, value in own.items() if value != others.get(name, value)]
    return [name for name in differing if not BY_DEFINITION.fullmatch(name)]


def _compared_settings(one: Run, other: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of both runs, those of a stage under the name in `one`. What one sets and the other leaves out is in both,
    if both have the stage.
    """
    own, others = one.settings, _renamed(one, other)
    shared = {_stage_of(name) for name in own} & {_stage_of(name) for name in others}
    named = [name for name in (*own, *others) if _stage_of(name) in shared]
    return with_unset(own, named), with_unset(others, named)


def _stage_of(setting: str) -> str:
    """The name of a stage; empty for a setting that is of none."""
    section, _, rest = setting.partition(".")
    return rest.partition(".")[0] if section == "stages" else ""


def _trained(run: Run) -> list[Stage]:
    """The stages of the chain that train on the task."""
    return [stage for stage in run.stages if stage.in_chain and stage.is_model and stage.steps and not stage.on_corpus]


def _of_shape(one: Run, other: Run) -> list[Aspect]:
    """Splitting, final precision, General KD, and other stages that do not train."""
    found = []
    chains = [[stage for stage in run.stages if stage.in_chain and stage.is_model] for run in (one, other)]
    splits = [any(recorded_kind(stage.kind, stage.name).splits for stage in chain) for chain in chains]
    if splits[0] != splits[1]:
        found.append(Aspect("splitting", "what splitting gives") if splits[0] else Aspect("no splitting"))
    bits = [run.final.precision for run in (one, other)]
    if bits[0] != bits[1]:
        found.append(Aspect(f"final bits ({' against '.join(bits)})", " against ".join(bits)))
    general = [sum(stage.steps for stage in chain if stage.on_corpus) for chain in chains]
    if bool(general[0]) != bool(general[1]):
        found.append(Aspect("General KD", "what General KD gives") if general[0] else Aspect("no General KD"))
    elif not _nearly(*general):
        found.append(Aspect(f"steps of General KD ({_against(*general)})"))
    others = [
        Counter(s.kind for s in chain if not s.steps and not recorded_kind(s.kind, s.name).splits) for chain in chains
    ]
    found += [Aspect(f"a stage of kind {kind}") for kind in others[0] - others[1]]
    return found + [Aspect(f"no stage of kind {kind}") for kind in others[1] - others[0]]


def _precisions(one: Run, other: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Of each run: precision of a stage -> the name under which it is compared.

    That is the precision, or FINAL for the final student's where the runs then have equal steps below FP32: such runs
    differ in their final bits, and in nothing else of their low-bit training.
    """
    runs = (one, other)
    plain, final = [], []
    for run in runs:
        names = {stage.precision: stage.precision for stage in run.stages}
        plain.append(names)
        final.append(names | {run.final.precision: FINAL})
    ours, theirs = (_steps(_trained(run), names) for run, names in zip(runs, final))
    low = (ours.keys() | theirs.keys()) - {FP32}
    same = all(_nearly(ours[key], theirs[key]) for key in low)
    full = any(run.final.precision == FP32 for run in runs)
    return (final[0], final[1]) if same and not full else (plain[0], plain[1])


def _steps(stages: list[Stage], names: dict[str, str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for stage in stages:
        found[names[stage.precision]] += stage.steps
    return found


def _of_steps(ours: Counter[str], theirs: Counter[str]) -> list[Aspect]:
    differing = [key for key in ours | theirs if not _nearly(ours[key], theirs[key])]
    low = [key for key in differing if key != FP32]
    totals = [sum(steps for key, steps in side.items() if key != FP32) for side in (ours, theirs)]
    found = []
    if len(low) > 1 and _nearly(*totals):
        more, fewer = ([key for key in low if (ours[key] > theirs[key]) == side] for side in (True, False))
        moved = sum(ours[key] - theirs[key] for key in more)
        bits = f"{' and '.join(more)}, not {' and '.join(fewer)}"
        found.append(Aspect(f"{moved:,} of {totals[0]:,} low-bit steps (at {bits})"))
        differing = [key for key in differing if key == FP32]
    for key in differing:
        name = "FP32" if key == FP32 else key
        found.append(
            Aspect(
                f"{name} steps ({_against(ours[key], theirs[key])})", "" if theirs[key] else f"what {name} steps give"
            )
        )
    return found


def _of_plans(ours: list[tuple[str, Stage]], theirs: list[tuple[str, Stage]]) -> list[Aspect]:
    """Kinds of stages, and how they divide the steps of each precision that both runs train at."""
    if [(key, stage.kind) for key, stage in ours] != [(key, stage.kind) for key, stage in theirs]:
        return [Aspect("kinds of stages")]
    if any(abs(a - b) > SAME_DIVISION for a, b in zip(_shares(ours), _shares(theirs))):
        return [Aspect("division of steps among stages")]
    return []


def _shares(plan: list[tuple[str, Stage]]) -> list[float]:
    """Of each stage: its share of the steps of its precision."""
    totals: Counter[str] = Counter()
    for key, stage in plan:
        totals[key] += stage.steps
    return [stage.steps / totals[key] for key, stage in plan]


def _renamed(one: Run, other: Run) -> dict[str, Any]:
    """The settings of `other`, those of its stages under the names of their counterparts in `one`.

    The counterpart of a stage has its name. If there is none of its name: it is the first stage of its kind and precision
    that is left.
    """
    keys = _precisions(one, other)
    ours = {stage.name: (stage.kind, keys[0][stage.precision]) for stage in one.stages}
    theirs = {stage.name: (stage.kind, keys[1][stage.precision]) for stage in other.stages}
    left = {name: what for name, what in ours.items() if name not in theirs}
    names = {}
    for name in (name for name in theirs if name not in ours):
        if match := next((mine for mine, what in left.items() if what == theirs[name]), None):
            names[name] = match
            del left[match]
    found = {}
    for setting, value in other.settings.items():
        section, _, rest = setting.partition(".")
        name, _, key = rest.partition(".")
        found[f"stages.{names[name]}.{key}" if section == "stages" and name in names else setting] = value
    return found


def _nearly(a: float, b: float) -> bool:
    return abs(a - b) <= max(1, NEARLY * max(a, b))


def _against(a: int, b: int) -> str:
    return f"{a:,} against {b:,}"
