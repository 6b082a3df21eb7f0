"""wandb's search engine, the `sweeps` package: what a sweep file may contain, and which trial comes next.

Another engine would replace only this file. Import it only inside functions: it loads scikit-learn and scipy.
"""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonschema import ValidationError

from bitkd.errors import InputError
from bitkd.stages.spec import SCORE

with warnings.catch_warnings():
    # The package was written for pydantic 1 and warns when it is imported.
    warnings.filterwarnings("ignore", message="Valid config keys have changed in V2")
    import sweeps
    from sweeps.config.schema import fill_parameter


@dataclass(frozen=True)
class Evaluation:
    """What the engine learns from: a trial of before."""

    name: str
    parameters: dict[str, Any]
    state: Literal["finished", "failed", "running"]
    score: float | None
    """None if it is not finished."""


def fill_content(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a sweep file with the defaults of wandb's schema.

    Raises InputError if the schema does not allow it.
    """
    for key, parameter in content["parameters"].items():
        try:
            known = isinstance(parameter, dict) and fill_parameter(key, parameter)
        except ValueError as error:
            raise InputError(f"{file}: parameters.{error}") from error
        if not known:
            raise InputError(
                f"{file}: parameters.{key}: {parameter} gives no values by wandb's schema; write values: [...], "
                "value: ..., or min: and max: with a distribution: (YAML reads numbers with a point: 2.0e-5, not 2e-5)"
            )
    # run_cap belongs to wandb's server; the schema of this version does not know it.
    known = {key: value for key, value in content.items() if key != "run_cap"}
    try:
        wrong = sweeps.schema_violations_from_proposed_config(known)
        if not wrong:
            return dict(sweeps.SweepConfig(known)) | {"run_cap": content.get("run_cap")}
    except (ValueError, ValidationError) as error:
        wrong = [str(error)]
    raise InputError(f"{file} is no sweep by wandb's schema: {'; '.join(wrong)}")


def known_proposals(file: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of the trials that do not depend on scores: all of grid and random, the first of bayes.

    content: what `fill_content` returned.  Raises InputError if the engine refuses the file.
    """
    cap = content["run_cap"]
    try:
        if content["method"] == "grid":
            found = sweeps.next_runs(content, [], n=cap or 10**9)  # a grid is finite
            return [_to_parameters(run) for run in found if run is not None]
        return [propose(content, number, []) for number in range((cap or 1) if content["method"] == "random" else 1)]
    except (ValueError, AssertionError) as error:
        raise InputError(f"{file}: wandb's engine refuses it: {error}") from error


def propose(content: dict[str, Any], number: int, earlier: Sequence[Evaluation]) -> dict[str, Any]:
    """The parameters of trial `number`: the same from the same scores, whichever process asks."""
    runs = [
        sweeps.SweepRun(
            name=trial.name,
            state=trial.state,
            config={key: {"value": value} for key, value in trial.parameters.items()},
            summaryMetrics={} if trial.score is None else {SCORE: trial.score},
        )
        for trial in earlier
    ]
    with _seeded(number):
        return _to_parameters(sweeps.next_run(content, runs))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The engine samples from the global random states; they are put back afterwards."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _to_parameters(run: Any) -> dict[str, Any]:
    """Key -> value, without numpy's types, which would look different in a command."""
    values = {key: entry["value"] for key, entry in run.config.items()}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
