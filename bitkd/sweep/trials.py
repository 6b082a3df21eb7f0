"""The trials of a sweep: proposed by wandb's own engine, remembered as files, so that a killed sweep goes on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sweeps

from bitkd.config.comparable import NUMBERLESS, PLACES, is_among
from bitkd.config.schema import Config
from bitkd.errors import InputError
from bitkd.files import digest, read_json, write_json
from bitkd.pipeline.plan import make_plan
from bitkd.sources.cache import FactCache, open_cache
from bitkd.store.artifacts import read_artifact
from bitkd.store.lock import Lock
from bitkd.store.run_folder import RunFolder
from bitkd.sweep.spec import METRIC, SweepSpec

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"

_STATES = {FINISHED: "finished", FAILED: "failed"}
"""States as the engine calls them; all others are under way to it."""


@dataclass
class Trial:
    """One choice of parameters and what became of it.

    number: position among the proposals.  run: its run folder.  seconds: of its starts together, killed ones aside.
    score: the final student's.
    """

    number: int
    name: str
    parameters: dict[str, Any]
    log: str
    run: str
    state: str = WAITING
    score: float | None = None
    seconds: float = 0.0
    starts: int = 0
    exit_code: int | None = None


@dataclass
class Sweep:
    """A sweep and its folder, `<run.dir>/sweeps/<name>`, which several processes and machines may share."""

    spec: SweepSpec
    folder: Path
    proposals: list[dict[str, Any]] = field(default_factory=list)
    """All of them, in order; of bayes, only those that need no score."""

    _configs: dict[str, Config] = field(default_factory=dict)
    """Name of a trial -> its configuration, which takes time to put together."""

    _planned: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name of a finished trial -> the artifacts that its run would end with by now."""

    _cache: FactCache | None = None

    @classmethod
    def open(cls, spec: SweepSpec) -> "Sweep":
        """Check every trial that is known beforehand; InputError before anything is written."""
        try:
            proposals = _known(spec)
        except (ValueError, AssertionError) as error:
            raise InputError(f"{spec.file}: wandb's engine refuses it: {error}") from error
        if not proposals:
            raise InputError(f"{spec.file}: its parameters give no trial; give each parameter a value")
        folder = Path(spec.config(proposals[0]).run.dir).expanduser().resolve() / "sweeps" / spec.name
        sweep = cls(spec, folder, proposals)
        for parameters in (*proposals, *_values(spec, proposals[0])):
            sweep._trial(0, parameters, check=True)
        sweep._check_earlier()
        return sweep

    @property
    def total(self) -> int:
        """Number of proposals."""
        return (self.spec.run_cap or 0) if self.spec.method == "bayes" else len(self.proposals)

    def begin(self) -> None:
        """Create the folder and keep what is run in it."""
        try:
            for name in ("trials", "logs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "sweep.json", self._spec())
        except OSError as error:
            raise InputError(
                f"{self.folder} is not writable ({error.strerror}); choose another with run.dir="
            ) from error

    def trial(self, number: int) -> Trial:
        """The trial of a number, as its file tells or new; of bayes, proposed from what is finished by now."""
        if number < len(self.proposals):
            return self._trial(number, self.proposals[number])
        earlier = self.trials()
        kept = next((trial.parameters for trial in earlier if trial.number == number), None)
        return self._trial(number, kept or _propose(self.spec, number, [self.read(trial) for trial in earlier]))

    def read(self, trial: Trial) -> Trial:
        """The same trial, as its file tells by now."""
        return self._trial(trial.number, trial.parameters)

    def trials(self) -> list[Trial]:
        """All trials that have a file, by number."""
        found = map(_read, (self.folder / "trials").glob("[!.]*.json"))
        return sorted((trial for trial in found if trial), key=lambda trial: trial.number)

    def listed(self) -> list[Trial]:
        """All trials that are known, best first."""
        if self.spec.method == "bayes":
            trials = {trial.name: trial for trial in [*map(self.read, self.trials()), self.trial(0)]}
        else:
            trials = {trial.name: trial for trial in map(self.trial, reversed(range(self.total)))}
        worst = float("-inf")
        return sorted(trials.values(), key=lambda t: (-(worst if t.score is None else t.score), t.number))

    def keep(self, trial: Trial) -> None:
        """Write a trial's file."""
        write_json(self._file(trial.name), asdict(trial))

    def lock(self, trial: Trial) -> Lock:
        """The right to run a trial."""
        return Lock(self.folder, trial.name)

    def command(self, trial: Trial) -> list[str]:
        """The words that start a trial, as `wandb agent` composes them."""
        return self.spec.command(trial.parameters, f"run.name={trial.name}")

    def _trial(self, number: int, parameters: dict[str, Any], check: bool = False) -> Trial:
        name = f"{self.spec.name}-{digest([parameters, _with_result(self.spec.settings)])[:8]}"
        if name not in self._configs:
            self._configs[name] = self.spec.config(parameters, check)
        config = self._configs[name]
        run = Path(config.run.dir).expanduser().resolve() / config.task.name / name
        made = Trial(number, name, parameters, str(self.folder / "logs" / f"{name}.log"), str(run))
        found = _read(self._file(name))
        if found is None:
            return made
        if found.state == FINISHED and not self._holds(found, run):
            found.state, found.score = WAITING, None
        if self.spec.method != "bayes":  # which finds by its number what it proposed
            found.number = number
        found.run, found.log = made.run, made.log
        return found

    def _holds(self, trial: Trial, run: Path) -> bool:
        """Whether a finished trial's run is there, and would be the same with the sources and settings of now."""
        if score_of(run) is None:
            return False
        if trial.name not in self._planned:
            config = self._configs[trial.name]
            self._cache = self._cache or open_cache(config, read_disk=True)
            self._planned[trial.name] = planned_keys(config, self._cache)
        return RunFolder.read(run).stages == self._planned[trial.name]

    def _file(self, name: str) -> Path:
        return self.folder / "trials" / f"{name}.json"

    def _spec(self) -> dict[str, Any]:
        return {"file": str(self.spec.file), "spec": self.spec.content, "settings": _with_result(self.spec.settings)}

    def _check_earlier(self) -> None:
        """Bayes proposes from scores, which must be of the same sweep."""
        earlier = read_json(self.folder / "sweep.json")
        if self.spec.method != "bayes" or earlier is None:
            return
        now = self._spec()
        if any(earlier.get(key) != now[key] for key in ("spec", "settings")):
            raise InputError(
                f"{self.folder} was begun by another file or other settings, and bayes learns from all its trials; give the "
                "sweep another name:, or delete the folder (its runs are kept)"
            )


def _read(file: Path) -> Trial | None:
    """A trial's file; null where there is none, or none of this version's."""
    content = read_json(file)
    try:
        return Trial(**{key: value for key, value in content.items() if key in Trial.__dataclass_fields__})
    except (AttributeError, TypeError):
        return None


def planned_keys(config: Config, cache: FactCache) -> dict[str, str]:
    """Stage -> artifact that a run of `config` ends with. InputError where it could not be run."""
    try:
        return {stage.name: stage.key for stage in make_plan(config, cache).stages}
    finally:
        cache.save()


def score_of(run: Path) -> float | None:
    """Score of a finished run's final student; null where a stage is missing."""
    try:
        manifest = RunFolder.read(run).manifest
        if not manifest or not manifest.planned or manifest.artifacts != manifest.planned:
            return None
        return read_artifact(run / list(manifest.planned)[-1]).metrics.score
    except InputError:
        return None


def _known(spec: SweepSpec) -> list[dict[str, Any]]:
    if spec.method == "grid":
        limit = spec.run_cap or 10**9  # the engine ends by itself
        return [_plain(found) for found in sweeps.next_runs(spec.content, [], n=limit) if found is not None]
    return [_propose(spec, number, []) for number in range((spec.run_cap or 1) if spec.method == "random" else 1)]


def _values(spec: SweepSpec, first: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of bayes, whose trials are not known beforehand: the first with each listed value in turn."""
    if spec.method == "bayes":
        for key, parameter in spec.content["parameters"].items():
            for value in parameter.get("values", []):
                yield first | {key: value}


def _propose(spec: SweepSpec, number: int, earlier: Sequence[Trial]) -> dict[str, Any]:
    """Proposal `number`; equal ones from equal scores, whichever process asks."""
    random.seed(number)  # what the engine samples with
    np.random.seed(number)
    runs = [
        sweeps.SweepRun(
            name=trial.name,
            state=_STATES.get(trial.state, "running"),
            config={key: {"value": value} for key, value in trial.parameters.items()},
            summaryMetrics={} if trial.score is None else {METRIC: trial.score},
        )
        for trial in earlier
    ]
    return _plain(sweeps.next_run(spec.content, runs))


def _plain(run: Any) -> dict[str, Any]:
    """A proposal without numpy's types, which a command would spell in their own way."""
    values = {key: entry["value"] for key, entry in run.config.items()}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}


def _with_result(settings: Sequence[str]) -> list[str]:
    """The settings that a trial is told apart by."""
    return sorted(text for text in settings if not is_among(text.partition("=")[0], (*NUMBERLESS, *PLACES)))
