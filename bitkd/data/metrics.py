"""A task's metrics, all by torchmetrics, and the one score that selects checkpoints."""

import math

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from bitkd.data.tasks import TaskSpec


def build_metrics(task: TaskSpec) -> MetricCollection:
    """Metrics by name; they are updated with predictions and labels, and exact on shards of any length."""
    count = task.num_outputs
    makers: dict[str, type[Metric] | object] = {
        "accuracy": lambda: MulticlassAccuracy(count, average="micro"),
        "f1": BinaryF1Score,
        # For 2 classes torchmetrics takes a limit where one is never predicted, and that is not 0; for 3 it is.
        "matthews": lambda: MulticlassMatthewsCorrCoef(max(count, 3)),
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    return MetricCollection({name: makers[name]() for name in task.metrics}, compute_groups=False)  # type: ignore[operator]


def primary_score(task: TaskSpec, values: dict[str, float]) -> float:
    """The task's primary metric out of computed `values`; larger is better.

    A metric that is undefined (Pearson's, where all predictions are equal) counts as 0, no correlation: no score
    is larger than NaN, so the first such checkpoint would stay the best for good.
    """
    names = ("pearson", "spearman") if task.metric == "pearson_spearman" else (task.metric,)
    return sum(0.0 if math.isnan(values[name]) else values[name] for name in names) / len(names)
