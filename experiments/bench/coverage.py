"""How often intervals hold the true difference, and how often equal arms seem to differ (`make bench SUITE=coverage`).

Studies are simulated (simulated.py), scored and judged by bitkd's own code. The results stand in RESULTS.md.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import cache, partial

import numpy as np
from figures import Result, report
from numpy.random import default_rng
from simulated import MRPC, SST2, Array, Population

from bitkd.compare.inference import Estimate, estimate, holm
from bitkd.compare.resampling import row_weights
from bitkd.compare.scores import weighted_scores

POINT = 0.01
RESAMPLES = 500
SLOW = {"pearson_spearman": (5, 200)}
"""Metrics of which one study of so many is made, and that many resamples of it."""

BOUNDS = (92.0, 98.5)
"""Percent of studies whose interval should hold the truth, if each arm has three seeds or more."""

FALSE_ALARMS = 6.0
"""Percent of studies of equal arms that may show any difference."""

SETS = {
    "like SST-2": Population("accuracy", SST2, (0.0156, 0.0156), (0, POINT)),
    "like MRPC": Population("accuracy", MRPC, (0.0117, 0.0117), (0, POINT)),
    "quiet seeds": Population("accuracy", SST2, (0.004, 0.004), (0, POINT)),
    "unequal seeds": Population("accuracy", SST2, (0.004, 0.025), (0, POINT)),
}
ROWS = (277, 408, 872, 2000)
SEEDS = (2, 3, 5, 10)

F1 = Population("f1", MRPC, (0.0117, 0.0117), (0, POINT), positive=0.68)
MATTHEWS = Population("matthews", SST2, (0.0156, 0.0156), (0, POINT), positive=0.69)
CORRELATION = Population("pearson_spearman", SST2, (0.006, 0.006), (0, POINT), correlation=0.85)
OTHERS = [
    *(("F1", F1, 408, (seeds, seeds)) for seeds in SEEDS),
    *(("Matthews", MATTHEWS, 1043, (seeds, seeds)) for seeds in SEEDS),
    *(("correlations", CORRELATION, 1500, (seeds, seeds)) for seeds in (2, 3, 5)),
    ("correlations", CORRELATION, 300, (3, 3)),
    *(("accuracy, like SST-2", SETS["like SST-2"], 872, seeds) for seeds in ((1, 3), (3, 5), (3, 10))),
    ("accuracy, unequal seeds", SETS["unequal seeds"], 872, (10, 3)),
    ("accuracy, unequal seeds", SETS["unequal seeds"], 872, (3, 10)),
]
EQUAL = [
    *(
        ("like SST-2", SST2, 0.0156, rows, seeds)
        for rows, seeds in ((872, 3), (872, 5), (872, 10), (2000, 3), (2000, 5))
    ),
    *(("like MRPC", MRPC, 0.0117, 408, seeds) for seeds in (3, 5, 10)),
    *(("quiet seeds", SST2, 0.004, 872, seeds) for seeds in (3, 5)),
]
PAIRS = ((1, 0), (2, 0), (3, 0), (4, 0), (1, 3), (1, 4))
"""The differences of five arms, as `bitkd compare` takes them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1500, help="simulated studies of each cell")
    studies = parser.parse_args().studies
    print(f"standard error of a share of 95 %: {100 * np.sqrt(0.95 * 0.05 / studies):.2f} points")
    tables: list[str] = []
    code = report("coverage", (partial(part, studies, tables) for part in (accuracies, false_alarms, others)))
    print("\n".join(tables))
    return code


def accuracies(studies: int, tables: list[str]) -> Iterator[Result]:
    """The grid of accuracies."""
    found: list[float] = []
    tables += ["", "| rows | seeds | " + " | ".join(SETS) + " |", "| --- " * (2 + len(SETS)) + "|"]
    for rows in ROWS:
        for seeds in SEEDS:
            cells = []
            for name, population in SETS.items():
                cell = Cell(population, rows, (seeds, seeds), studies)
                yield from cell.results(f"accuracy, {name}, {rows} rows, {seeds} seeds", found)
                cells.append(cell.text)
            tables.append(f"| {rows:,} | {seeds} | {' | '.join(cells)} |")
    yield from extremes(found, "accuracy")


