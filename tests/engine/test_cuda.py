"""Packed students by the kernels of a GPU. Without one, torch's kernels are tested on the CPU: the arithmetic is the same."""

import copy
from types import MethodType

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from transformers.modeling_outputs import BaseModelOutput

from bitkd.engine import cuda, torch_kernels
from bitkd.models.attention import ATTENTION
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.quant.inputs import make_input_quantizer
from bitkd.quant.packed import PackedLinear, pack_layers
from bitkd.quant.packing import BITS, TWO_BITS, pack_codes
from bitkd.quant.spec import QuantSpec

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KERNELS = [("cpu", "torch"), *(pytest.param("cuda", name, marks=needs_gpu) for name in ("torch", "triton"))]
every_kernel = pytest.mark.parametrize(("device", "name"), KERNELS)


def kernels_of(name):
    return torch_kernels if name == "torch" else pytest.importorskip("bitkd.engine.triton_kernels")


def packed_linear(inputs, outputs, bits=1, per_row=False, halves=None):
    """A packed layer of random codes.  halves: of a pair, "equal" or "unequal" scales."""
    linear = PackedLinear(
        inputs,
        outputs,
        packing={1: BITS, 2: TWO_BITS}[bits],
        per_row=per_row,
        split=halves is not None,
        input_quantizer=make_input_quantizer(8),
    )
    for packed, scale in linear.halves():
        codes = torch.randint(2, (outputs, inputs)) * 2 - 1 if bits == 1 else torch.randint(-1, 2, (outputs, inputs))
        packed.copy_(pack_codes(codes, linear.packing))
        scale.copy_(torch.rand(scale.shape) * 0.1 if halves == "unequal" else torch.full(scale.shape, 0.037))
    torch.nn.init.normal_(linear.bias)
    return linear


def classifier(bits=1, split=None, **settings):
    """A packed classifier of random weights.  split: None, or the scale of the second halves."""
    spec = {key: settings.pop(key) for key in ("per_row", "attention_activations", "pooler") if key in settings}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=72,
        initializer_range=0.2,
        num_labels=3,
        **settings,
    )
    model = BertForSequenceClassification._from_config(config, attn_implementation=ATTENTION)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    prepare(model, QuantSpec(weight_bits=bits, embedding_bits=bits, activation_bits=8, **spec))
    if split is not None:
        split_ternary_(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".second.weight" in name and ("key" in name or "output" in name):
                    parameter.mul_(split)
    pack_layers(model)
    return model.requires_grad_(False).eval()


def batch_of(lengths, width):
    """Random tokens, padded to `width`."""
    ids = torch.randint(5, 100, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": (ids % 2) * mask}


def added(mask):
    return torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)[:, None, None]


@every_kernel
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 32, 96), (5, 33, 17), (70, 200, 136)])
@pytest.mark.parametrize(
    "weight", [{}, {"bits": 2, "per_row": True}, {"halves": "equal"}, {"halves": "unequal", "per_row": True}]
)
def test_products_are_those_of_the_packed_layers_in_every_bit(device, name, rows, inputs, outputs, weight):
    torch.manual_seed(0)
    linears = [packed_linear(inputs, outputs, **weight), packed_linear(inputs, 7, **weight | {"halves": None})]
    x = torch.randn(rows, inputs)
    x[0] = 0
    expected = torch.cat([linear(x) for linear in linears], dim=1)
    kernels, part = kernels_of(name), cuda._Product(*(linear.to(device) for linear in linears))
    codes, scales = kernels.quantize(x.to(device))
    y = kernels.product(codes, scales, part.terms, part.bias, "", torch.float32)
    assert len(part.terms) == (2 if weight.get("halves") == "unequal" else 1)
    torch.testing.assert_close(y.cpu(), expected, rtol=0, atol=0)
    for activation, function in (("gelu", torch.nn.functional.gelu), ("relu", torch.relu)):
        y = kernels.product(codes, scales, part.terms, part.bias, activation, torch.float32)
        torch.testing.assert_close(y.cpu(), function(expected), rtol=1e-6, atol=1e-6)


