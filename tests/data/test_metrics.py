import math

import pytest
import torch

from bitkd.config.load import load_config
from bitkd.data.metrics import build_metrics, primary_score
from bitkd.data.task_kinds import GLUE_OF_LABELS, OF_LABELS, OF_NUMBERS
from bitkd.data.tasks import TaskSpec


def test_an_undefined_score_can_be_beaten():
    task = load_config(["task=stsb"], require=("task",)).task
    metrics = build_metrics(task)
    metrics.update(torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    values = {key: float(value) for key, value in metrics.compute().items()}
    assert math.isnan(values["pearson"])
    assert primary_score(task, values) == 0


@pytest.mark.parametrize("label", [0, 1])
def test_matthews_correlation_of_a_constant_prediction_is_zero(label):
    task = TaskSpec(labels=["no", "yes"], metric="matthews", metrics=["matthews"])
    metrics = build_metrics(task)
    metrics.update(torch.full((10,), label), torch.tensor([0, 1, 1, 1, 0, 1, 1, 1, 1, 1]))
    assert float(metrics.compute()["matthews"]) == 0
    metrics.reset()
    metrics.update(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
    assert float(metrics.compute()["matthews"]) == pytest.approx(0.57735, abs=1e-5)


def test_metrics_by_hand():
    values = {}
    for name in ("mrpc", "cola", "stsb"):
        task = load_config([f"task={name}"], require=("task",)).task
        metrics = build_metrics(task)
        if name == "stsb":
            metrics.update(torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.0, 2.0, 4.0, 3.0]))
        else:
            metrics.update(torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 1, 1]))
        values[name] = {key: float(value) for key, value in metrics.compute().items()}
        values[name]["score"] = primary_score(task, values[name])
    # 2 true positives, 1 false positive, 1 false negative, 1 true negative
    assert values["mrpc"]["accuracy"] == pytest.approx(3 / 5)
    assert values["mrpc"]["f1"] == pytest.approx(2 / 3)
    assert values["cola"]["score"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert values["stsb"]["spearman"] == pytest.approx(0.8)
    assert values["stsb"]["score"] == pytest.approx((values["stsb"]["pearson"] + values["stsb"]["spearman"]) / 2)


@pytest.mark.parametrize("labels", [["no", "yes"], None])
def test_no_metric_checks_values_in_a_step(labels):
    names = [*OF_LABELS, *GLUE_OF_LABELS] if labels else [*OF_NUMBERS, "pearson", "spearman"]
    metrics = build_metrics(TaskSpec(labels=labels, metric=names[0], metrics=names))
    assert len(metrics) == len(names)
    assert not any(getattr(metric, "validate_args", False) for metric in metrics.values())
