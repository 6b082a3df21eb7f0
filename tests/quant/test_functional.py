import pytest
import torch

from bitkd.quant.functional import binarize, binary_codes, quantize_tokens, ternarize, ternary_codes, token_codes

W = torch.tensor([[1.0, -2.0, 0.0, 0.5], [0.1, 0.2, -3.0, -0.1]])


def test_binary_by_hand() -> None:
    codes, scale = binary_codes(W)
    assert codes.tolist() == [[1, -1, 1, 1], [1, 1, -1, -1]]
    assert scale.shape == ()
    assert scale.item() == pytest.approx(6.9 / 8)
    codes, scale = binary_codes(W, per_row=True)
    assert scale.flatten().tolist() == pytest.approx([3.5 / 4, 3.4 / 4])
    torch.testing.assert_close(binarize(W, per_row=True), codes * scale, rtol=0, atol=0)


def test_ternary_by_hand() -> None:
    codes, scale = ternary_codes(W)  # threshold 0.7 * 6.9 / 8 = 0.60375
    assert codes.tolist() == [[1, -1, 0, 0], [0, 0, -1, 0]]
    assert scale.item() == pytest.approx(2.0)
    codes, scale = ternary_codes(W, per_row=True)  # thresholds 0.6125 and 0.595
    assert codes.tolist() == [[1, -1, 0, 0], [0, 0, -1, 0]]
    assert scale.flatten().tolist() == pytest.approx([1.5, 3.0])
    torch.testing.assert_close(ternarize(W, per_row=True), codes * scale, rtol=0, atol=0)


@pytest.mark.parametrize("quantize", [binarize, ternarize])
@pytest.mark.parametrize("per_row", [False, True])
def test_zero_and_constant_groups(quantize, per_row: bool) -> None:
    zeros = torch.zeros(2, 3, requires_grad=True)
    quantized = quantize(zeros, per_row)
    quantized.sum().backward()
    assert quantized.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert zeros.grad is not None
    assert zeros.grad.tolist() == [[1, 1, 1], [1, 1, 1]]
    constant = torch.tensor([[0.3, -0.3, 0.3]])
    torch.testing.assert_close(quantize(constant, per_row), constant, rtol=0, atol=0)


def test_zero_and_minus_zero_have_a_sign() -> None:
    assert binary_codes(torch.tensor([[0.0, -0.0, -1.0]]))[0].tolist() == [[1, 1, -1]]


@pytest.mark.parametrize("quantize", [binarize, ternarize])
@pytest.mark.parametrize("per_row", [False, True])
def test_laws(quantize, per_row: bool) -> None:
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    quantized = quantize(w, per_row)
    torch.testing.assert_close(quantize(-w, per_row), -quantized, rtol=0, atol=0)
    torch.testing.assert_close(quantize(4 * w, per_row), 4 * quantized, rtol=0, atol=0)
    torch.testing.assert_close(quantize(w.double(), per_row), quantized.double(), rtol=0, atol=0)
    if per_row:
        rows = torch.cat([quantize(row) for row in w.split(1)])
        torch.testing.assert_close(rows, quantized, rtol=0, atol=0)


@pytest.mark.parametrize("quantize", [binarize, ternarize])
def test_gradient_is_straight_through_and_clipped(quantize) -> None:
    w = torch.tensor([[0.5, -3.0, 2.5, 2.6]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    quantize(w).backward(upstream)
    assert w.grad is not None
    assert w.grad.tolist() == upstream.tolist()
    w.grad = None
    quantize(w, clip=2.5).backward(upstream)
    assert w.grad is not None
    assert w.grad.tolist() == [[1, 0, 3, 0]]


@pytest.mark.parametrize("codes_of", [binary_codes, ternary_codes])
def test_autocast_changes_no_scale(codes_of) -> None:
    w = torch.randn(8, 300, generator=torch.Generator().manual_seed(2)) * 0.02
    plain = codes_of(w)
    with torch.autocast("cpu", torch.bfloat16):
        cast = codes_of(w)
    assert cast[1].dtype == torch.float32
    for a, b in zip(plain, cast, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_tokens_by_hand() -> None:
    x = torch.tensor([[127.0, -63.5, 0.4, 0.6], [0.0, 0.0, 0.0, 0.0], [-2.54, 0.02, 1.27, 0.0]])
    codes, scale = token_codes(x)
    assert codes.tolist() == [[127, -64, 0, 1], [0, 0, 0, 0], [-127, 1, 64, 0]]  # halves round to even
    assert scale.flatten().tolist() == pytest.approx([1.0, 0.0, 0.02])
    torch.testing.assert_close(quantize_tokens(x), codes * scale)
    assert token_codes(x, bits=4)[0].tolist()[0] == [7, -4, 0, 0]


def test_tokens_error_and_gradient() -> None:
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(3), requires_grad=True)
    quantized = quantize_tokens(x)
    _, scale = token_codes(x)
    assert ((quantized - x).abs() <= scale * 0.5001).all()
    upstream = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(4))
    quantized.backward(upstream)
    torch.testing.assert_close(x.grad, upstream, rtol=0, atol=0)


def test_tokens_do_not_hide_nan() -> None:
    assert quantize_tokens(torch.tensor([[1.0, float("nan")]])).isnan().any()
