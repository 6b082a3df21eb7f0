"""The trials of a sweep: proposed by an engine, kept as files, so that a killed sweep can be resumed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from bitkd.config.comparable import LOCAL_PATHS, NO_EFFECT_ON_RESULTS, is_among
from bitkd.config.schema import Config
from bitkd.errors import InputError
from bitkd.files import digest, link_within, read_json, write_json
from bitkd.pipeline.plan import make_plan
from bitkd.sources.cache import FactCache, open_cache
from bitkd.store.lock import Lock
from bitkd.store.run_folder import RunFolder
from bitkd.sweep.spec import SweepSpec, listed_values, may_propose


class TrialState(StrEnum):
    """The state of a trial."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    """Asked to stop by a signal; it is resumed."""


_ENGINE_STATES: dict[str, Literal["finished", "failed"]] = {
    TrialState.FINISHED: "finished",
    TrialState.FAILED: "failed",
}
"""Trial state -> the engine's word for it; for the engine, all others are running."""


@dataclass
class Trial:
    """One choice of parameters, and its result."""

    number: int
    """Position among the proposals, from 0."""

    name: str
    parameters: dict[str, Any]
    log: str
    """File with the output of its process."""

    run: str
    """Its run folder."""

    state: str = TrialState.WAITING
    score: float | None = None
    """Of the final student; None if it is not finished."""

    seconds: float = 0.0
    """Of all its starts together, except those that were killed."""

    starts: int = 0
    exit_code: int | None = None


