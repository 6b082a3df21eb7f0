import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from bitkd.distill.losses import (
    Padding,
    attention_map_kl,
    attention_score_mse,
    hidden_mse,
    logits_mse,
    relation_kl,
    soft_cross_entropy,
    spans_soft_cross_entropy,
)
from bitkd.errors import InputError

MASK = torch.tensor([[True, True, True], [True, False, False]])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_by_hand() -> None:
    student, teacher = torch.zeros(2, 2, 3, 3), torch.full((2, 2, 3, 3), 5.0)
    teacher[0] = 1.0
    teacher[1, 0, 0, 0], teacher[1, 1, 0, 0] = 2.0, 4.0  # the second example's only real pair, in each head
    assert attention_score_mse(student, teacher, MASK).item() == pytest.approx((1 + (4 + 16) / 2) / 2)
    # Published: padded keys are zero, padded queries count (column 0 of rows 1 and 2), the mean is over all 36.
    expected = (18 * 1 + 4 + 16 + 4 * 25) / 36
    assert attention_score_mse(student, teacher, MASK, "zero").item() == pytest.approx(expected)
    # Padded keys count as well: the 18 scores of the second example are 2, 4, and 16 times 5.
    expected = (18 * 1 + 4 + 16 + 16 * 25) / 36
    assert attention_score_mse(student, teacher, MASK, "leave").item() == pytest.approx(expected)


def test_hidden_by_hand() -> None:
    student, teacher = torch.zeros(2, 3, 2), torch.full((2, 3, 2), 5.0)
    teacher[0] = torch.tensor([1.0, 2.0])
    teacher[1, 0] = torch.tensor([3.0, 0.0])
    assert hidden_mse(student, teacher, MASK).item() == pytest.approx((2.5 + 4.5) / 2)
    expected = (3 * 5 + 9 + 4 * 25) / 12
    for padding in ("zero", "leave"):
        assert hidden_mse(student, teacher, MASK, padding).item() == pytest.approx(expected)


def test_soft_cross_entropy_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    teacher = torch.tensor([[7.0, -1.0], [0.0, math.log(3)]])
    # first: log 2 whatever the teacher says; second: teacher (1/4, 3/4), student (3/4, 1/4)
    expected = (math.log(2) - 0.25 * math.log(0.75) - 0.75 * math.log(0.25)) / 2
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(expected)
    assert soft_cross_entropy(2 * student, 2 * teacher, temperature=2).item() == pytest.approx(4 * expected)
    mean = soft_cross_entropy(2 * student, 2 * teacher, temperature=2, mean_over_classes=True)
    assert mean.item() == pytest.approx(4 * expected / 2)


def test_padding_is_no_class_of_a_distribution_over_tokens() -> None:
    student, teacher = normal(2, 2, 8, seed=1), normal(2, 2, 8, seed=2)
    mask = torch.arange(8) < torch.tensor([[8], [5]])
    losses = []
    for padding in (0, 8):
        wider = torch.nn.functional.pad(mask, (0, padding))
        pair = (torch.nn.functional.pad(x, (0, padding)).masked_fill(~wider[:, None], -1e9) for x in (student, teacher))
        losses.append(spans_soft_cross_entropy(*pair, wider, 2.0, mean_over_classes=True))
    alone = [soft_cross_entropy(s[:, :n], t[:, :n], 2.0, True) for s, t, n in zip(student, teacher, (8, 5))]
    torch.testing.assert_close(losses, [sum(alone) / 2] * 2)


