"""What is to be read with the verdict of a study, before anything else."""

from bitkd.compare.arms import Arm
from bitkd.compare.checks import learned_nothing
from bitkd.compare.sizes import EQUAL, are_equal, size_ratio
from bitkd.data.tasks import HOLDOUT
from bitkd.names import joined, numbered


def caveats(pairs: list[tuple[Arm, Arm]]) -> list[str]:
    """Sentences about students that learned nothing, the students' sizes, and checkpoints that the reported rows chose.

    pairs: the two arms that the verdict is on, for each task.
    """
    arms = [arm for pair in pairs for arm in pair]
    return [*(text for arm in arms for text in constant(arm)), _sizes(pairs), *_selection(arms)]


def constant(arm: Arm) -> list[str]:
    """A sentence if final students predict the same for every dev row, or nothing right; else none."""
    seeds = [run.seed for run in arm.runs if learned_nothing(run, run.final_predictions)]
    if not seeds:
        return []
    return [
        f"With {numbered('seed', seeds)} the final student of {arm.label} {arm.first.form.nothing} dev row of "
        f"{arm.first.task}: it learned nothing that the metric shows."
    ]


def _sizes(pairs: list[tuple[Arm, Arm]]) -> str:
    (first, second), ratios = pairs[0], sorted(size_ratio(*pair) for pair in pairs)
    if all(map(are_equal, ratios)):
        return f"Their final students are equally large, to within {100 * EQUAL:.0f} %."
    shown = " to ".join(dict.fromkeys((f"{ratios[0]:.2f}", f"{ratios[-1]:.2f}")))
    return f"The final student of {first.pipeline} is {shown} times as large as that of {second.pipeline}."


def _selection(arms: list[Arm]) -> list[str]:
    """A sentence if dev rows chose final checkpoints among several; else none."""
    chosen = [run for arm in arms for run in arm.runs if run.looks > 1 and HOLDOUT not in run.final.dev]
    if not chosen:
        return []
    looks = sorted({run.looks for run in chosen})
    shown = " to ".join(dict.fromkeys((str(looks[0]), str(looks[-1]))))
    tasks = joined(dict.fromkeys(run.task for run in chosen))
    return [
        f"The dev rows that give the scores of {tasks} also chose the final checkpoints, each the best of {shown} validations: "
        "by chance these scores are too high. data.selection=holdout chooses on other rows."
    ]