@dataclass
class Sweep:
    """A sweep and its folder, `<run.dir>/sweeps/<name>`, which several processes and machines may share."""

    spec: SweepSpec
    folder: Path
    proposals: list[dict[str, Any]] = field(default_factory=list)
    """The parameters of all trials, in order; of bayes, only those that need no score."""

    _planned: dict[str, dict[str, str]] = field(default_factory=dict)
    """Finished trial -> artifact keys it would have with today's data and code (to detect stale trials)."""

    _cache: FactCache | None = None

    @classmethod
    def open(cls, spec: SweepSpec) -> "Sweep":
        """Check every trial that is known beforehand. Raises InputError before anything is written."""
        from bitkd.sweep import engine

        proposals = engine.known_proposals(spec.file, spec.content)
        if not proposals:
            raise InputError(f"{spec.file}: its parameters give no trial; give each parameter a value")
        folder = Path(spec.config(proposals[0]).run.dir).expanduser().resolve() / "sweeps" / spec.name
        sweep = cls(spec, folder, proposals)
        listed = listed_values(spec.content["parameters"]) if spec.method == "bayes" else ()
        for parameters in (*proposals, *(proposals[0] | values for values in listed)):
            spec.config(parameters, check=True)
        sweep._check_earlier()
        return sweep

    @property
    def total(self) -> int:
        """Number of trials."""
        return (self.spec.run_cap or 0) if self.spec.method == "bayes" else len(self.proposals)

    def begin(self) -> None:
        """Create the folder, and record which sweep it belongs to. Raises InputError if it is not writable."""
        try:
            for name in ("trials", "logs", ".locks"):
                if link := link_within(self.folder.parent.parent, self.folder / name):
                    raise InputError(
                        f"{link} is a link, and a sweep writes only under {self.folder.parent.parent}; delete it, or set "
                        "run.dir= to where it leads"
                    )
            for name in ("trials", "logs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "sweep.json", self._spec())
        except OSError as error:
            raise InputError(
                f"{self.folder} is not writable ({error.strerror}); choose another with run.dir="
            ) from error

    def trial(self, number: int) -> Trial:
        """Trial `number`: from its file, or new. With bayes, a new one is proposed from the scores so far."""
        if number < len(self.proposals):
            return self._trial(number, self.proposals[number])
        from bitkd.sweep import engine

        earlier = self.trials()
        kept = next((trial.parameters for trial in earlier if trial.number == number), None)
        if kept is not None and not may_propose(self.spec.content["parameters"], kept):
            raise InputError(
                f"{self.folder / 'trials'} has a trial {number} with settings that {self.spec.file} does not give; delete it"
            )
        found = [
            engine.Evaluation(trial.name, trial.parameters, _ENGINE_STATES.get(trial.state, "running"), trial.score)
            for trial in map(self.read, earlier)
        ]
        return self._trial(number, kept or engine.propose(self.spec.content, number, found))

    def read(self, trial: Trial) -> Trial:
        """The same trial, read from its file again."""
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
        """The command line of a trial, as `wandb agent` builds it."""
        return self.spec.command(trial.parameters, f"run.name={trial.name}")

    def _trial(self, number: int, parameters: dict[str, Any]) -> Trial:
        name = f"{self.spec.name}-{digest([parameters, _with_result(self.spec.settings)])[:8]}"
        config = self.spec.config(parameters)
        run = Path(config.run.dir).expanduser().resolve() / config.task.name / name
        made = Trial(number, name, parameters, str(self.folder / "logs" / f"{name}.log"), str(run))
        found = _read(self._file(name))
        if found is None:
            return made
        found.name, found.parameters = made.name, made.parameters
        if found.state == TrialState.FINISHED and not self._is_current(name, config, run):
            found.state, found.score = TrialState.WAITING, None
        if self.spec.method != "bayes":  # bayes finds its proposals by number
            found.number = number
        found.run, found.log = made.run, made.log
        return found

    def _is_current(self, name: str, config: Config, run: Path) -> bool:
        """Whether a finished trial's run exists, and would be the same with today's data, code and settings."""
        if score_of(run) is None:
            return False
        if name not in self._planned:
            self._cache = self._cache or open_cache(config, read_disk=True)
            self._planned[name] = planned_keys(config, self._cache)
        return RunFolder.read(run).stages == self._planned[name]

    def _file(self, name: str) -> Path:
        return self.folder / "trials" / f"{name}.json"

    def _spec(self) -> dict[str, Any]:
        return {"file": str(self.spec.file), "spec": self.spec.content, "settings": _with_result(self.spec.settings)}

    def _check_earlier(self) -> None:
        """With bayes, raises InputError if the folder belongs to another sweep: its scores would mislead the engine."""
        earlier = read_json(self.folder / "sweep.json")
        if self.spec.method != "bayes" or earlier is None:
            return
        now = self._spec()
        if not isinstance(earlier, dict) or any(earlier.get(key) != now[key] for key in ("spec", "settings")):
            raise InputError(
                f"{self.folder} belongs to another file or other settings, and bayes learns from all its trials; give the "
                "sweep another name:, or delete the folder (its runs are kept)"
            )


def _read(file: Path) -> Trial | None:
    """A trial from its file; None if there is no file, or it is damaged."""
    try:
        return _trial_adapter().validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


@cache
def _trial_adapter() -> TypeAdapter[Trial]:
    return TypeAdapter(Trial)


def planned_keys(config: Config, cache: FactCache) -> dict[str, str]:
    """Stage -> key of the artifact that a run of `config` would have. Raises InputError if it could not be run."""
    try:
        return {stage.name: stage.key for stage in make_plan(config, cache).stages}
    finally:
        cache.save()


def score_of(run: Path) -> float | None:
    """Score of a finished run's final student; None if a stage is missing."""
    try:
        folder = RunFolder.read(run)
        manifest = folder.manifest
        if not manifest or not manifest.planned or manifest.artifacts != manifest.planned:
            return None
        return folder.artifact(list(manifest.planned)[-1]).metrics.score
    except InputError:
        return None


def _with_result(settings: Sequence[str]) -> list[str]:
    """The settings that can change a result; a trial's name depends on them."""
    return sorted(
        text for text in settings if not is_among(text.partition("=")[0], (*NO_EFFECT_ON_RESULTS, *LOCAL_PATHS))
    )