@every_kernel
def test_codes_and_scales_are_those_of_the_cpu_in_every_bit(device, name):
    x = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    codes, scales = kernels_of(name).quantize(x.to(device))
    expected, expected_scales = make_input_quantizer(8).codes(x)
    assert torch.equal(codes.cpu().float(), expected)
    assert torch.equal(scales.cpu(), expected_scales[:, 0])


@every_kernel
def test_a_norm_gives_the_codes_of_what_it_returns(device, name):
    x, y = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(0)).to(device)
    norm = torch.nn.LayerNorm(48, 1e-12).to(device).requires_grad_(False)
    torch.nn.init.normal_(norm.weight)
    kernels = kernels_of(name)
    out, codes, scales = kernels.add_norm(x, y, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(out, norm(x + y), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip((codes, scales), kernels.quantize(out)))


@every_kernel
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_spoils_its_own_row_only(device, name, bad):
    kernels, part = kernels_of(name), cuda._Product(packed_linear(16, 8).to(device))
    x = torch.ones(3, 16, device=device)
    x[1, 4] = bad
    y = kernels.product(*kernels.quantize(x), part.terms, part.bias, "gelu", torch.float32)
    assert y.isnan().any(1).tolist() == [False, True, False]
    assert y[1].isnan().all()


MODELS = {
    "W1": {},
    "W1 with ReLU": {"hidden_act": "relu"},
    "W1 with another GELU": {"hidden_act": "gelu_new"},
    "W1, attention quantized": {"attention_activations": True},
    "W2, a scale per row": {"bits": 2, "per_row": True},
    "split": {"bits": 2, "split": 1.0},
    "split, halves with scales of their own": {"bits": 2, "split": 1.3},
}


@every_kernel
@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS.keys())
def test_an_encoder_gives_what_its_packed_layers_give(device, name, settings, monkeypatch):
    monkeypatch.setattr(cuda, "kernels_of", lambda _: kernels_of(name))
    model = classifier(**settings)
    batch = batch_of([9, 4, 1], 9)
    batch["attention_mask"][1, 2] = 0  # a hole
    hidden, mask = model.bert.embeddings(batch["input_ids"]), added(batch["attention_mask"])
    expected = [model.bert.encoder(hidden, attention_mask=each).last_hidden_state for each in (mask, None)]
    run = cuda.make_runner(model.to(device), torch.device(device))
    found = [run(hidden.to(device), None if each is None else each.to(device)).cpu() for each in (mask, None)]
    for one, other in zip(found, expected):
        # A code that a last bit flips changes a few numbers by a little.
        assert (one - other).abs().median() < 1e-6
        torch.testing.assert_close(one, other, rtol=0, atol=2e-2)


def test_what_the_kernels_cannot_run_has_no_runner():
    inputs = classifier()
    for linear in [module for module in inputs.modules() if isinstance(module, PackedLinear)]:
        linear.input_quantizer = make_input_quantizer(32)
    stock = BertForSequenceClassification(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    for model in (inputs, stock, torch.nn.Linear(2, 2)):
        assert cuda.make_runner(model, torch.device("cpu")) is None


def on_gpu(model):
    """The model on the GPU, its encoder by the kernels and by graphs."""
    model = model.cuda()
    run = cuda.make_runner(model, torch.device("cuda"))

    def forward(self, hidden_states, attention_mask=None, **_):
        return BaseModelOutput(last_hidden_state=run(hidden_states, attention_mask))

    model.bert.encoder.forward = MethodType(forward, model.bert.encoder)
    cuda.use_graphs(model)
    return model


def logits_of(model, batch):
    with torch.inference_mode():
        return model(**{name: tensor.cuda() for name, tensor in batch.items()}).logits.cpu()


def graphs_of(model):
    return list(model.bert._bitkd_graphs._kept)


@needs_gpu
@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS.keys())
def test_a_graph_gives_what_single_kernels_give(settings):
    model = on_gpu(classifier(**settings))
    first, second = batch_of([9, 4, 1], 9), batch_of([3, 9, 7], 9)
    eager = [logits_of(on_gpu(classifier(**settings)), batch) for batch in (first, second)]
    for _ in range(3):
        assert torch.equal(logits_of(model, first), eager[0])
        assert torch.equal(logits_of(model, second), eager[1])
    assert len(graphs_of(model)) == 1


