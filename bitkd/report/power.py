"""What a next study needs, as a table and in words."""

import math
from typing import Any

from bitkd.compare.planning import Planned
from bitkd.compare.study import POINT
from bitkd.names import joined
from bitkd.report.tables import TextTable, shares_text
from bitkd.report.verdict import points_text

SHARES = "rows : seeds : both"
EQUAL = "shown equal"
ROUGH = 10
"""Degrees of freedom below which a variance may be several times larger or smaller."""

SEEDS = (3, 5, 10, 20, 40, math.inf)
TIMES = (1, 2, 4)
"""Of the table: seeds per arm, and how many times the rows at hand."""


def power_table(planned: Planned) -> TextTable:
    """A row for each number of seeds; the chance by rows, and where the variance comes from at the rows at hand."""
    header = ["seeds per arm", *("rows at hand" if times == 1 else f"rows × {times}" for times in TIMES), EQUAL, SHARES]
    rows = [
        [
            "unlimited" if math.isinf(seeds) else str(seeds),
            *(f"{100 * planned.power(seeds, times):.0f} %" for times in TIMES),
            f"{100 * planned.equality(seeds):.0f} %",
            shares_text(planned.components.shares(seeds)),
        ]
        for seeds in SEEDS
    ]
    return TextTable(header, rows)


def above_table(planned: Planned) -> list[str]:
    """What is planned, and what the chances of the table are."""
    at_hand = joined(
        [f"{one.task} ({one.rows:,} rows; {one.seeds[0]} and {one.seeds[1]} seeds)" for one in planned.tasks]
    )
    mean = ", mean over the tasks" if len(planned.tasks) > 1 else ""
    margin = points_text(planned.margin)
    return [
        f"{planned.first} − {planned.second} ({planned.reason}) on {at_hand}{mean}.",
        f"The chance to find a true difference of {margin} ({100 * (1 - planned.alpha):g} % interval above 0). It is also the "
        f"chance to show “not worse by {margin}” if the two are equal. “{EQUAL.capitalize()}” is the chance to show “equal to "
        f"within {margin}” then, on the rows at hand.",
        *planned.notes,
    ]


def below_table(planned: Planned) -> list[str]:
    """What follows from the table, and how rough it is."""
    return [*_needed(planned), *_sources(planned)]


def _needed(planned: Planned) -> list[str]:
    margin = points_text(planned.margin)
    floor = (
        "The smallest difference that unlimited seeds show with a chance of 80 % on the rows at hand: "
        f"{_with_interval(planned.detectable)}."
    )
    needed = planned.seeds_needed()
    if needed is not None:
        return [f"For a chance of 80 % at {margin}, the rows at hand need {needed:,} seeds per arm.", floor]
    # Twice the rows that unlimited seeds need.
    times = 2 * planned.times_needed
    rows = joined(f"{math.ceil(times * one.rows):,} rows of {one.task}" for one in planned.tasks)
    enough = f" {planned.seeds_needed(times):,} seeds per arm and {rows} ({times:.2g} times those at hand) give it."
    return [f"With the rows at hand no number of seeds gives a chance of 80 % at {margin}.{enough}", floor]


def _sources(planned: Planned) -> list[str]:
    found = planned.components
    runs = sum(arm.seeds for arm in found.arms)
    if not found.seed_degrees:
        return [
            f"These numbers are rough: the {runs} runs at hand show no difference between seeds, so that only the part of rows × "
            "seeds is counted for them. More seeds would tell."
        ]
    return [
        "From seed to seed an arm's score has a standard deviation, without what comes from the choice of rows, of "
        f"{_with_interval(found.seed_deviation())}.",
        f"What depends on seeds is rough: their variance has {found.seed_degrees:.1f} degrees of freedom, from {runs} runs"
        + (
            ", so that the seeds that are needed may be several times more or fewer."
            if found.seed_degrees < ROUGH
            else "."
        ),
    ]


def _with_interval(values: tuple[float, float, float]) -> str:
    value, low, high = (f"{one:.2g}" if one < 99.5 else f"{one:,.0f}" for one in (each / POINT for each in values))
    return f"{value} points (95 % interval {low} to {high})"


def power_data(planned: Planned) -> dict[str, Any]:
    """The same numbers as plain data. Users' programs read these keys. Unlimited seeds are None."""
    found = planned.components
    return {
        "first": planned.first,
        "second": planned.second,
        "reason": planned.reason,
        "tasks": [{"task": one.task, "rows": one.rows, "seeds": list(one.seeds)} for one in planned.tasks],
        "margin": planned.margin,
        "alpha": planned.alpha,
        "power": [
            {
                "seeds": None if math.isinf(seeds) else seeds,
                "times_rows": times,
                "power": planned.power(seeds, times),
                "equal": planned.components.equality(planned.difference, seeds, times, planned.alpha),
            }
            for seeds in SEEDS
            for times in TIMES
        ],
        "seeds_needed": planned.seeds_needed(),
        "times_rows_needed": planned.times_needed,
        "detectable": _interval_data(planned.detectable),
        "variance": {"rows": found.rows, "rows_error": found.rows_error, "seeds": found.seeds, "both": found.both},
        "seed_deviation": _interval_data(found.seed_deviation()) if found.seed_degrees else None,
        "seed_degrees": found.seed_degrees,
        "notes": planned.notes,
    }


def _interval_data(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), values, strict=True))
