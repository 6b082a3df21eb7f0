from dataclasses import replace

import pytest

from bitkd.compare.notes import notes_of
from bitkd.compare.runs import Predictions


def with_predictions(run, stage, predicted, labels=None):
    stages = [
        replace(s, predictions={"dev": Predictions(labels or s.predictions["dev"].labels, predicted)})
        if s is stage
        else s
        for s in run.stages
    ]
    return replace(run, stages=stages)


@pytest.fixture
def run(runs_of):
    return runs_of()[0]


def test_a_run_with_different_predictions_has_nothing_to_say(run):
    assert notes_of(run) == []


def test_a_student_that_says_the_same_for_every_row_is_named(run):
    count = len(run.final_predictions.predicted)
    (note,) = notes_of(with_predictions(run, run.final, [1.0] * count))
    assert f'predicts "{run.labels[1]}" for each of the {count} rows of dev' in note
    assert run.final.name in note
    assert "stages.NAME.lr=" in note


def test_a_teacher_that_says_the_same_for_every_row_is_named(run):
    count = len(run.final_predictions.predicted)
    (note,) = notes_of(with_predictions(run, run.teacher, [0.0] * count))
    assert note.startswith(f"the teacher ({run.teacher.name}) predicts")


def test_a_dev_set_of_one_label_says_nothing_about_the_student(run):
    count = len(run.final_predictions.predicted)
    assert notes_of(with_predictions(run, run.final, [1.0] * count, labels=[1.0] * count)) == []


def test_a_constant_regression_is_named_with_its_value(run):
    regression = replace(run, labels=None, metric="pearson")
    count = len(run.final_predictions.predicted)
    notes = notes_of(with_predictions(regression, regression.final, [2.5 + 1e-5 * (i % 2) for i in range(count)]))
    assert "predicts 2.5 for each" in notes[-1]