def test_soft_cross_entropy_is_least_at_the_teacher() -> None:
    teacher = normal(4, 3, seed=0)
    student = teacher.clone().requires_grad_()
    soft_cross_entropy(student, teacher, temperature=3).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_regression() -> None:
    assert logits_mse(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [1.0]])).item() == pytest.approx(2.5)
    with pytest.raises(InputError, match=r"single logit is always zero.*use regression"):
        soft_cross_entropy(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(InputError, match="differ in shape; choose layers and heads"):
        logits_mse(torch.zeros(2, 1), torch.zeros(2))


def test_attention_map_by_hand() -> None:
    """Two tokens and a padded one, one head: the teacher's query 0 looks at the keys as 1 to 3, everything else is even."""
    student, teacher = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    teacher[0, 0, 0] = torch.tensor([0.0, math.log(3), 9.0])
    mask = torch.tensor([[True, True, False]])
    expected = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2
    assert attention_map_kl(student, teacher, mask).item() == pytest.approx(expected)
    assert attention_map_kl(student + 3, teacher - 5, mask).item() == pytest.approx(expected)
    assert attention_map_kl(teacher, teacher, mask).item() == 0
    # A query that sees only itself has nothing to divide.
    assert attention_map_kl(student, teacher, mask, window=1).item() == 0
    assert attention_map_kl(student, teacher, mask, window=2).item() == pytest.approx(expected)


def test_attention_maps_are_those_of_published_code() -> None:
    """kd-qat-large-enc: entropy minus cross entropy of the maps, over the keys, then the mean over queries, heads and batch."""
    student, teacher = normal(2, 2, 3, 3, seed=1), normal(2, 2, 3, 3, seed=2)
    losses = []
    for i, length in enumerate(MASK.sum(1).tolist()):
        own, target = (scores[i, :, :length, :length].softmax(-1).clamp_min(1e-8) for scores in (student, teacher))
        found = (target * target.log()).sum((-1, -2)) / length - (target * own.log()).sum((-1, -2)) / length
        losses.append(found.mean())
    torch.testing.assert_close(attention_map_kl(student, teacher, MASK), torch.stack(losses).mean())


@pytest.mark.parametrize("window", [None, 2])
def test_the_gradient_of_attention_maps_is_that_of_finite_differences(window: int | None) -> None:
    student, teacher = normal(2, 2, 3, 3, seed=1).double().requires_grad_(), normal(2, 2, 3, 3, seed=2).double()
    assert torch.autograd.gradcheck(lambda scores: attention_map_kl(scores, teacher, MASK, window), student)
    attention_map_kl(teacher.requires_grad_(), teacher.detach(), MASK, window).backward()
    assert (teacher.grad == 0).all()


def test_relation_by_hand() -> None:
    """One head of width 1, two tokens, scores x_i * x_j."""
    student, teacher = torch.zeros(1, 2, 1), torch.tensor([[[0.0], [1.0]]])
    # Query 0 is uniform in both; query 1 has teacher scores (0, 1) against the uniform student.
    p = math.e / (1 + math.e)
    expected = (math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)) / 2
    assert relation_kl(student, teacher, torch.ones(1, 2).bool(), 1).item() == pytest.approx(expected, rel=1e-5)


def test_relation_against_the_loop() -> None:
    student, teacher, heads = normal(2, 3, 4, seed=1), normal(2, 3, 8, seed=2), 2

    def relation(x: Tensor, example: int, head: int, length: int) -> Tensor:
        size = x.shape[-1] // heads
        part = x[example, :length, head * size : (head + 1) * size]
        return torch.softmax(part @ part.t() / size**0.5, dim=-1)

    losses = []
    for example, length in enumerate(MASK.sum(1).tolist()):
        for head in range(heads):
            p, q = (relation(x, example, head, length) for x in (teacher, student))
            losses.append((p * (p / q).log()).sum(-1).mean())
    torch.testing.assert_close(relation_kl(student, teacher, MASK, heads), torch.stack(losses).mean())
    assert relation_kl(teacher, teacher, MASK, heads).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("student", "teacher", "name"), [(6, 8, "student"), (8, 6, "teacher")])
def test_relation_heads_must_divide(student: int, teacher: int, name: str) -> None:
    with pytest.raises(InputError, match=f"relation_heads=4 does not divide the {name}'s width 6"):
        relation_kl(torch.zeros(1, 2, student), torch.zeros(1, 2, teacher), torch.ones(1, 2).bool(), 4)


