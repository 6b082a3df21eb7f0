"""The task's primary metric of many weighted copies of one dev set at once, for the bootstrap.

The same values as bitkd.data.metrics (torchmetrics) gives on the rows repeated as often as their weights say; torchmetrics
itself would take minutes for some thousand resamples. A metric that is undefined counts as 0, an error counts negatively,
so that a larger score is better everywhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitkd.errors import InputError

Array = NDArray[np.float64]


def weighted_scores(metric: str, num_labels: int | None, labels: Array, predicted: Array, weights: Array) -> Array:
    """Scores (copies,) of predictions (rows,) for labels (rows,), each row taken weights[copy, row] times.

    metric: a name of bitkd.data.metrics; InputError for another.  num_labels: null for a regression.
    """
    known = _OF_NUMBERS if num_labels is None else tuple(_OF_LABELS)
    if metric not in known:
        raise InputError(f"metric {metric} is unknown to comparisons; a task's metric is one of {', '.join(known)}")
    with np.errstate(invalid="ignore", divide="ignore"):
        if num_labels is None:
            values = _of_numbers(metric, labels, predicted, weights)
        else:
            values = _OF_LABELS[metric](
                _count(num_labels, labels.astype(np.int64), predicted.astype(np.int64), weights)
            )
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def score(metric: str, num_labels: int | None, labels: Array, predicted: Array) -> float:
    """The score of one dev set as it is."""
    return float(weighted_scores(metric, num_labels, labels, predicted, np.ones((1, len(labels))))[0])


def majority_score(metric: str, num_labels: int | None, labels: Array) -> float:
    """The score of always saying the most frequent label (the first of several); of a regression: the mean, which no
    correlation rewards.
    """
    constant = labels.mean() if num_labels is None else float(np.bincount(labels.astype(np.int64)).argmax())
    return score(metric, num_labels, labels, np.full(len(labels), constant))


def _ratio(above: Array, below: Array) -> Array:
    """above / below, 0 where nothing is counted: torchmetrics' zero_division."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0)


class Counts(NamedTuple):
    """Rows that are right, of each label, said to be of it: (copies, labels).  total: all rows (copies, 1)."""

    right: Array
    true: Array
    said: Array
    total: Array


def _count(num_labels: int, labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: Array) -> Counts:
    true, said = np.eye(num_labels)[labels], np.eye(num_labels)[predicted]
    return Counts(weights @ (true * said), weights @ true, weights @ said, weights.sum(axis=1, keepdims=True))


def _macro(per_label: Callable[[Counts], Array]) -> Callable[[Counts], Array]:
    """The mean over the labels that occur among labels or predictions."""

    def compute(counts: Counts) -> Array:
        occurs = (counts.true + counts.said) > 0
        return (per_label(counts) * occurs).sum(axis=1) / occurs.sum(axis=1)

    return compute


def _accuracy(counts: Counts) -> Array:
    return counts.right.sum(axis=1) / counts.total[:, 0]


def _f1(counts: Counts) -> Array:
    return _ratio(2 * counts.right[:, 1], counts.true[:, 1] + counts.said[:, 1])


def _matthews(counts: Counts) -> Array:
    total = counts.total[:, 0]
    above = counts.right.sum(axis=1) * total - (counts.true * counts.said).sum(axis=1)
    below = (total**2 - (counts.said**2).sum(axis=1)) * (total**2 - (counts.true**2).sum(axis=1))
    return _ratio(above, np.sqrt(below))


def _kappa(counts: Counts) -> Array:
    total = counts.total[:, 0]
    expected = total**2 - (counts.true * counts.said).sum(axis=1)
    return 1 - (total - counts.right.sum(axis=1)) * total / expected


