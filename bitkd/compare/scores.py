"""The task's primary metric on many weighted copies of a dev set at once, for the bootstrap.

The values are those that bitkd.data.metrics (torchmetrics) gives if each row is repeated as often as its weight says.
torchmetrics itself would take minutes for thousands of resamples, so the common metrics are computed here for all
copies at once. An undefined metric counts as 0, and an error is negated, so that a larger score is always better.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitkd.compare.forms import ANSWERS, ENTITIES, form_of
from bitkd.data.task_kinds import GLUE_OF_LABELS, GLUE_OF_NUMBERS, OF_ANSWERS, OF_ENTITIES, OF_LABELS, OF_NUMBERS
from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError

Array = NDArray[np.float64]


def weighted_scores(metric: str, num_labels: int | None, labels: Array, predicted: Array, weights: Array) -> Array:
    """Scores (copies,) of predictions (rows,) for labels (rows,), each row taken weights[copy, row] times; of several
    predictions (…, rows) at once, scores (…, copies), which is faster than one after the other.

    metric: a name of bitkd.data.tasks; raises InputError for another.  num_labels: None for a task without labels.
    predicted: of entities (…, rows, 2), see `bitkd.compare.runs.Predictions.scored`.
    """
    without_labels = (*GLUE_OF_NUMBERS, *OF_NUMBERS, *OF_ANSWERS, *OF_ENTITIES)
    known = without_labels if num_labels is None else (*GLUE_OF_LABELS, *OF_LABELS)
    if metric not in known:
        raise InputError(f"metric {metric} is unknown to comparisons; a task's metric is one of {', '.join(known)}")
    with np.errstate(invalid="ignore", divide="ignore"):
        if num_labels is not None and metric in _OF_COUNTS:
            counts = _count(num_labels, labels.astype(np.int64), predicted.astype(np.int64), weights)
            values = _OF_COUNTS[metric](counts)
        elif metric in OF_ANSWERS:
            values = predicted @ weights.T / weights.sum(axis=1)
        elif metric in OF_ENTITIES:
            values = _entity_score(metric, labels, predicted, weights)
        elif predicted.ndim > 1:
            return np.stack([weighted_scores(metric, num_labels, labels, one, weights) for one in predicted])
        elif num_labels is None and metric in GLUE_OF_NUMBERS:
            values = _correlation(metric, labels, predicted, weights)
        else:
            values = _by_repetition(metric, num_labels, labels, predicted, weights)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def score(metric: str, num_labels: int | None, labels: Array, predicted: Array) -> float:
    """The score of one dev set as it is."""
    return float(weighted_scores(metric, num_labels, labels, predicted, np.ones((1, len(labels))))[0])


def majority_score(metric: str, num_labels: int | None, labels: Array) -> float:
    """The score of always predicting the most frequent label, see `majority_prediction`."""
    return score(metric, num_labels, labels, majority_prediction(metric, num_labels, labels))


def majority_prediction(metric: str, num_labels: int | None, labels: Array) -> Array:
    """What a model predicts that looks at no text: the most frequent label (the first, if several are) for each row; for a
    regression the mean label, for which a correlation is 0; no answers; no entities.
    """
    if form_of(metric) is ANSWERS:
        return 1 - labels
    if form_of(metric) is ENTITIES:
        return np.zeros((len(labels), 2))
    constant = labels.mean() if num_labels is None else float(np.bincount(labels.astype(np.int64)).argmax())
    return np.full(len(labels), constant)


def _ratio(above: Array, below: Array) -> Array:
    """above / below; 0 if below is 0, as torchmetrics has it (zero_division)."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0)


class Counts(NamedTuple):
    """Weighted rows by label, (…, copies, labels)."""

    right: Array
    """Rows of the label that were predicted correctly."""

    true: Array
    """Rows of the label, (copies, labels)."""

    predicted: Array
    """Rows that were predicted to have the label."""

    total: Array
    """All rows, (copies, 1)."""


def _count(num_labels: int, labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: Array) -> Counts:
    one_hot, guess = np.eye(num_labels)[labels], np.eye(num_labels)[predicted]
    # One product for all columns: the weights are the large factor.
    stack = np.stack([one_hot * guess, guess]).reshape(-1, *one_hot.shape)
    columns = np.concatenate([one_hot[None], stack]).transpose(1, 0, 2).reshape(len(labels), -1)
    sums = (weights @ columns).reshape(len(weights), -1, num_labels).transpose(1, 0, 2)
    right, guessed = sums[1:].reshape(2, *predicted.shape[:-1], *sums.shape[1:])
    return Counts(right, sums[0], guessed, weights.sum(axis=1, keepdims=True))


