import numpy as np
import pytest

from bitkd.compare.scores import majority_score, score, weighted_scores
from bitkd.data.task_kinds import GLUE_OF_LABELS, GLUE_OF_NUMBERS, OF_LABELS, OF_NUMBERS
from bitkd.data.tasks import TaskSpec


def task_of(metric, labels):
    names = ["pearson", "spearman"] if metric == "pearson_spearman" else [metric]
    return TaskSpec(name="t", labels=labels, metric=metric, metrics=names)


def repeated(values, weights):
    return np.repeat(values, weights.astype(int))


def cases(metric):
    counts = (2,) if metric == "f1" else (2, 3)
    return [(metric, count) for count in counts]


@pytest.mark.parametrize(
    ("metric", "count"), [case for metric in (*GLUE_OF_LABELS, *OF_LABELS) for case in cases(metric)]
)
def test_weights_are_repetitions_to_torchmetrics(metric, count, measured):
    random = np.random.default_rng(3)
    task = task_of(metric, [f"l{i}" for i in range(count)])
    labels = random.integers(count, size=40).astype(float)
    weights = random.integers(4, size=(6, 40)).astype(float)
    weights[5] *= labels == 0  # a resample in which other labels do not occur
    for predicted in (random.integers(count, size=40).astype(float), np.zeros(40), labels):
        found = weighted_scores(metric, count, labels, predicted, weights)
        expected = [measured(task, repeated(labels, w), repeated(predicted, w)) for w in weights]
        np.testing.assert_allclose(found, expected, atol=2e-6)
        np.testing.assert_array_equal(
            weighted_scores(metric, count, labels, np.stack([predicted, labels]), weights)[0], found
        )


@pytest.mark.parametrize("metric", [*GLUE_OF_NUMBERS, *OF_NUMBERS])
def test_weights_are_repetitions_of_numbers_too(metric, measured):
    random = np.random.default_rng(4)
    labels = np.round(random.uniform(0, 5, 40), 1).astype(np.float32).astype(float)
    weights = random.integers(4, size=(4, 40)).astype(float)
    noisy = (labels + random.normal(size=40)).astype(np.float32).astype(float)
    for predicted in (noisy, np.round(noisy)):
        found = weighted_scores(metric, None, labels, predicted, weights)
        expected = [measured(task_of(metric, None), repeated(labels, w), repeated(predicted, w)) for w in weights]
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_constant_prediction_correlates_with_nothing():
    labels = np.array([1.0, 2.0, 4.0])
    for metric in ("pearson", "spearman", "pearson_spearman", "R2Score", "ConcordanceCorrCoef"):
        assert score(metric, None, labels, np.full(3, 2.3)) == pytest.approx(0, abs=0.02)
        assert majority_score(metric, None, labels) == pytest.approx(0)


def test_the_majority_is_the_most_frequent_dev_label():
    labels = np.array([1.0, 1.0, 1.0, 0.0])
    assert majority_score("accuracy", 2, labels) == 0.75
    assert majority_score("f1", 2, labels) == pytest.approx(6 / 7)
    assert majority_score("f1", 2, 1 - labels) == 0
    assert majority_score("matthews", 2, labels) == 0
