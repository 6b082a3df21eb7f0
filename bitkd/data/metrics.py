"""A task's metrics, all from torchmetrics, and the score that selects checkpoints."""

import math

import torchmetrics
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from bitkd.data.task_kinds import OF_ANSWERS, OF_ENTITIES, OF_LABELS
from bitkd.data.tasks import TaskSpec


def build_metrics(task: TaskSpec) -> MetricCollection:
    """Metrics by name, to be updated with predictions and labels. They are exact for any division of rows among processes.

    They do not check that labels are the task's: to do so they would wait for a GPU in every step. Readers of rows check it.
    """
    return MetricCollection({name: _build(name, task) for name in task.metrics}, compute_groups=False)


def _build(name: str, task: TaskSpec) -> Metric:
    count = task.num_outputs
    match name:
        case "accuracy":
            return MulticlassAccuracy(count, average="micro", validate_args=False)
        case "f1":
            return BinaryF1Score(validate_args=False)
        case "matthews":
            # If a class is never predicted the correlation is undefined; torchmetrics gives 0 only for 3 classes or more.
            return MulticlassMatthewsCorrCoef(max(count, 3), validate_args=False)
        case "pearson":
            return PearsonCorrCoef()
        case "spearman":
            return SpearmanCorrCoef()
        case "CohenKappa":
            return torchmetrics.CohenKappa(task="multiclass", num_classes=count, validate_args=False)
    if name in OF_LABELS:
        return getattr(torchmetrics, name)(task="multiclass", num_classes=count, average="macro", validate_args=False)
    return getattr(torchmetrics, name)()


def primary_score(task: TaskSpec, values: dict[str, float]) -> float:
    """The task's primary metric among computed `values`; larger is better, so errors count negatively.

    A correlation that is undefined (Pearson's, if all predictions are equal) counts as 0: no score is larger than NaN, so
    the first such checkpoint would remain the best.
    """
    if task.metric in (*OF_ANSWERS, *OF_ENTITIES):
        return values[task.metric]
    names = ("pearson", "spearman") if task.metric == "pearson_spearman" else (task.metric,)
    # torchmetrics has None here for some metrics that are no errors (specificity, Kendall's tau).
    sign = -1.0 if _build(names[0], task).higher_is_better is False else 1.0
    return sign * sum(0.0 if math.isnan(values[name]) else values[name] for name in names) / len(names)