@needs_gpu
def test_a_result_stays_when_the_next_one_comes():
    model = on_gpu(classifier()).bert
    batches = [{name: tensor.cuda() for name, tensor in batch_of([9], 9).items()} for _ in range(2)]
    batches[1]["input_ids"] = batches[1]["input_ids"].flip(1)
    with torch.inference_mode():
        for _ in range(3):
            one = model(**batches[0]).last_hidden_state
            kept = one.clone()
            other = model(**batches[1]).last_hidden_state
            assert torch.equal(one, kept)
            assert not torch.equal(one, other)


@needs_gpu
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_cpu_but_for_flipped_codes(name):
    model, batch = classifier(**MODELS[name]), batch_of([16, 9, 4, 1] * 8, 16)
    expected = model(**batch).logits
    model = on_gpu(model)
    for _ in range(3):
        found = logits_of(model, batch)
        assert (found - expected).abs().median() < 1e-4
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-2)
        top = expected.topk(2).values
        clear = top[:, 0] - top[:, 1] > 0.1
        assert torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


@needs_gpu
def test_padding_changes_nothing():
    model = on_gpu(classifier())
    for lengths in ([9, 4, 1], [5, 5, 2]):
        together = batch_of(lengths, 12)
        for row, length in enumerate(lengths):
            alone = {name: tensor[row : row + 1, :length] for name, tensor in together.items()}
            for _ in range(3):
                padded = logits_of(model, together)[row]
                torch.testing.assert_close(logits_of(model, alone)[0], padded, rtol=0, atol=5e-2)


@needs_gpu
def test_a_model_that_was_moved_or_loaded_anew_has_new_graphs():
    model, batch = on_gpu(classifier()), batch_of([9, 4], 9)
    before = [logits_of(model, batch) for _ in range(3)][-1]
    model.cpu()
    keep = [torch.rand(1000, 1000, device="cuda") for _ in range(8)]  # takes the memory that the weights had
    model.cuda()
    assert torch.equal(logits_of(model, batch), before)
    del keep
    state = {name: tensor * 0 if "classifier" in name else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    assert not logits_of(model, batch).any()


@needs_gpu
def test_the_oldest_graph_goes_first(monkeypatch):
    monkeypatch.setattr(cuda, "MAX_GRAPHS", 2)
    model = on_gpu(classifier())
    for length in (4, 5, 6):
        for _ in range(2):
            logits_of(model, batch_of([length], length))
    assert [key[1][1] for key in graphs_of(model)] == [5, 6]


@needs_gpu
def test_what_no_graph_can_answer_runs_as_before():
    model, batch = on_gpu(classifier()), {name: t.cuda() for name, t in batch_of([9, 4], 9).items()}
    with torch.inference_mode():
        for _ in range(3):
            as_tuple = model.bert(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert not graphs_of(model)
    twin = copy.deepcopy(model)
    assert not graphs_of(twin)


@needs_gpu
def test_bf16_between_the_products_under_autocast():
    model, batch = on_gpu(classifier()), batch_of([9, 4], 9)
    exact = logits_of(model, batch)
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(3):
            torch.testing.assert_close(logits_of(model, batch).float(), exact, rtol=0, atol=0.2)


@needs_gpu
def test_another_family_runs_by_its_packed_layers():
    config = DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=72, initializer_range=0.2)
    model = DistilBertForSequenceClassification._from_config(config, attn_implementation=ATTENTION).eval()
    prepare(model, QuantSpec(weight_bits=1, embedding_bits=1, activation_bits=8))
    pack_layers(model)
    model.requires_grad_(False)
    batch = batch_of([9, 4], 9)
    del batch["token_type_ids"]
    expected = model(**batch).logits
    assert cuda.make_runner(model, torch.device("cpu")) is None
    torch.testing.assert_close(logits_of(model.cuda(), batch), expected, rtol=0, atol=5e-2)