def others(studies: int, tables: list[str]) -> Iterator[Result]:
    """Other metrics, and arms with different numbers of seeds."""
    found: list[float] = []
    tables += ["", "| metric | rows | seeds | coverage |", "| --- | --- | --- | --- |"]
    for name, population, rows, seeds in OTHERS:
        cell = Cell(population, rows, seeds, studies // SLOW.get(population.metric, (1, RESAMPLES))[0])
        shown = str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]}"
        yield from cell.results(f"{name}, {rows} rows, {shown} seeds", found)
        tables.append(f"| {name} | {rows:,} | {shown} | {cell.text} |")
    yield from extremes(found, "other metrics and numbers of seeds")


def extremes(found: list[float], what: str) -> Iterator[Result]:
    low, high = BOUNDS
    yield f"{what}: lowest coverage", min(found), "%", (">=", low)
    yield f"{what}: highest coverage", max(found), "%", ("<=", high)


class Cell:
    """Coverage and width of the intervals of two arms, in percent and points."""

    def __init__(self, population: Population, rows: int, seeds: tuple[int, int], studies: int) -> None:
        random = default_rng([rows, *seeds])
        truth = population.scores[1] - population.scores[0]
        of_all, of_these, widths = [], [], []
        for _ in range(studies):
            (first, second), qualities = study(population, random, rows, seeds)
            found = estimate(second, first)
            these = population.score(qualities[1]).mean() - population.score(qualities[0]).mean()
            of_these.append(found.rows[0] <= these <= found.rows[1])
            if interval := found.interval():
                of_all.append(interval[0] <= truth <= interval[1])
                widths.append(interval[1] - interval[0])
        self.these = 100 * float(np.mean(of_these))
        self.all = 100 * float(np.mean(of_all)) if of_all else None
        self.width = 100 * float(np.median(widths)) if widths else None

    def results(self, name: str, found: list[float]) -> Iterator[Result]:
        yield f"{name}, these models", self.these, "%", None
        if self.all is not None and self.width is not None:
            found.append(self.all)
            yield f"{name}, other seeds", self.all, "%", (">=", BOUNDS[0])
            yield f"{name}, median width", self.width, "points", None

    @property
    def text(self) -> str:
        return f"{self.these:.1f} / " + ("–" if self.all is None else f"{self.all:.1f} ({self.width:.1f})")


def false_alarms(studies: int, tables: list[str]) -> Iterator[Result]:
    """Five arms that are equally good, and their six differences."""
    tables += ["", "| arms | rows | seeds | of each | any of six | any of six, Holm |", "| --- " * 6 + "|"]
    for name, correct, deviation, rows, seeds in EQUAL:
        population = Population("accuracy", correct, (deviation,) * 5, (0.0,) * 5)
        random = default_rng([rows, seeds])
        alarms = []
        for _ in range(studies):
            arms, _ = study(population, random, rows, (seeds,) * 5)
            p = [p_value(estimate(arms[one], arms[other])) for one, other in PAIRS]
            alarms.append([np.mean(np.less(p, 0.05)), min(p) < 0.05, min(holm(p)) < 0.05])
        each, any_of_them, corrected = 100 * np.mean(alarms, axis=0)
        what = f"five equal arms {name}, {rows} rows, {seeds} seeds"
        yield f"{what}: each difference", float(each), "%", None
        yield f"{what}: any of six", float(any_of_them), "%", None
        yield f"{what}: any of six after Holm", float(corrected), "%", ("<=", FALSE_ALARMS)
        tables.append(f"| {name} | {rows:,} | {seeds} | {each:.1f} | {any_of_them:.1f} | {corrected:.1f} |")


def study(
    population: Population, random: np.random.Generator, rows: int, seeds: tuple[int, ...]
) -> tuple[list[Array], list[Array]]:
    """Each arm's scores (1 + resamples, seeds) and true qualities (seeds,) of a simulated study."""
    labels, predicted, qualities = population.draw(random, rows, seeds)
    resamples = SLOW.get(population.metric, (1, RESAMPLES))[1]
    scores = weighted_scores(
        population.metric, population.num_labels, labels, np.concatenate(predicted), weights(rows, resamples)
    )
    return np.split(scores.T, np.cumsum(seeds)[:-1], axis=1), qualities


@cache
def weights(rows: int, resamples: int) -> Array:
    """The same for all studies, as they are in bitkd."""
    return np.concatenate(list(row_weights(rows, resamples)))


def p_value(found: Estimate) -> float:
    assert found.p is not None
    return found.p


if __name__ == "__main__":
    sys.exit(main())
