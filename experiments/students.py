"""The final students of several records together: mean scores over tasks, and scores against the bytes of exported files."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bitkd.compare.arms import Mean
from bitkd.compare.comparison import Comparison
from bitkd.compare.runs import Run
from bitkd.report.numbers import DASH, mean_text, size_text
from bitkd.report.style import INK, MUTED, PAPER, STYLE, arm_colour, arm_marker, legend_lines
from bitkd.report.tables import TextTable


@dataclass(frozen=True)
class Students:
    """The final students of one arm on one task; a run that several records hold counts once."""

    runs: list[Run]

    @property
    def score(self) -> Mean:
        return Mean.of(run.final.score for run in self.runs)

    @property
    def exported_mib(self) -> float | None:
        """Size of the exported file, where it was measured."""
        sizes = (run.exported.file_mib for run in self.runs if run.exported is not None)
        return next((size for size in sizes if size is not None), None)

    @property
    def counted_mib(self) -> float:
        return self.runs[0].final.packed_mib

    @property
    def mib(self) -> float:
        """Size of the exported file, or as counted where the student cannot be exported."""
        return self.counted_mib if self.exported_mib is None else self.exported_mib


def students_by_arm(comparisons: Sequence[Comparison]) -> dict[str, dict[str, Students]]:
    """Arm -> task -> its final students, in the order of the records."""
    found: dict[str, dict[str, dict[object, Run]]] = {}
    for comparison in comparisons:
        for arm in comparison.arms:
            trainings = found.setdefault(arm.label, {}).setdefault(comparison.first.task, {})
            for run in arm.runs:
                training = (run.final.key, run.final.score)  # another machine may make another student of the same key
                if training not in trainings or run.exported is not None:
                    trainings[training] = run
    return {arm: {task: Students(list(runs.values())) for task, runs in tasks.items()} for arm, tasks in found.items()}


def mean_table(comparisons: Sequence[Comparison]) -> TextTable:
    """Each arm's score on each task, and its mean over the tasks: a dash where a task or a seed of another arm is missing.

    Sizes are those of exported files. If an arm has none on a task, the ratios of that task are of counted sizes.
    """
    arms = students_by_arm(comparisons)
    tasks = sorted({task for by_task in arms.values() for task in by_task})
    seeds = {(task, run.seed) for by_task in arms.values() for task, one in by_task.items() for run in one.runs}
    means = {
        arm: statistics.fmean(one.score.mean or 0 for one in by_task.values())
        for arm, by_task in arms.items()
        if {(task, run.seed) for task, one in by_task.items() for run in one.runs} == seeds
    }
    best = max(means.values(), default=0.0)
    ratios = {task: _size_ratios({arm: one[task] for arm, one in arms.items() if task in one}) for task in tasks}
    header = [
        "arm",
        *(f"{task} (trainings)" for task in tasks),
        "mean of the tasks",
        "points below the best",
        *(f"MiB, {task}" for task in tasks),
        "size, of the smallest",
    ]
    rows = []
    for arm, by_task in arms.items():
        mean = means.get(arm)
        cells = [_score(by_task.get(task)) for task in tasks]
        cells += [DASH, DASH] if mean is None else [f"{mean:.4f}", f"{100 * (best - mean):.2f}"]
        cells += [_size(by_task.get(task)) for task in tasks]
        rows.append([arm, *cells, f"{max(ratios[task][arm] for task in by_task):.3f}"])
    return TextTable(header, rows)


def _size_ratios(students: dict[str, Students]) -> dict[str, float]:
    """Arm -> its size, relative to the smallest."""
    comparable = all(one.exported_mib is not None for one in students.values())
    found = {arm: one.mib if comparable else one.counted_mib for arm, one in students.items()}
    smallest = min(found.values())
    return {arm: size / smallest for arm, size in found.items()}


def _size(students: Students | None) -> str:
    if students is None:
        return DASH
    return f"{size_text(students.mib)}{' (counted)' if students.exported_mib is None else ''}"


def _score(students: Students | None) -> str:
    return DASH if students is None else f"{mean_text(students.score)} ({len(students.runs)})"


def draw_students(comparisons: Sequence[Comparison]) -> Figure:
    """A panel for each task: the mean score of each arm over the size of its exported file, each seed small; hollow where the
    student cannot be exported and its size is counted.
    """
    arms = students_by_arm(comparisons)
    tasks = sorted({comparison.first.task for comparison in comparisons})
    with matplotlib.rc_context(STYLE):
        handles = [
            Line2D([], [], color=arm_colour(place), marker=arm_marker(place), linestyle="", markersize=8, label=arm)
            for place, arm in enumerate(arms)
        ]
        handles.append(Line2D([], [], color=MUTED, marker=".", linestyle="", label="small: a seed"))
        figure = Figure(
            figsize=(4.6 * len(tasks), 4.1 + 0.16 * legend_lines([arm for arm in arms], 4)), layout="constrained"
        )
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
            for place, by_task in enumerate(arms.values()):
                if task not in by_task:
                    continue
                students, colour = by_task[task], arm_colour(place)
                scores = [run.final.score for run in students.runs]
                axes.plot([students.mib] * len(scores), scores, arm_marker(place), color=colour, markersize=3, zorder=3)
                fill = colour if students.exported_mib is not None else PAPER
                axes.plot(
                    students.mib,
                    students.score.mean,
                    arm_marker(place),
                    color=colour,
                    markerfacecolor=fill,
                    markersize=8,
                    zorder=4,
                )
            comparison = next(one for one in comparisons if one.first.task == task)
            axes.set_title(task, color=INK)
            axes.set_xlabel("exported student [MiB]")
            axes.set_ylabel(f"{comparison.metric_text} (dev, larger is better)")
            axes.margins(x=0.12, y=0.08)
        if any(one.exported_mib is None for by_task in arms.values() for one in by_task.values()):
            handles.append(
                Line2D(
                    [], [], color=INK, marker="o", markerfacecolor=PAPER, linestyle="", label="not exported: counted"
                )
            )
        figure.legend(handles=handles, loc="outside upper left", ncols=4)
    return figure
