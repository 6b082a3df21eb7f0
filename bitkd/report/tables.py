"""The tables of a comparison, as text."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bitkd.compare.arms import Arm, Cost, Mean, mean_of_artifacts
from bitkd.compare.comparison import Comparison
from bitkd.compare.exported import Exported
from bitkd.compare.forms import metric_text
from bitkd.compare.inference import MIN_SEEDS, Shares
from bitkd.compare.pairing import DIFFERS
from bitkd.compare.retained import Retained
from bitkd.compare.runs import Stage
from bitkd.data.tasks import HOLDOUT
from bitkd.names import escaped, numbered
from bitkd.report.numbers import DASH, mean_text, minus, p_text, si, signed, size_text, time_text

PER_STEP = ("FLOP per step", "time per step", "s per TFLOP")
"""Of training alone."""

SIZE_RATIO = "size, of the second's"

ONLY_A_RECORD = "not measured: only its record is at hand"


@dataclass(frozen=True)
class TextTable:
    """A table as text; the first column names the row."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown, with the cells' text as it is."""
        header, *rows = [[escaped(cell) for cell in line] for line in (self.header, *self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))

    def without_dashes(self) -> "TextTable":
        """The table without columns in which every cell is a dash, or empty."""
        columns = list(zip(self.header, *self.rows)) if self.rows else []
        told = [column for column in columns if {*column[1:]} - {DASH, ""}]
        return TextTable([name for name, *_ in told], [list(row) for row in zip(*(cells for _, *cells in told))])


def paragraph(text: str) -> str:
    """Text as a paragraph of Markdown: like `escaped`, and it begins no list, heading or quotation."""
    return re.sub(r"^(\s*)([#+=-]|\d+(?=[.)]))", lambda found: f"{found[1]}{_first_escaped(found[2])}", escaped(text))


def _first_escaped(start: str) -> str:
    return f"&#{ord(start[0])};{start[1:]}"


def headline(comparison: Comparison) -> TextTable:
    """The main table: a row for each arm."""
    budgets = any(arm.first.budget for arm in comparison.arms)
    header = ["arm", comparison.metric_text, "teacher score retained", "student / teacher", "bits", "MiB packed"]
    header += [
        "FLOP of products",
        "training time",
        "seeds",
        "stages",
        "hyper-parameters",
        *(["budget"] if budgets else []),
    ]
    rows = []
    for arm, share in zip(comparison.arms, comparison.retained, strict=True):
        chain = arm.chain
        ratio = DASH if arm.ratio.mean is None else f"{arm.ratio.mean:.3f}{_seeds_text(arm.ratio, arm)}"
        row = [arm.label, mean_text(arm.final), retained_text(share), ratio]
        row += [
            arm.first.final.precision,
            size_text(arm.first.final.packed_mib),
            si(chain.flops),
            time_text(chain.seconds),
        ]
        row += [str(len(arm.runs)), str(arm.num_stages), str(arm.first.hyperparameters)]
        rows.append(row + ([arm.first.budget_text or DASH] if budgets else []))
    return TextTable(header, rows)


def _seeds_text(value: Mean, arm: Arm) -> str:
    return f" ({value.count} of {len(arm.runs)} seeds)" if 0 < value.count < len(arm.runs) else ""


def retained_text(share: Retained | None) -> str:
    """0.912 (0.85 to 0.98), or a dash if there is no value."""
    if share is None:
        return DASH
    low, high = (minus(f"{end:.2f}") for end in (share.low, share.high))
    return f"{minus(f'{share.mean:.3f}')} ({low} to {high})"


SEEDS_UNKNOWN = "says nothing of other seeds"
FEW_SEEDS = f"Too few seeds for an interval for other seeds; it needs {MIN_SEEDS} in both arms."


def difference_table(comparison: Comparison) -> TextTable:
    """The differences between arms, each with its intervals; columns that no difference has a value for are left out."""
    found = comparison.differences
    columns = {
        "difference": [f"{one.first} − {one.second}" for one in found],
        f"in {comparison.metric_text}": [signed(one.estimate.value) for one in found],
        "95 %, these models": [_interval_text(one.estimate.rows) for one in found],
    }
    if any(one.estimate.p is not None for one in found):
        columns["95 %, other seeds"] = [_interval_text(one.estimate.interval()) for one in found]
        columns["p"] = [p_text(one.estimate.p) for one in found]
        columns["p by Holm"] = [_named_text(comparison) if one.primary else p_text(one.p_holm) for one in found]
        columns["detectable"] = [_known(one.estimate.detectable(), "{:.4f}".format) for one in found]
        columns["rows : seeds : both"] = [shares_text(one.estimate.shares) for one in found]
    columns[SIZE_RATIO] = [f"{comparison.size_ratio(one):.2f}" for one in found]
    return TextTable(list(columns), [list(row) for row in zip(*columns.values())])


