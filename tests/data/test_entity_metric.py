import copy

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.utilities.data import dim_zero_max

from bitkd.data.entity_metric import EntityScores
from bitkd.data.tags import TagScheme

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def numbers(sentences):
    return [[LABELS.index(tag) for tag in sentence.split()] for sentence in sentences]


def windows_of(sentences, rows, words):
    """A batch of one window for each of `rows`; words: first and last one of each, or more."""
    width = max(last - first for first, last in words)
    word = torch.full((len(rows), width), -1)
    logits = torch.rand(len(rows), width, len(LABELS))
    for window, (row, (first, last)) in enumerate(zip(rows, words)):
        word[window, : last - first] = torch.arange(first, last)
        tags = torch.tensor(numbers(sentences)[row][first:last], dtype=torch.long)
        logits[window, : last - first] += 2 * F.one_hot(tags, len(LABELS))
    return logits, {"word": word, "row": torch.tensor(rows)}


def scores_of(truth, predicted):
    metric = EntityScores(TagScheme(LABELS), numbers(truth))
    metric.update(*windows_of(predicted, range(len(predicted)), [(0, len(row.split())) for row in predicted]))
    return {name.removeprefix("entity_"): value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    ("truth", "predicted", "precision", "recall"),
    [
        (["B-PER I-PER O B-LOC"], ["B-PER I-PER O B-LOC"], 1, 1),
        (["B-PER I-PER O"], ["B-PER O O"], 0, 0),  # a wrong end: one false, one missed
        (["B-PER I-PER O B-LOC"], ["B-PER O O B-LOC"], 1 / 2, 1 / 2),
        (["B-PER I-PER"], ["B-PER I-LOC"], 0, 0),  # two predicted
        (["B-PER I-PER O"], ["I-PER I-PER O"], 1, 1),  # IOB1 for IOB2
        (["B-PER O", "B-LOC O"], ["B-PER O", "O O"], 1, 1 / 2),
        (["O O", ""], ["B-LOC O", ""], 0, 0),
        (["O O"], ["O O"], 0, 0),
        (["B-PER B-PER"], ["B-PER I-PER"], 0, 0),
    ],
)
def test_an_entity_is_right_if_its_words_and_its_kind_are(truth, predicted, precision, recall):
    f1 = 2 * precision * recall / (precision + recall) if precision else 0
    assert scores_of(truth, predicted) == pytest.approx({"precision": precision, "recall": recall, "f1": f1})


TRUTH = ["B-PER I-PER I-PER O B-LOC", "", "B-LOC O B-PER"]
GUESS = ["B-PER I-PER I-PER O B-PER", "", "B-LOC O O"]


def test_windows_in_any_order_and_any_process_give_one_result():
    whole = EntityScores(TagScheme(LABELS), numbers(TRUTH))
    parts = [copy.deepcopy(whole) for _ in range(3)]  # the last one has no window
    for metrics, rows, words in (
        ([whole, parts[0]], [2, 0], [(0, 3), (2, 5)]),
        ([whole, parts[1]], [0, 1], [(0, 2), (0, 0)]),
    ):
        for metric in metrics:
            metric.update(*windows_of(GUESS, rows, words))
    merged = EntityScores(TagScheme(LABELS), numbers(TRUTH))
    assert merged._reductions["predicted"] is dim_zero_max
    merged.predicted = dim_zero_max(torch.stack([part.predicted for part in parts]))
    merged._update_count = 1
    assert merged.compute() == whole.compute()
    assert whole.predicted_tags() == numbers(GUESS)
    logits, labels = merged.row_scores()
    assert logits.tolist() == [[1, 2], [0, 0], [1, 1]]
    assert labels.tolist() == [2, 0, 2]


def test_a_word_without_a_prediction_counts_as_o():
    metric = EntityScores(TagScheme(LABELS), numbers(TRUTH))
    metric.update(*windows_of(GUESS, [2], [(1, 3)]))
    assert metric.compute() == {"entity_precision": 0, "entity_recall": 0, "entity_f1": 0}
    assert metric.row_scores()[1].sum() == 4
