import math

import pytest
import torch

from bitkd.distill.similarity import embedding_loss, mean_pooling, pair_cosines, similarity_mse


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_pooling_is_the_mean_of_real_tokens_and_reads_no_other():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [math.nan, 9.0]], [[5.0, 7.0], [math.inf, 0.0], [1.0, 1.0]]])
    hidden.requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    pooled = mean_pooling(hidden, mask)
    assert pooled.tolist() == [[2.0, 4.0], [5.0, 7.0]]
    pooled.sum().backward()
    assert hidden.grad[:, :, 0].tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert mean_pooling(hidden.detach().bfloat16(), mask.bool()).dtype == torch.float32


PAIRS = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [6.0, 8.0]])
"""Two pairs: texts 0 and 2 are at a right angle, texts 1 and 3 point the same way."""


def test_losses_by_hand():
    assert pair_cosines(PAIRS).tolist() == pytest.approx([0.0, 1.0])
    assert similarity_mse(PAIRS, torch.tensor([0.25, 0.5])).item() == pytest.approx((0.25**2 + 0.5**2) / 2)
    # Equal up to their length, but for text 2, which points the other way.
    student = PAIRS * torch.tensor([[1.0], [3.0], [-1.0], [0.5]])
    assert embedding_loss(student, PAIRS).item() == pytest.approx(2 / 4)
    wider = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])  # cosines 1 and 1
    assert embedding_loss(PAIRS, wider).item() == pytest.approx(1 / 2)


@pytest.mark.parametrize("width", [5, 3])
def test_gradients(width):
    student = normal(8, 5, dtype=torch.float64).requires_grad_()
    teacher, labels = normal(8, width, seed=1), torch.tensor([0.0, 0.3, 0.8, 1.0])
    for loss in (lambda x: similarity_mse(x, labels), lambda x: embedding_loss(x, teacher)):
        [found] = torch.autograd.grad(loss(student), student)
        for place in ((0, 0), (6, 3)):
            step = torch.zeros_like(student).index_put((*map(torch.tensor, place),), torch.tensor(1e-2).double())
            with torch.no_grad():
                expected = (loss(student + step) - loss(student - step)) / 2e-2
            assert found[place].item() == pytest.approx(expected.item(), rel=2e-3, abs=1e-5)
