"""Precision, recall and F1 of entities, as the CoNLL shared tasks count them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from bitkd.data.tags import TagScheme


class EntityScores(Metric):
    """Micro precision, recall and F1 of the entities of a set of sentences: an entity is right if its first word, its last
    word and its kind are (arXiv:cs/0306050).

    The tag of each word is kept, in whatever window, batch or process it is predicted. So the result is exact for any
    division of the windows. A word without a prediction counts as O.

    scheme: of the task's labels.  labels: position of each word's true tag, a list for each sentence.
    rows: numbers of the sentences that count; None: all.
    """

    full_state_update = False
    higher_is_better = True
    _starts: Tensor
    predicted: Tensor
    """(words of all sentences + 1,): position of each predicted tag + 1; 0 without a prediction. The last is of no word."""

    def __init__(self, scheme: TagScheme, labels: Sequence[Sequence[int]], rows: Sequence[int] | None = None) -> None:
        super().__init__()
        self.scheme = scheme
        self.labels = labels
        self.rows = range(len(labels)) if rows is None else rows
        starts = np.cumsum([0, *(len(sentence) for sentence in labels)])
        self.register_buffer("_starts", torch.from_numpy(starts), persistent=False)
        self._scores: Tensor | None = None
        self.add_state("predicted", torch.zeros(int(starts[-1]) + 1, dtype=torch.int32), dist_reduce_fx="max")

    def update(self, logits: Tensor, batch: dict[str, Tensor]) -> None:
        """Keep the predictions of windows.

        logits: (windows, length, labels).  batch: `word`, (windows, length), the number of the word that a token stands for,
        -1 for none; `row`, (windows,), the number of the sentence.
        """
        marked = batch["word"] >= 0
        places = self._starts[batch["row"]][:, None] + batch["word"]
        # Other tokens go to the place behind the last word: choosing by a mask would wait for a GPU.
        places = torch.where(marked, places, len(self.predicted) - 1)
        self.predicted[places] = (logits.argmax(-1) + 1).int()

    def compute(self) -> dict[str, Tensor]:
        """entity_precision, entity_recall and entity_f1, each 0 if there is nothing to divide by."""
        self._scores = self._count()
        matched, predicted, true = self._scores.sum(0).tolist()
        ratios = {
            "entity_precision": (matched, predicted),
            "entity_recall": (matched, true),
            "entity_f1": (2 * matched, predicted + true),
        }
        device = self.predicted.device
        return {
            name: torch.tensor(part / whole if whole else 0.0, device=device) for name, (part, whole) in ratios.items()
        }

    def row_scores(self) -> tuple[Tensor, Tensor]:
        """(sentences, 2): entities that were found rightly, and that were predicted; (sentences,): those that there are.

        Of the last `compute`, with the predictions of all processes.
        """
        assert self._scores is not None, "compute() comes first"
        return self._scores[:, :2].float(), self._scores[:, 2].float()

    def predicted_tags(self) -> list[list[int]]:
        """Position of each word's predicted tag, a list for each sentence; O without a prediction."""
        tags = self.predicted[:-1].cpu().numpy().astype(np.int64) - 1
        tags[tags < 0] = self.scheme.outside
        return [part.tolist() for part in np.split(tags, self._starts[1:-1].cpu().numpy())]

    def _count(self) -> Tensor:
        """(sentences, 3): matched, predicted and true entities."""
        tags = self.predicted_tags()
        counts = np.zeros((len(self.rows), 3), dtype=np.int64)
        for place, row in enumerate(self.rows):
            found, true = (set(self.scheme.entities(of_row[row])) for of_row in (tags, self.labels))
            counts[place] = len(found & true), len(found), len(true)
        return torch.from_numpy(counts)