def questions(comparison: Comparison) -> list[str]:
    """Sentences below the table of differences: what each shows, or in what its arms differ, as far as the records tell; before
    them, why there is no interval for other seeds if no difference has one.
    """
    found = comparison.differences
    few = bool(found) and all(one.estimate.p is None for one in found)
    return [FEW_SEEDS] * few + [
        f"{one.first} {one.question}."
        if one.question.startswith(DIFFERS)
        else f"{one.first} − {one.second}: {one.question}."
        for one in found
        if one.question
    ]


def _named_text(comparison: Comparison) -> str:
    """Of the difference that was named; it names the study's seeds if runs of others are at hand."""
    if comparison.study is None:
        return DASH
    study = comparison.study.record
    others = any(set(arm.seeds) - set(study.seeds) for arm in comparison.arms if arm.pipeline in study.primary)
    return "named before" + (f", {numbered('seed', study.seeds)}" if others else "")


def _interval_text(ends: tuple[float, float] | None) -> str:
    return SEEDS_UNKNOWN if ends is None else f"{signed(ends[0])} to {signed(ends[1])}"


def shares_text(shares: Shares | None) -> str:
    """Rows : seeds : both, in percent of the variance."""
    if shares is None:
        return DASH
    return " : ".join(f"{100 * share:.0f}" for share in (shares.rows, shares.seeds, shares.both)) + " %"


def size_table(comparison: Comparison) -> TextTable:
    """The sizes of the final students by each convention."""
    header = [
        "arm",
        "bits",
        "MiB on paper",
        "MiB packed",
        "MiB of the training state",
        "parameters",
        "encoder bits",
        "word tables",
    ]
    rows = []
    for arm in comparison.arms:
        final = arm.first.final
        tables = f"{final.word_tables} (all counted)" if final.word_tables > 1 else str(final.word_tables)
        sizes = [size_text(size) for size in (final.paper_mib, final.packed_mib, final.disk_mib)]
        rows.append([arm.label, final.precision, *sizes, si(final.parameters), si(final.encoder_bits), tables])
    return TextTable(header, rows)


def exported_table(comparison: Comparison) -> TextTable:
    """The final students as `bitkd export` writes them, beside their teachers. No rows if none was measured."""
    if not any(arm.exported for arm in comparison.arms):
        return TextTable(["arm"], [])
    header = ["arm", "bits", "MiB counted", "MiB exported", "MiB teacher", "times smaller"]
    for batch, length in comparison.speed_shapes:
        header += [f"{name} {batch}×{length}" for name in ("ms", "teacher", "faster")]
    rows = []
    for arm in comparison.arms:
        final, teacher, exported = arm.first.final, arm.first.teacher, arm.exported
        file_mib = exported.file_mib if exported else None
        row = [arm.label, final.precision, size_text(final.packed_mib), size_text(file_mib) if file_mib else DASH]
        row.append(size_text(teacher.disk_mib) if teacher else DASH)
        row.append(f"{teacher.disk_mib / file_mib:.3g}" if teacher and file_mib else DASH)
        for shape in comparison.speed_shapes:
            speed = exported.speed(shape) if exported else None
            values = (speed.student_ms, speed.teacher_ms, speed.times_faster) if speed else (None, None, None)
            row += [DASH if value is None else f"{value:.3g}" for value in values]
        rows.append(row)
    return TextTable(header, rows)


def measured_with(comparison: Comparison) -> list[str]:
    """Lines below the table of exported students: the machine, and why a cell is empty."""
    labels: dict[str, list[str]] = {}
    for arm in comparison.arms:
        exported = arm.exported or Exported(None, [], "", missing=ONLY_A_RECORD)
        timed = exported.machine and f"measured with {exported.machine}, the student run by {exported.runs_by}"
        for text in (timed, exported.missing):
            if text:
                labels.setdefault(text, []).append(arm.label)
    if set(labels) <= {ONLY_A_RECORD}:
        return []
    everywhere = [arm.label for arm in comparison.arms]
    return [
        f"{text[0].upper()}{text[1:]}." if names == everywhere else f"{', '.join(names)}: {text}."
        for text, names in labels.items()
    ]


def cost_table(comparison: Comparison) -> TextTable:
    """The cost of the chain with and without General KD, and of what is shared, each on its own row; what several arms share
    is one row.
    """
    header = [
        "arm",
        "of",
        "steps",
        "examples",
        "tokens",
        "with padding",
        "student FLOP",
        "teacher FLOP",
        "importance FLOP",
    ]
    header += ["FLOP of products", "training time", "training alone", *PER_STEP, "device"]
    rows = []
    sharing: dict[frozenset[str], list[Arm]] = {}
    for arm in comparison.arms:
        rows.append([arm.label, "whole chain", *_cost_cells(arm.chain), "; ".join(arm.devices) or DASH])
        if arm.has_general:
            rows.append(["", "without General KD", *_cost_cells(arm.without_general), ""])
        if shared := frozenset(stage.key for run in arm.runs for stage in run.stages if not stage.in_chain):
            sharing.setdefault(shared, []).append(arm)
    for arms in sharing.values():
        titles = ", ".join(stage.title for stage in arms[0].first.stages if not stage.in_chain)
        rows.append([_of(arms, comparison), f"shared, apart: {titles}", *_cost_cells(arms[0].shared), ""])
    return TextTable(header, rows).without_dashes()