def _macro(per_label: Callable[[Counts], Array]) -> Callable[[Counts], Array]:
    """The mean over the labels that occur among labels or predictions."""

    def compute(counts: Counts) -> Array:
        occurs = (counts.true + counts.predicted) > 0
        return (per_label(counts) * occurs).sum(axis=-1) / occurs.sum(axis=-1)

    return compute


def _accuracy(counts: Counts) -> Array:
    return counts.right.sum(axis=-1) / counts.total[..., 0]


def _f1(counts: Counts) -> Array:
    return _ratio(2 * counts.right[..., 1], counts.true[..., 1] + counts.predicted[..., 1])


def _matthews(counts: Counts) -> Array:
    total = counts.total[..., 0]
    above = counts.right.sum(axis=-1) * total - (counts.true * counts.predicted).sum(axis=-1)
    below = (total**2 - (counts.predicted**2).sum(axis=-1)) * (total**2 - (counts.true**2).sum(axis=-1))
    return _ratio(above, np.sqrt(below))


def _kappa(counts: Counts) -> Array:
    total = counts.total[..., 0]
    expected = total**2 - (counts.true * counts.predicted).sum(axis=-1)
    return 1 - (total - counts.right.sum(axis=-1)) * total / expected


_OF_COUNTS: dict[str, Callable[[Counts], Array]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "CohenKappa": _kappa,
    "Accuracy": _macro(lambda c: _ratio(c.right, c.true)),
    "Recall": _macro(lambda c: _ratio(c.right, c.true)),
    "Precision": _macro(lambda c: _ratio(c.right, c.predicted)),
    "F1Score": _macro(lambda c: _ratio(2 * c.right, c.true + c.predicted)),
    "JaccardIndex": _macro(lambda c: _ratio(c.right, c.true + c.predicted - c.right)),
    "Specificity": _macro(lambda c: _ratio(c.total - c.true - c.predicted + c.right, c.total - c.true)),
}


def _entity_score(metric: str, labels: Array, predicted: Array, weights: Array) -> Array:
    """Micro averages.  labels: true entities (rows,).  predicted: right and found ones (…, rows, 2)."""
    right, found = (predicted[..., place] @ weights.T for place in (0, 1))
    true = labels @ weights.T
    match metric:
        case "entity_precision":
            return _ratio(right, found)
        case "entity_recall":
            return _ratio(right, true)
        case _:  # entity_f1
            return _ratio(2 * right, found + true)


def _correlation(metric: str, labels: Array, predicted: Array, weights: Array) -> Array:
    match metric:
        case "pearson":
            return _pearson(np.broadcast_to(predicted, weights.shape), np.broadcast_to(labels, weights.shape), weights)
        case "spearman":
            return _pearson(_ranks(predicted, weights), _ranks(labels, weights), weights)
        case _:  # pearson_spearman
            both = [_correlation(name, labels, predicted, weights) for name in ("pearson", "spearman")]
            return np.nan_to_num(both, nan=0.0).mean(axis=0)


def _pearson(x: Array, y: Array, weights: Array) -> Array:
    total = weights.sum(axis=1)
    dx, dy = (values - ((weights * values).sum(axis=1) / total)[:, None] for values in (x, y))
    common, spread_x, spread_y = ((weights * a * b).sum(axis=1) for a, b in ((dx, dy), (dx, dx), (dy, dy)))
    # If all values are equal, what remains of the deviations is rounding.
    varies = (spread_x > 1e-18 * (weights * x * x).sum(axis=1)) & (spread_y > 1e-18 * (weights * y * y).sum(axis=1))
    return np.where(varies, common / np.sqrt(spread_x * spread_y), np.nan)


def _ranks(values: Array, weights: Array) -> Array:
    """Ranks (copies, rows) in the repeated data, ties at their mean."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(counts, axis=1) - counts + (counts + 1) / 2)[:, group]


def _by_repetition(metric: str, num_labels: int | None, labels: Array, predicted: Array, weights: Array) -> Array:
    """Any other metric, computed by torchmetrics for one copy after the other. It is slow, but no GLUE task needs it."""
    import torch

    from bitkd.data.metrics import build_metrics, primary_score

    names = None if num_labels is None else [str(number) for number in range(num_labels)]
    task = TaskSpec(labels=names, metric=metric, metrics=[metric])
    kind = torch.float64 if names is None else torch.int64
    metrics = build_metrics(task)
    if names is None:
        metrics.set_dtype(kind)
    rows = [np.repeat(np.arange(len(labels)), copy.astype(np.int64)) for copy in weights]
    values = []
    for index in rows:
        metrics.reset()
        metrics.update(torch.as_tensor(predicted[index], dtype=kind), torch.as_tensor(labels[index], dtype=kind))
        values.append(primary_score(task, {name: float(value) for name, value in metrics.compute().items()}))
    return np.array(values)
