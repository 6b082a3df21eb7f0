"""Runs of question answering and token classification, from their folders to a report."""

from dataclasses import replace

import numpy as np
import pytest

from bitkd.compare.comparison import Comparison
from bitkd.compare.load import read_runs
from bitkd.compare.notes import notes_of
from bitkd.compare.planning import planned
from bitkd.compare.record_file import from_json, to_json
from bitkd.compare.runs import Predictions
from bitkd.compare.scores import majority_score, score, weighted_scores
from bitkd.data.task_kinds import OF_ANSWERS, OF_ENTITIES
from bitkd.errors import InputError
from bitkd.report.glossary import glossary, notes
from bitkd.report.plots import draw_size
from bitkd.report.write import markdown
from tests.compare.synthetic import ROWS, make_one, write_run

RANDOM = np.random.default_rng(8)
ANSWERABLE = [int(one) for one in RANDOM.random(ROWS) < 0.5]
ENTITIES = [int(one) for one in RANDOM.integers(4, size=ROWS)]


def answers(quality, seed):
    """Scores of rows as quarters, which FP32 holds exactly."""
    random = np.random.default_rng(seed)
    found = np.where(random.random(ROWS) < quality, 1.0, random.integers(4, size=ROWS) / 4)
    return Predictions(ANSWERABLE, found.tolist())


def entities(quality, seed):
    random = np.random.default_rng(seed)
    right = random.binomial(ENTITIES, quality)
    wrong = random.binomial(2, 1 - quality, size=ROWS)
    return Predictions(ENTITIES, (right + wrong).astype(float).tolist(), right.astype(float).tolist())


def run_of_form(metric, pipeline, seed):
    """A run whose predictions are as good as those of the labelled run."""
    run = make_one(pipeline, seed)
    make = answers if metric in OF_ANSWERS else entities

    def change(number, stage):
        if not stage.predictions:
            return replace(stage, dev={"dev": {"loss": 0.1, metric: stage.score}})
        found = make(stage.score, 10 * seed + number)
        value = score(metric, None, np.array(found.labels, float), found.scored)
        return replace(stage, score=value, dev={"dev": {"loss": 0.1, metric: value}}, predictions={"dev": found})

    stages = [change(number, stage) for number, stage in enumerate(run.stages)]
    return replace(run, task="own", metric=metric, metrics=[metric], labels=None, stages=stages)


def with_final(run, found):
    value = score(run.metric, None, np.array(found.labels, float), found.scored)
    return replace(run, stages=[*run.stages[:-1], replace(run.final, score=value, predictions={run.dev_set: found})])


def plain_score(metric, found):
    if metric in OF_ANSWERS:
        return sum(found.predicted) / len(found.predicted)
    right, guessed, true = sum(found.matched), sum(found.predicted), sum(found.labels)
    precision, recall = (right / total if total else 0 for total in (guessed, true))
    f1 = 2 * precision * recall / (precision + recall) if right else 0
    return {"entity_precision": precision, "entity_recall": recall, "entity_f1": f1}[metric]