def _of(arms: list[Arm], comparison: Comparison) -> str:
    """The names of some of a comparison's arms."""
    every = 1 < len(arms) == len(comparison.arms)
    return "all arms" if every else ", ".join(arm.label for arm in arms)


def _cost_cells(cost: Cost) -> list[str]:
    seen = [si(cost.examples), _known(cost.tokens, si), _known(cost.padded_tokens, si)]
    flops = [si(cost.student_flops), si(cost.teacher_flops), _known(cost.importance_flops, si), si(cost.flops)]
    times = [time_text(cost.seconds), _known(cost.training_seconds, time_text)]
    return [f"{cost.steps:,.0f}", *seen, *flops, *times, *_step_cells(cost)]


def _step_cells(cost: Cost) -> list[str]:
    flops = si(cost.flops / cost.steps) if cost.steps else DASH
    return [flops, _known(cost.seconds_per_step, time_text), _known(cost.seconds_per_tflop, "{:.3g}".format)]


def _known(value: float | None, text: Callable[[float], str]) -> str:
    return DASH if value is None else text(value)


def _measured(arm: Arm) -> list[tuple[str, str]]:
    """Dev sets and metrics of an arm's final student, the task's metrics first."""

    def place(metric: str) -> int:
        return arm.first.metrics.index(metric) if metric in arm.first.metrics else len(arm.first.metrics)

    sets = {dev: values for dev, values in arm.first.final.dev.items() if dev != HOLDOUT}
    return [(dev, metric) for dev, values in sets.items() for metric in sorted(values, key=place)]


def stage_table(arm: Arm) -> TextTable:
    """An arm's stages: each metric of each dev set as the mean over seeds, and the cost."""
    measured = _measured(arm)
    return TextTable(_stage_header(measured), _stage_rows(arm, measured)).without_dashes()


def _stage_header(measured: list[tuple[str, str]]) -> list[str]:
    metrics = [f"{dev} {metric_text(metric)}" for dev, metric in measured]
    costs = ["student FLOP", "teacher FLOP", "importance FLOP", "training time", "training alone", *PER_STEP]
    return ["stage", *metrics, "bits", "steps", "chosen step", "looks", *costs]


def _stage_rows(arm: Arm, measured: list[tuple[str, str]]) -> list[list[str]]:
    rows = []
    for position, stage in enumerate(arm.first.stages):
        same_stage = [run.stages[position] for run in arm.runs]
        cells = [
            mean_text(mean_of_artifacts(same_stage, partial(_dev_value, dev=dev, metric=metric)))
            if stage.score is not None
            else DASH
            for dev, metric in measured
        ]
        cost = Cost.mean([Cost.of([one]) for one in same_stage])
        costs = [f"{cost.steps:,.0f}", *_choice_cells(same_stage), si(cost.student_flops), si(cost.teacher_flops)]
        alone = cost.training_seconds if cost.steps else None
        costs += [_known(cost.importance_flops, si), time_text(cost.seconds), _known(alone, time_text)]
        costs += _step_cells(cost)
        name = stage.title if stage.title == stage.name else f"{stage.title} ({stage.name})"
        rows.append([name + ("" if stage.in_chain else ", shared"), *cells, stage.precision or DASH, *costs])
    return rows


def _choice_cells(same_stage: list[Stage]) -> list[str]:
    """The chosen steps of a stage under each seed, and how many validations on how many rows chose among them."""
    stages = {stage.key: stage for stage in same_stage if stage.selected_step is not None}.values()
    looks = {
        f"best of {len(stage.curve)}" + (f" on {stage.selection_rows:,} rows" if stage.selection_rows else "")
        if stage.selected == "best"
        else "last"
        for stage in stages
    }
    steps = [f"{stage.selected_step:,}" for stage in stages]
    return ["; ".join(steps) or DASH, "; ".join(sorted(looks)) or DASH]


def stages_table(comparison: Comparison) -> TextTable:
    """The stages of all arms; those that several arms share once."""
    measured = list(dict.fromkeys(found for arm in comparison.arms for found in _measured(arm)))
    cells: dict[tuple[str, ...], list[str]] = {}
    sharing: dict[tuple[str, ...], list[Arm]] = {}
    for arm in comparison.arms:
        for position, row in enumerate(_stage_rows(arm, measured)):
            keys = tuple(run.stages[position].key for run in arm.runs)
            cells.setdefault(keys, row)
            sharing.setdefault(keys, []).append(arm)
    rows = [[_of(sharing[keys], comparison), *row] for keys, row in cells.items()]
    return TextTable(["arm", *_stage_header(measured)], rows).without_dashes()


def _dev_value(stage: Stage, dev: str, metric: str) -> float | None:
    return stage.dev.get(dev, {}).get(metric)
