"""Packed students by the kernels of a GPU. Without one, torch's kernels are tested on the CPU: the arithmetic is the same."""

import copy
import gc
import weakref

import pytest
import torch

from bitkd.engine import cuda, forward, torch_kernels
from bitkd.engine.attach import attach
from bitkd.engine.cuda import GpuEncoder, added_to_scores
from bitkd.engine.families import FAMILIES, norms_of
from bitkd.engine.forward import EngineForward, _refuse_replica
from bitkd.quant.inputs import make_input_quantizer
from bitkd.quant.layout import layers_of
from bitkd.quant.packed import PackedLinear
from bitkd.quant.packing import BITS, TWO_BITS, pack_codes
from tests.engine.conftest import FAMILIES as SIZES
from tests.engine.conftest import ODD, SPECS, make_packed, make_rows

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KERNELS = [("cpu", "torch"), *(pytest.param("cuda", name, marks=needs_gpu) for name in ("torch", "triton"))]
FLIPPED = 0.1
"""How far 8-bit codes that are rounded otherwise move hidden states and logits of these models."""

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


def packed(family="Bert", spec="W1", **sizes):
    return make_packed(family, spec, **sizes)[1].requires_grad_(False).eval()


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
    **{name: {"spec": name} for name, spec in SPECS.items() if not spec.column_scales},
    **{family: {"family": family} for family in SIZES},
    "sizes that fit no tile": ODD,
    "ReLU": {"hidden_act": "relu"},
    "GELU by tanh": {"hidden_act": "gelu_new"},
}
every_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS.keys())


def gpu_encoder(model):
    base = model.base_model
    family, layers = FAMILIES[type(base).__name__], layers_of(model)
    return GpuEncoder(layers, norms_of(layers, family), getattr(base.config, family.activation))