@pytest.mark.parametrize("metric", [*OF_ANSWERS, *OF_ENTITIES])
def test_weights_are_repetitions(metric):
    make = answers if metric in OF_ANSWERS else entities
    several = [make(0.8, 1), make(0.3, 2)]
    weights = np.random.default_rng(3).integers(3, size=(4, ROWS)).astype(float)
    weights[3] = np.array(several[0].predicted) == 0  # nothing is found
    found = weighted_scores(
        metric, None, np.array(several[0].labels, float), np.stack([one.scored for one in several]), weights
    )

    def repeated(values, copy):
        return None if values is None else np.repeat(values, copy.astype(int)).tolist()

    expected = [
        [plain_score(metric, Predictions(*(repeated(part, copy) for part in vars(one).values()))) for copy in weights]
        for one in several
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_baseline_answers_nothing_and_finds_nothing():
    labels = np.array([1.0, 0, 0, 1])
    assert majority_score("exact_match", None, labels) == 0.5
    assert majority_score("answer_f1", None, np.ones(3)) == 0
    assert [majority_score(metric, None, labels) for metric in OF_ENTITIES] == [0, 0, 0]


@pytest.mark.parametrize(
    ("metric", "name", "baseline"),
    [("answer_f1", "answer F1", "no answer for any row"), ("entity_f1", "entity F1", "no entity in any row: 0.0000")],
)
def test_two_arms_from_their_folders_to_a_report(metric, name, baseline, tmp_path):
    runs = [run_of_form(metric, arm, seed) for arm in ("multistage", "singlestage") for seed in (1, 2)]
    folders = [write_run(run, tmp_path / "runs" / run.name) for run in runs]
    read = [run for folder in folders for run in read_runs(folder)]
    assert [run.final.predictions for run in read] == [run.final.predictions for run in runs]
    text = to_json(read)
    assert from_json(text, "x") == read
    assert ("matched" in text) == (metric in OF_ENTITIES)

    comparison = Comparison.of(read)
    (difference,) = comparison.differences
    mean = [np.mean([run.final.score for run in runs if run.pipeline == arm.pipeline]) for arm in comparison.arms]
    assert difference.estimate.value == pytest.approx(mean[0] - mean[1])
    low, high = difference.estimate.rows
    assert low < difference.estimate.value < high
    assert all(0 < share.mean < 1.1 for share in comparison.retained)
    assert baseline in notes(comparison)[0]
    assert f"in {name}" in markdown(comparison)
    assert "majority" not in markdown(comparison)
    assert "as SQuAD" in dict(glossary(comparison))[name] or "as CoNLL" in dict(glossary(comparison))[name]
    assert comparison.as_data()["metric"] == metric
    (legend,) = draw_size(comparison).legends
    assert any(entry.get_text().startswith(comparison.first.form.short) for entry in legend.get_texts())
    assert 0 < planned(read).components.both < 0.01


def test_a_student_that_learned_nothing_is_named():
    answered, found = run_of_form("exact_match", "singlestage", 1), run_of_form("entity_f1", "singlestage", 1)
    assert notes_of(answered) == notes_of(found) == []
    none = [1 - label for label in ANSWERABLE]
    silent = with_final(answered, Predictions(ANSWERABLE, none))
    wrong = with_final(found, Predictions(ENTITIES, [2] * ROWS, [0] * ROWS))
    for run, text in ((silent, "is no better than no answer in any"), (wrong, "finds no right entity in any")):
        (note,) = notes_of(run)
        assert f"{text} of the {ROWS} rows of dev: it learned nothing that" in note
        assert any(f"{text} dev row of own" in warning for warning in Comparison.of([run]).warnings)
    # All rows have an answer, as in SQuAD 1.1; no row has one, and so none can be missed.
    assert notes_of(with_final(answered, Predictions([1] * ROWS, [0.0, *[1.0] * (ROWS - 1)]))) == []
    assert len(notes_of(with_final(answered, Predictions([1] * ROWS, [0.0] * ROWS)))) == 1
    assert notes_of(with_final(answered, Predictions([0] * ROWS, [1.0] * ROWS))) == []


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        ("answer_f1", Predictions([1, 0], [0.5, 1.5])),
        ("answer_f1", Predictions([2, 0], [0.5, 1])),
        ("answer_f1", Predictions([1, 0], [0.5, 1], [0, 0])),
        ("entity_f1", Predictions([1, 0], [1, 0])),
        ("entity_f1", Predictions([1, 0], [1, 0], [1])),
        ("entity_f1", Predictions([1, 0], [1, 1], [1, 1])),
        ("entity_f1", Predictions([1, 0], [1, 0], [0.5, 0])),
        ("entity_f1", Predictions([1, 0], [1, 0], [float("nan"), 0])),
    ],
)
def test_values_that_a_task_cannot_have_are_refused(metric, found):
    run = run_of_form(metric, "singlestage", 1)
    damaged = replace(run, stages=[*run.stages[:-1], replace(run.final, predictions={"dev": found})])
    with pytest.raises(InputError, match=r"is damaged .*predictions of dev in stage single_binary"):
        from_json(to_json([damaged]), "x")


def test_predictions_of_another_metric_are_refused(tmp_path):
    folder = write_run(run_of_form("entity_f1", "singlestage", 1), tmp_path / "run")
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace("entity_f1", "exact_match"))
    with pytest.raises(InputError, match=r"dev has logits \(408, 2\) for the metric exact_match"):
        read_runs(folder)