_OF_LABELS: dict[str, Callable[[Counts], Array]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "CohenKappa": _kappa,
    "Accuracy": _macro(lambda c: _ratio(c.right, c.true)),
    "Recall": _macro(lambda c: _ratio(c.right, c.true)),
    "Precision": _macro(lambda c: _ratio(c.right, c.said)),
    "F1Score": _macro(lambda c: _ratio(2 * c.right, c.true + c.said)),
    "JaccardIndex": _macro(lambda c: _ratio(c.right, c.true + c.said - c.right)),
    "Specificity": _macro(lambda c: _ratio(c.total - c.true - c.said + c.right, c.total - c.true)),
}


_OF_NUMBERS = ("pearson_spearman", "pearson", "spearman", "MeanSquaredError", "MeanAbsoluteError", "R2Score",
               "ExplainedVariance", "ConcordanceCorrCoef", "KendallRankCorrCoef")  # fmt: skip


def _of_numbers(metric: str, labels: Array, predicted: Array, weights: Array) -> Array:
    if metric == "pearson_spearman":
        both = [
            np.nan_to_num(_of_numbers(name, labels, predicted, weights), nan=0.0) for name in ("pearson", "spearman")
        ]
        return (both[0] + both[1]) / 2
    if metric == "KendallRankCorrCoef":
        return _by_repetition(labels, predicted, weights)
    if metric == "spearman":
        return _pearson(_ranks(predicted, weights), _ranks(labels, weights), weights)
    x, y = np.broadcast_to(predicted, weights.shape), np.broadcast_to(labels, weights.shape)
    total = weights.sum(axis=1)
    match metric:
        case "pearson":
            return _pearson(x, y, weights)
        case "MeanSquaredError":
            return -(weights @ (predicted - labels) ** 2) / total
        case "MeanAbsoluteError":
            return -(weights @ np.abs(predicted - labels)) / total
    _, spread_y, _, mean_y = _moments(y, y, weights)
    match metric:
        case "R2Score":
            return 1 - (weights @ (predicted - labels) ** 2) / spread_y
        case "ExplainedVariance":
            return 1 - _moments(y - x, y - x, weights)[1] / spread_y
        case "ConcordanceCorrCoef":
            common, _, mean_x, _ = _moments(x, y, weights)
            _, spread_x, _, _ = _moments(x, x, weights)
            return 2 * common / (spread_x + spread_y + (total - 1) * (mean_x - mean_y) ** 2)
    raise KeyError(metric)


def _moments(x: Array, y: Array, weights: Array) -> tuple[Array, Array, Array, Array]:
    """Weighted sum of products of deviations of x and y, of y's squares, and both means; each (copies,)."""
    total = weights.sum(axis=1)
    mean_x, mean_y = (weights * x).sum(axis=1) / total, (weights * y).sum(axis=1) / total
    dx, dy = x - mean_x[:, None], y - mean_y[:, None]
    return (weights * dx * dy).sum(axis=1), (weights * dy * dy).sum(axis=1), mean_x, mean_y


def _pearson(x: Array, y: Array, weights: Array) -> Array:
    common, spread_y, _, _ = _moments(x, y, weights)
    spread_x = _moments(x, x, weights)[1]
    # Where all values are equal, what remains of the deviations is rounding.
    varies = (spread_x > 1e-18 * (weights * x * x).sum(axis=1)) & (spread_y > 1e-18 * (weights * y * y).sum(axis=1))
    return np.where(varies, common / np.sqrt(spread_x * spread_y), np.nan)


def _ranks(values: Array, weights: Array) -> Array:
    """Ranks (copies, rows) in the repeated data, ties at their mean."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(counts, axis=1) - counts + (counts + 1) / 2)[:, group]


def _by_repetition(labels: Array, predicted: Array, weights: Array) -> Array:
    """Kendall's tau by torchmetrics, one copy after the other: slow, and no GLUE task asks for it."""
    import torch
    from torchmetrics.functional.regression import kendall_rank_corrcoef

    rows = [np.repeat(np.arange(len(labels)), copy.astype(np.int64)) for copy in weights]
    pairs = [(torch.from_numpy(predicted[index]), torch.from_numpy(labels[index])) for index in rows]
    return np.array([torch.as_tensor(kendall_rank_corrcoef(x.float(), y.float())).item() for x, y in pairs])