@every_kernel
@every_model
def test_an_encoder_gives_what_its_packed_layers_give(device, name, settings, monkeypatch):
    monkeypatch.setattr(cuda, "find_kernels", lambda _: kernels_of(name))
    model = packed(**settings)
    rows = make_rows((17, 9, 1, 12) * 8)
    rows["attention_mask"][1, 2] = 0  # a hole
    layers = model.base_model.encoder if hasattr(model.base_model, "encoder") else model.base_model.transformer
    hidden = torch.randn(*rows["input_ids"].shape, layers_of(model).parts("query")[0].in_features)
    mask = added_to_scores(rows["attention_mask"])
    expected = [layers(hidden, attention_mask=each).last_hidden_state for each in (mask, None)]
    run = gpu_encoder(model.to(device))
    found = [run(hidden.to(device), None if each is None else each.to(device)).cpu() for each in (mask, None)]
    for one, other in zip(found, expected):
        # A code that a last bit flips changes its row by a little.
        difference = (one - other).abs()
        assert difference.median() <= 2e-6
        assert (difference > 1e-3).float().mean() <= 0.15  # 5 of 32 rows
        assert difference.max() <= FLIPPED


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Calls on the CPU take the way of a GPU, without graphs."""
    monkeypatch.setattr(EngineForward, "_on_cpu", EngineForward._on_gpu)
    monkeypatch.setattr(forward, "Graphs", lambda encode: encode)
    monkeypatch.setattr(cuda, "find_kernels", lambda device: torch_kernels)


def encoder_of(model):
    """What the model made for its device."""
    return model.base_model.forward._graphs[0]


@pytest.mark.parametrize("what", ["inputs_embeds", "LayerNorm"])
def test_gradients_are_refused_as_by_the_packed_layers(what, as_on_gpu):
    model, rows = packed(), make_rows()
    assert attach(model)
    model(**rows)
    assert encoder_of(model) is not None
    if what == "LayerNorm":
        model.bert.embeddings.LayerNorm.requires_grad_(True)
    else:
        states = model.get_input_embeddings()(rows.pop("input_ids")).requires_grad_()
        rows["inputs_embeds"] = states
    with pytest.raises(RuntimeError, match="for inference only"):
        model(**rows)
    with torch.no_grad():
        assert model(**rows).logits.isfinite().all()


def test_what_a_model_made_for_a_gpu_goes_with_it(as_on_gpu):
    model = packed()
    assert attach(model)
    model(**make_rows())
    kept = weakref.ref(model.base_model), weakref.ref(encoder_of(model))
    gc.disable()
    try:
        del model
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()


def test_embeddings_that_are_replaced_have_new_graphs(as_on_gpu):
    model, rows = packed(), make_rows()
    assert attach(model)
    model(**rows)
    first = encoder_of(model)
    model(**rows)
    assert encoder_of(model) is first
    model.bert.pooler = copy.deepcopy(model.bert.pooler)
    model(**rows)
    assert encoder_of(model) is not first


def test_layers_on_several_devices_are_left_to_the_packed_layers(as_on_gpu):
    model = packed()
    assert attach(model)
    model.bert.encoder.layer[2].to("meta")
    graphs, _ = model.bert.forward._make_graphs(torch.device("cpu"))
    assert graphs is None


def test_inputs_on_another_gpu_than_the_model_are_refused():
    model = packed()
    with pytest.raises(RuntimeError, match=r"the inputs are on cpu:1, the packed model on cpu: .*DataParallel"):
        _refuse_replica(model.base_model, torch.device("cpu:1"))
    _refuse_replica(model.base_model, torch.device("cpu"))
    model.base_model.embeddings._hf_hook = "what moves the inputs"
    _refuse_replica(model.base_model, torch.device("cpu:1"))


@pytest.mark.parametrize(("capability", "found"), [((7, 0), None), ((7, 5), torch_kernels)])
def test_old_gpus_that_do_not_multiply_integers_use_the_packed_layers(capability, found, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert cuda.find_kernels(torch.device("cuda")) is found


def on_gpu(model):
    assert attach(model)
    return model.cuda()


def logits_of(model, rows):
    with torch.inference_mode():
        return model(**{name: tensor.cuda() for name, tensor in rows.items()}).logits.cpu()


def graphs_of(model):
    return model.base_model.forward._graphs[0]._kept


@needs_gpu
@every_model
def test_a_graph_gives_what_single_kernels_give(settings):
    model = on_gpu(packed(**settings))
    first, second = make_rows(), make_rows((3, 17, 5, 9), seed=2)
    eager = [logits_of(on_gpu(packed(**settings)), rows) for rows in (first, second)]
    for _ in range(3):
        assert torch.equal(logits_of(model, first), eager[0])
        assert torch.equal(logits_of(model, second), eager[1])
    assert len(graphs_of(model)) == 1


@needs_gpu
def test_a_result_stays_when_the_next_one_comes():
    model = on_gpu(packed()).bert
    one, other = ({k: v.cuda() for k, v in make_rows((9,), seed).items()} for seed in (1, 2))
    with torch.inference_mode():
        for _ in range(3):
            first = model(**one)
            kept = {name: tensor.clone() for name, tensor in first.items()}
            second = model(**other)
            for name, tensor in kept.items():
                assert torch.equal(first[name], tensor)
                assert not torch.equal(first[name], second[name])


@needs_gpu
@every_model
def test_logits_are_those_of_the_cpu_but_for_flipped_codes(settings):
    model, rows = packed(**settings), make_rows((17, 9, 1, 12) * 8)
    expected = model(**rows).logits
    model = on_gpu(model)
    for _ in range(3):
        found = logits_of(model, rows)
        assert (found - expected).abs().median() < 1e-4
        torch.testing.assert_close(found, expected, rtol=0, atol=FLIPPED)
        top = expected.topk(2).values
        clear = top[:, 0] - top[:, 1] > 2 * FLIPPED
        assert torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


@needs_gpu
def test_padding_changes_nothing():
    model, together = on_gpu(packed()), make_rows((9, 4, 1))
    for row, length in enumerate((9, 4, 1)):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in together.items()}
        for _ in range(3):
            padded = logits_of(model, together)[row]
            torch.testing.assert_close(logits_of(model, alone)[0], padded, rtol=0, atol=FLIPPED)


@needs_gpu
def test_a_model_that_was_moved_or_changed_has_new_graphs():
    model, rows = on_gpu(packed()), make_rows()
    before = [logits_of(model, rows) for _ in range(3)][-1]
    model.cpu()
    taken = [torch.rand(1000, 1000, device="cuda") for _ in range(8)]  # the memory that the weights had
    model.cuda()
    assert torch.equal(logits_of(model, rows), before)
    del taken
    other = packed(spec="W1")
    other.load_state_dict({name: t.roll(1, 0) for name, t in other.state_dict().items()})
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(logits_of(model, rows), other(**rows).logits, rtol=0, atol=FLIPPED)


@needs_gpu
def test_a_model_goes_back_to_the_cpu():
    model, rows = packed(), make_rows()
    expected = model(**rows).logits
    model = on_gpu(model)
    logits_of(model, rows)
    torch.testing.assert_close(model.cpu()(**rows).logits, expected, rtol=0, atol=FLIPPED)


@needs_gpu
def test_the_oldest_graph_goes_first(monkeypatch):
    monkeypatch.setattr(cuda, "MAX_GRAPHS", 2)
    model = on_gpu(packed())
    for length in (4, 5, 6):
        for _ in range(2):
            logits_of(model, make_rows((length,)))
    assert [shape for key in graphs_of(model) for shape in key if isinstance(shape, torch.Size)] == [(1, 5), (1, 6)]


@needs_gpu
def test_what_no_graph_can_answer_runs_as_before():
    model, rows = on_gpu(packed()), {name: tensor.cuda() for name, tensor in make_rows().items()}
    with torch.inference_mode():
        outputs = [model.bert(**rows, return_dict=False) for _ in range(3)]
        scores = [model.bert(**rows, output_attentions=True).attentions for _ in range(3)][-1]
    assert isinstance(outputs[-1], tuple)
    assert len(scores) == 3
    twin = copy.deepcopy(model)
    assert twin.bert.forward._graphs is None
    assert torch.equal(twin(**rows).logits, model(**rows).logits)


@needs_gpu
def test_bf16_between_the_products_under_autocast():
    model, rows = on_gpu(packed()), make_rows()
    exact = logits_of(model, rows)
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(3):
            torch.testing.assert_close(logits_of(model, rows).float(), exact, rtol=0, atol=0.3)


@needs_gpu
def test_the_packed_layers_run_on_a_gpu_too():
    model, rows = packed(), make_rows()
    expected = model(**rows).logits
    torch.testing.assert_close(logits_of(model.cuda(), rows), expected, rtol=0, atol=FLIPPED)
