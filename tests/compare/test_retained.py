"""The share of the teacher's score that students retain."""

from dataclasses import replace

import numpy as np
import pytest

from bitkd.compare.arms import majority
from bitkd.compare.comparison import Comparison
from bitkd.compare.resampling import ResampledScores
from bitkd.compare.retained import Retained, retained
from tests.compare.test_arms import change_stage


def shares(*runs):
    return Comparison.of(list(runs)).retained


def test_it_is_the_ratio_of_the_means_above_the_majority(run_of):
    runs = [run_of("singlestage", seed) for seed in (1, 2)]
    floor = majority(runs[0])
    student, teacher = (
        np.mean([stage.score for stage in stages]) for stages in zip(*((r.final, r.teacher) for r in runs))
    )
    (found,) = shares(*runs)
    assert found.mean == pytest.approx((student - floor) / (teacher - floor))
    assert 0 < found.low < found.mean < found.high < 1


def test_students_teachers_and_majority_share_their_rows():
    majority = np.array([0.6, 0.5, 0.7, 0.6])
    teacher, student = (
        majority[:, None] + share * np.array([[0.2, 0.2], [0.1, 0.3], [0.2, 0.2], [0.2, 0.2]]) for share in (1, 0.5)
    )
    assert retained(ResampledScores([student], [teacher], majority)) == [Retained(*(pytest.approx(0.5),) * 3)]


@pytest.mark.parametrize(("margin", "known"), [(0.039, False), (0.041, True)])
def test_a_teacher_must_be_four_standard_errors_above_the_majority(margin, known):
    swing = 0.01 * np.array([0, 1, -1, 0, 1, -1, 0])
    errors = swing / swing[1:].std(ddof=1) * 0.01
    teacher = (0.6 + margin + errors)[:, None]
    (found,) = retained(ResampledScores([teacher], [teacher], np.full(7, 0.6)))
    assert (found is not None) is known


def test_without_known_teachers_there_is_none(run_of):
    run = run_of("singlestage", 1)
    assert shares(replace(run, stages=run.stages[1:])) == [None]
    assert shares(run, change_stage(run_of("singlestage", 2), "teacher", predictions=None)) == [None]
    labels = run.final_predictions.labels
    as_majority = replace(run.teacher.predictions["dev"], predicted=[1.0] * len(labels))
    assert shares(change_stage(run, "teacher", predictions={"dev": as_majority}, score=majority(run))) == [None]
