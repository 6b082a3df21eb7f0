"""Dropout on a CPU: the law of PyTorch's own, with fewer random numbers."""

import pytest
import torch

from bitkd.models.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(100, 1000), (7, 13, 1001)])
def test_each_element_is_dropped_at_the_rate_and_the_mean_stays(rate, shape):
    torch.manual_seed(0)
    x = torch.ones(shape, requires_grad=True)
    y = dropout(x, rate)
    kept = y > 0
    spread = (rate * (1 - rate) / y.numel()) ** 0.5
    assert abs((~kept).float().mean() - rate) < 4 * spread + 1e-5
    assert y[kept].unique().numel() == 1
    assert y[kept][0].item() == pytest.approx(1 / (1 - rate), rel=1e-4)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    # Neighbours share one random number and must not share their fate.
    both = kept.flatten()[: kept.numel() // 4 * 4].view(-1, 4).float()
    pairs = (both[:, 0] * both[:, 1]).mean()
    assert pairs == pytest.approx((1 - rate) ** 2, abs=0.02)


def test_the_same_seed_drops_the_same():
    x = torch.rand(3, 5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(dropout(x, 0.5))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_no_rate_changes_nothing():
    x = torch.rand(3, 5)
    assert torch.equal(dropout(x, 0.0), x)
