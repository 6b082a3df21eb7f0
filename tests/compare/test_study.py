"""The verdict on the question that runs name before they begin."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bitkd.cli import main
from bitkd.compare.comparison import Comparison, StudyComparison, arms_of
from bitkd.compare.inference import Estimate
from bitkd.compare.record_file import from_json, to_json
from bitkd.compare.runs import Predictions
from bitkd.compare.study import Finding, _corrected, word_of
from bitkd.errors import InputError
from bitkd.report.tables import difference_table
from bitkd.report.verdict import sentences, task_table
from bitkd.report.write import write_report
from bitkd.store.records import StudyRecord

SEEDS = [1, 2, 3]
RECORD = StudyRecord(
    ["multistage", "singlestage"], ["mrpc"], SEEDS, margin=1.0, alpha=0.05, named="2026-01-01T00:00:00+00:00"
)
BOTH = replace(RECORD, tasks=["mrpc", "rte"])


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.001, 0.03, "better"),
        (0.001, 0.005, "better"),
        (0.0, 0.005, "equal"),
        (0.0, 0.01, "not worse"),
        (-0.0099, 0.0099, "equal"),
        (-0.0099, 0.01, "not worse"),
        (-0.01, 0.0099, "undecided"),
        (-0.01, 0.5, "undecided"),
        (-0.005, 0.0, "equal"),
        (-0.02, 0.0, "undecided"),
        (-0.005, -0.001, "worse"),
        (-0.03, -0.001, "worse"),
    ],
)
def test_each_word_at_its_bounds(low, high, word):
    assert word_of(low, high, 0.01) == word


@pytest.mark.parametrize(
    ("value", "p", "word"),
    [(0.004, 0.0499, "better"), (-0.004, 0.0499, "worse"), (0.004, 0.05, "equal"), (-0.004, 0.05, "equal")],
)
def test_on_one_of_several_tasks_better_and_worse_follow_from_the_corrected_p(value, p, word):
    found = Finding(["rte"], Estimate(value, (0, 0), 1e-6), value - 0.005, value + 0.005, "equal", 0.01)
    assert _corrected(found, p, 0.05).word == word


def named(run, record=RECORD, finished="2026-01-02T00:00:00+00:00"):
    return replace(run, study=record, finished=finished)


def with_score(run, task, share):
    """The run on another task, its final student right on this share of rows, spread evenly; each seed errs on other rows."""
    labels = run.final_predictions.labels
    wrong = (np.arange(len(labels)) * 7 + 13 * run.seed) % len(labels) >= round(share * len(labels))
    predicted = [1 - y if w else y for y, w in zip(labels, wrong)]
    accuracy = 1 - float(wrong.mean())
    dev = {"dev": {"accuracy": accuracy, "f1": accuracy, "loss": 0.0}}
    final = replace(run.final, predictions={"dev": Predictions(labels, predicted)}, score=accuracy, dev=dev)
    return replace(run, task=task, stages=[*run.stages[:-1], final])


def studied(run_of, record, scores):
    """Runs of a study.  scores: task -> (score of multistage, of singlestage)."""
    return [
        named(with_score(run_of(pipeline, seed), task, score), record)
        for task, pair in scores.items()
        for pipeline, score in zip(record.primary, pair)
        for seed in SEEDS
    ]


def compared(runs):
    return StudyComparison.of(arms_of(runs))


def study(runs):
    return compared(runs).study


def test_a_large_difference_is_better_and_its_reverse_worse(run_of):
    found = study(studied(run_of, RECORD, {"mrpc": (0.9, 0.7)}))
    assert found.mean.word == "better"
    assert found.mean.estimate.value == pytest.approx(0.2, abs=0.01)
    first, size, selection, variance, named_on = sentences(found)
    assert first.startswith("multistage is better than singlestage on mrpc. The difference is +19.85 points")
    assert "95 % interval for other rows and other seeds: +" in first
    assert size == "The final student of multistage is 1.21 times as large as that of singlestage."
    assert "also chose the final checkpoints, each the best of 4 validations" in selection
    assert "with a chance of 80 %" in variance
    assert "Named on 2026-01-01" in named_on
    assert study(studied(run_of, RECORD, {"mrpc": (0.7, 0.9)})).mean.word == "worse"


def test_the_verdict_is_on_the_mean_of_the_tasks_and_then_on_each(run_of):
    runs = studied(run_of, BOTH, {"mrpc": (0.9, 0.7), "rte": (0.7, 0.9)})
    found = study(runs)
    assert found.mean.estimate.value == pytest.approx(0, abs=0.01)
    assert found.mean.word == "undecided"
    assert [one.word for one in found.by_task] == ["better", "worse"]
    assert sentences(found)[0].startswith(
        "Undecided: on mrpc and rte, multistage may be no worse than singlestage, or worse by 1 point or more."
    )
    assert [row[0] for row in task_table(found).rows] == ["mrpc", "rte"]
    assert [one.study for one in compared(runs).tasks] == [found, found]


def test_seeds_that_serve_several_tasks_are_counted_once(run_of):
    scores = {"mrpc": (0.9, 0.7), "rte": (0.8, 0.7)}
    apart = studied(run_of, BOTH, scores)  # the stages of these runs are the same on both tasks
    for position, run in enumerate(apart):
        stages = [replace(stage, key=f"{stage.key}-{run.task}") for stage in run.stages]
        apart[position] = replace(run, stages=stages)
    joined = studied(run_of, BOTH, scores)
    one, other = study(apart).mean.estimate, study(joined).mean.estimate
    assert one.value == other.value
    assert len(one.seed_variances) == 4
    assert [part.seeds for part in other.seed_variances] == [3, 3]
    by_seed = [[run.final.score for run in joined if run.pipeline == name] for name in BOTH.primary]
    expected = [np.mean([values[:3], values[3:]], axis=0).var(ddof=1) / 3 for values in by_seed]
    assert [part.variance for part in other.seed_variances] == pytest.approx(expected)


def test_the_difference_that_was_named_comes_first_and_the_others_are_corrected_without_it(run_of):
    runs = studied(run_of, RECORD, {"mrpc": (0.9, 0.7)})
    runs += [with_score(run_of(name, seed), "mrpc", 0.8) for name in ("progressive", "halfternary") for seed in SEEDS]
    first, *others = compared(runs).tasks[0].differences
    assert (first.first, first.second, first.primary, first.p_holm) == ("multistage", "singlestage", True, None)
    assert others
    smallest = min(others, key=lambda one: one.estimate.p)
    assert smallest.p_holm == pytest.approx(min(1, len(others) * smallest.estimate.p))
    shown = compared(runs).tasks[0].as_data()["differences"]
    assert [one["primary"] for one in shown] == [True] + [False] * len(others)


LATE = "2025-12-31T23:59:59+00:00"
PROBLEMS = {
    "another question": (lambda runs: [replace(runs[0], study=replace(RECORD, margin=2.0)), *runs[1:]], "another study"),
    "no question": (lambda runs: [replace(runs[0], study=None), *runs[1:]], "names no study"),
    "a seed less": (lambda runs: runs[:-1], "no singlestage on mrpc with seed 3. Name"),
    "seeds and an arm less": (lambda runs: runs[:1], "with seeds 2 and 3; no singlestage on mrpc with seeds 1, 2 and 3. Name"),
    "a task less": (lambda runs: [replace(run, study=BOTH) for run in runs], "bitkd run pipeline=multistage task=rte seed=1"),
    "two arms": (lambda runs: [*runs, *(replace(run, settings={"lr": 2}) for run in runs[:3])], "2 arms of multistage on mrpc"),
    "too late": (lambda runs: [replace(runs[0], finished=LATE), *runs[1:]], "after 1 of 6 runs were finished"),
    "time unknown": (lambda runs: [replace(run, finished=None) for run in runs], "after 6 of 6 runs"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_there_is_no_verdict_and_no_difference_is_called_named(run_of, name):
    change, message = PROBLEMS[name]
    comparison = Comparison.of(change(studied(run_of, RECORD, {"mrpc": (0.9, 0.7)})))
    assert comparison.study.mean is None
    assert comparison.study.by_task == ()
    (text,) = sentences(comparison.study)
    assert text.startswith("No verdict: ")
    assert message in text
    assert [(one.primary, one.p_holm is None) for one in comparison.differences] == [
        (False, one.estimate.p is None) for one in comparison.differences
    ]


def test_the_order_of_runs_seeds_and_tasks_and_what_other_arms_name_change_no_verdict(run_of):
    runs = studied(run_of, BOTH, {"mrpc": (0.9, 0.7), "rte": (0.8, 0.7)})
    other = replace(RECORD, primary=["progressive", "halfternary"])
    others = [named(with_score(run_of("progressive", seed), "mrpc", 0.8), other) for seed in SEEDS]
    turned = replace(BOTH, seeds=SEEDS[::-1], tasks=BOTH.tasks[::-1])
    expected = study(runs).mean
    for given in (runs + others, others + runs, [replace(runs[0], study=turned), *runs[1:]]):
        assert study(given).mean.word == expected.word
        assert (study(given).mean.low, study(given).mean.p) == pytest.approx((expected.low, expected.p))
    rest = [named(with_score(run_of("halfternary", seed), "mrpc", 0.8), other) for seed in SEEDS]
    assert "name 2 studies" in study(runs + others + rest).problem


def test_runs_of_other_seeds_change_neither_the_verdict_nor_the_row_of_the_question(run_of):
    runs = studied(run_of, RECORD, {"mrpc": (0.9, 0.7)})
    more = [with_score(run_of("multistage", seed), "mrpc", 0.1) for seed in (7, 8)]
    one, other = Comparison.of(runs), Comparison.of(runs + more)
    assert other.study.mean == one.study.mean
    assert other.differences == one.differences
    cells = [dict(zip(table.header, table.rows[0])) for table in map(difference_table, (one, other))]
    assert [cell["p by Holm"] for cell in cells] == ["named before", "named before, seeds 1, 2 and 3"]


def test_what_must_be_read_with_a_verdict_is_read_first(run_of):
    runs = studied(run_of, BOTH, {"mrpc": (0.9, 0.7), "rte": (0.8, 0.7)})
    for position, run in enumerate(runs):
        teacher, *stages = run.stages
        if position < 2:
            labels = run.final_predictions.labels
            share = labels.count(1) / len(labels)
            stuck = {"predictions": {"dev": Predictions(labels, [1.0] * len(labels))}, "score": share}
            stages[-1] = replace(stages[-1], dev={"dev": {"accuracy": share}}, **stuck)
        runs[position] = replace(run, stages=[replace(teacher, key="one"), *stages])
    runs[3] = replace(runs[3], study=replace(BOTH, named="2026-01-02T00:00:00+00:00"))
    first, caveat, *_, named_on = sentences(study(runs))
    assert "other seeds, with one teacher: " in first
    assert caveat.startswith(
        "With seeds 1 and 2 the final student of multistage predicts the same for every dev row of mrpc"
    )
    assert "between 2026-01-01 and 2026-01-02" in named_on


def test_runs_that_name_no_question_get_none_and_are_told_how(runs_of):
    assert study(runs_of(("multistage", "singlestage"))) is None
    (text,) = sentences(None)
    assert "study.primary=" in text


def test_runs_of_several_tasks_need_a_study(run_of):
    runs = [run_of("multistage", 1), replace(run_of("singlestage", 1), task="rte")]
    with pytest.raises(
        InputError, match=r"different tasks \(mrpc, rte\) and name no study of them; .* study.tasks=\[mrpc,rte\]"
    ):
        compared(runs)


def test_a_study_of_several_tasks_is_a_folder_that_its_record_makes_again(run_of, tmp_path, capsys):
    runs = studied(run_of, BOTH, {"mrpc": (0.9, 0.7), "rte": (0.8, 0.7)})
    write_report(runs, tmp_path / "one")
    assert main(["compare", str(tmp_path / "one"), "--out", str(tmp_path / "two"), "--no-latency"]) == 0
    assert "multistage is better than singlestage on mrpc and rte" in capsys.readouterr().out.replace("\n", " ")
    front = (tmp_path / "one" / "report.md").read_text()
    for told in (
        "times as large as",
        "The variance of this difference comes from",
        "No common budget",
        "Better and worse follow",
    ):
        assert front.count(told) == 1, told
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {str(path) for path in files} >= {"index.html", "comparison.json", "mrpc/index.html", "rte/report.md"}
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_record_keeps_the_study(run_of):
    runs = studied(run_of, RECORD, {"mrpc": (0.9, 0.7)})
    assert from_json(to_json(runs), "record") == runs


@pytest.mark.parametrize(
    "change",
    [
        {"named": "yesterday"},
        {"named": "2026-01-01T00:00:00"},
        {"primary": ["multistage"]},
        {"tasks": []},
        {"tasks": ["mrpc", "mrpc"]},
        {"seeds": [1, 2]},
        {"margin": 0.0},
        {"alpha": 1.0},
    ],
)
def test_a_record_of_a_question_that_cannot_be_decided_is_damaged(run_of, change):
    content = json.loads(to_json(studied(run_of, RECORD, {"mrpc": (0.9, 0.7)})))
    content["runs"][0]["study"] |= change
    with pytest.raises(InputError, match="record is damaged"):
        from_json(json.dumps(content), "record")