def relation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return relation_kl(student, teacher, mask, 2)


CASES = [(attention_score_mse, (2, 2, 3, 3)), (hidden_mse, (2, 3, 4))]
CASES += [(relation, (2, 3, 4)), (attention_map_kl, (2, 2, 3, 3))]


@pytest.mark.parametrize(("loss", "shape"), CASES)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e4])
def test_padding_is_never_read(loss: Callable[..., Tensor], shape: tuple[int, ...], garbage: float) -> None:
    student, teacher = normal(*shape, seed=1), normal(*shape, seed=2)
    real = MASK[:, :, None].expand(shape) if len(shape) == 3 else (MASK[:, None, None] & MASK[:, None, :, None])
    results = []
    for filling in (0.0, garbage):
        leaf = torch.where(real, student, filling).requires_grad_()
        value = loss(leaf, torch.where(real, teacher, filling), MASK)
        results.append((value, *torch.autograd.grad(value, leaf)))
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    assert (results[1][1].masked_fill(real, 0) == 0).all()


@pytest.mark.parametrize(("loss", "shape"), CASES)
def test_batch_composition_changes_nothing(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    student, teacher = normal(*shape, seed=1), normal(*shape, seed=2)
    alone = []
    for i, length in enumerate(MASK.sum(1).tolist()):
        cut = (
            (slice(i, i + 1), slice(length))
            if len(shape) == 3
            else (slice(i, i + 1), ..., slice(length), slice(length))
        )
        alone.append(loss(student[cut], teacher[cut], MASK[i : i + 1, :length]))
    torch.testing.assert_close(loss(student, teacher, MASK), torch.stack(alone).mean())


@pytest.mark.parametrize(("loss", "shape"), [*CASES, (lambda s, t, _: soft_cross_entropy(s, t), (4, 3))])
def test_fp32_whatever_the_autocast(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    student, teacher = normal(*shape, seed=1).bfloat16(), normal(*shape, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher, MASK)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), MASK), rtol=0, atol=0)


@pytest.mark.parametrize(("loss", "shape"), CASES)
def test_an_example_of_padding_only_is_zero(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    student = normal(*shape, seed=1).requires_grad_()
    value = loss(student, normal(*shape, seed=2), torch.zeros(2, 3).bool())
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def by_the_formula(student: Tensor, teacher: Tensor, mask: Tensor, padding: Padding) -> Tensor:
    """Squared errors of scores or of hidden states as the papers write them, on copies."""
    scores = student.dim() == 4
    keys = mask[:, None, None, :] if scores else mask[:, :, None]
    real = keys & mask[:, None, :, None] if scores else keys
    if padding != "skip":
        real = keys if scores and padding == "zero" else torch.ones_like(keys)
    error = torch.where(real, student.float() - teacher.float(), 0.0).square()
    if padding != "skip":
        return error.mean()
    positions = (mask.sum(1).square() if scores else mask.sum(1)) * student.shape[1 if scores else 2]
    return (error.flatten(1).sum(1) / positions).mean()


@pytest.mark.parametrize("padding", get_args(Padding))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("loss", "shape"), CASES[:2])
def test_squared_errors_are_those_of_the_formula(
    loss: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, padding: Padding
) -> None:
    results = []
    for function in (loss, by_the_formula):
        student = normal(*shape, seed=1).to(dtype).requires_grad_()
        teacher = normal(*shape, seed=2).to(dtype).requires_grad_()
        value = 3 * function(student, teacher, MASK, padding)
        results.append((value, *torch.autograd.grad(value, (student, teacher))))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("loss", "shape"), CASES[:2])
def test_squared_errors_are_compiled_as_one_graph(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    student, teacher = normal(*shape, seed=1).requires_grad_(), normal(*shape, seed=2)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = [function(student, teacher, MASK) for function in (loss, compiled)]
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    assert torch.equal(*values)
    assert torch.equal(*gradients)
