"""Sentence embeddings, their similarity, and the losses that train them; all computed in FP32.

A bi-encoder reads each text by itself (Sentence-BERT, arXiv:1908.10084). A batch of pairs holds first all first texts, then
all second texts.
"""

import torch.nn.functional as F
from torch import Tensor


def mean_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over each text's real tokens: its embedding, (texts, width).

    hidden: (texts, length, width).  mask: (texts, length), True = token. Values in padded positions are never read, not even
    NaN.
    """
    mask = mask.bool()
    total = hidden.float().masked_fill(~mask[:, :, None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp_min(1)


def pair_cosines(embeddings: Tensor) -> Tensor:
    """The cosine of the two texts of each pair, (pairs,), between -1 and 1.  embeddings: (2 · pairs, width)."""
    first, second = embeddings.float().chunk(2)
    return F.cosine_similarity(first, second, dim=-1)


def similarity_mse(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error between the pairs' cosines and their labels, as Sentence-BERT is trained on STS.

    embeddings: (2 · pairs, width).  labels: (pairs,), the cosines that the pairs should have.
    """
    return F.mse_loss(pair_cosines(embeddings), labels.float())


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far a student's embeddings are from the teacher's, as a mean over the batch.

    student, teacher: (2 · pairs, width). 1 - cosine of each text's two embeddings where both are equally wide; else the squared
    error between the pairs' cosines of the student and of the teacher.
    """
    if student.shape == teacher.shape:
        return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()
    return F.mse_loss(pair_cosines(student), pair_cosines(teacher))
