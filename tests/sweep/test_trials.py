import json

import pytest

from bitkd.errors import InputError
from bitkd.sweep.spec import read_sweep
from bitkd.sweep.trials import Sweep, Trial, TrialState

KNOWN = {"task": {"value": "demo"}, "pipeline": {"value": "singlestage"}}


def open_sweep(write, tmp_path, **changes):
    return Sweep.open(read_sweep(write(**changes), [f"run.dir={tmp_path}"]))


def test_a_grid_is_the_product_of_its_values(write, tmp_path):
    parameters = KNOWN | {"train.lr": {"values": [0.1, 0.2]}, "seed": {"values": [1, 2]}}
    found = open_sweep(write, tmp_path, parameters=parameters).proposals
    assert {(p["train.lr"], p["seed"]) for p in found} == {(lr, seed) for lr in (0.1, 0.2) for seed in (1, 2)}
    assert len(found) == 4
    assert len(open_sweep(write, tmp_path, parameters=parameters, run_cap=3).proposals) == 3


def test_random_proposals_are_the_same_each_time_and_plain_numbers(write, tmp_path):
    parameters = KNOWN | {"train.lr": {"min": 1e-5, "max": 1e-3, "distribution": "log_uniform_values"}}
    first, second = (
        open_sweep(write, tmp_path, parameters=parameters, method="random", run_cap=3).proposals for _ in range(2)
    )
    assert first == second
    values = [proposal["train.lr"] for proposal in first]
    assert len(set(values)) == 3
    assert all(type(value) is float and 1e-5 <= value <= 1e-3 for value in values)


def bayes(write, tmp_path, **more):
    parameters = KNOWN | {"train.lr": {"min": 0.0, "max": 1.0}}
    sweep = open_sweep(write, tmp_path, parameters=parameters, method="bayes", run_cap=8, **more)
    sweep.begin()
    return sweep


def finish(sweep, trial: Trial, score: float) -> None:
    trial.state, trial.score = TrialState.FINISHED, score
    sweep.keep(trial)


def test_bayes_learns_from_scores_and_proposes_the_same_from_the_same(write, tmp_path, monkeypatch):
    monkeypatch.setattr(Sweep, "_is_current", lambda *_: True)
    found = []
    for folder in ("one", "two"):
        sweep = bayes(write, tmp_path / folder)
        for number in range(8):
            trial = sweep.trial(number)
            finish(sweep, trial, 1 - (trial.parameters["train.lr"] - 0.3) ** 2)
        assert [trial.number for trial in sweep.trials()] == list(range(8))
        found.append([trial.parameters["train.lr"] for trial in sweep.trials()])
    assert found[0] == found[1]
    assert all(type(value) is float for value in found[0])
    assert all(abs(lr - 0.3) < 0.1 for lr in found[0][-3:])


def test_bayes_does_not_learn_from_another_sweep(write, tmp_path):
    bayes(write, tmp_path)
    bayes(write, tmp_path)  # the same again goes on
    with pytest.raises(InputError, match="give the sweep another name"):
        bayes(write, tmp_path, description="another")


def test_a_name_follows_from_what_changes_numbers(write, tmp_path):
    def names(*settings):
        return [Sweep.open(read_sweep(write(), [*settings])).trial(number).name for number in (0, 1)]

    plain = names()
    assert len(set(plain)) == 2
    assert names(f"run.dir={tmp_path}", "logger=wandb", "checkpoint.every_minutes=1") == plain
    machine = [f"data.dir={tmp_path}", f"data.corpus=[{tmp_path}/wiki.txt]", "data.num_workers=2"]
    assert names(*machine) == plain
    swept = KNOWN | {"data.corpus": {"values": ["[a.txt]", "[b.txt]"]}}
    assert len({trial.name for trial in open_sweep(write, tmp_path, parameters=swept).listed()}) == 2
    assert not set(names("train.max_steps=7")) & set(plain)


def test_a_trial_without_its_run_waits_again_and_has_no_score(write, tmp_path):
    sweep = open_sweep(write, tmp_path)
    sweep.begin()
    finish(sweep, sweep.trial(0), 0.5)
    assert [(trial.state, trial.score) for trial in sweep.listed()] == [("waiting", None)] * 2


@pytest.mark.parametrize("content", ["{", "[]", '{"state": "finished"}'])
def test_a_damaged_file_is_a_trial_that_waits(write, tmp_path, content):
    sweep = open_sweep(write, tmp_path)
    sweep.begin()
    finish(sweep, sweep.trial(0), 0.5)
    (file,) = (sweep.folder / "trials").iterdir()
    file.write_text(content)
    assert sweep.trial(0).state == "waiting"
    assert sweep.trials() == []


def test_what_an_older_version_kept_of_a_trial_is_read(write, tmp_path):
    sweep = open_sweep(write, tmp_path)
    sweep.begin()
    trial = sweep.trial(0)
    trial.state, trial.seconds = "failed", 3.0
    sweep.keep(trial)
    (file,) = (sweep.folder / "trials").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"configuration": "a digest"}))
    assert (sweep.trial(0).state, sweep.trial(0).seconds) == ("failed", 3.0)
