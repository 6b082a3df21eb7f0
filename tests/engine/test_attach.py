"""A packed model with the engine: the same model, faster, and the packed layers where the engine does not compute a call."""

import copy
import gc
import inspect
import logging
import multiprocessing
import pickle
import threading
import weakref

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel

from bitkd.engine import build, forward
from bitkd.engine.attach import attach, detach, kernels_of
from bitkd.engine.families import find_obstacle
from bitkd.engine.native import NativeEncoder
from bitkd.errors import InputError
from bitkd.models.packed import load_packed, pack_student, save_packed
from bitkd.models.prepare import prepare
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.layout import LAYOUTS
from bitkd.quant.packed import pack_layers
from bitkd.quant.packing import TRITS
from bitkd.quant.spec import QuantSpec
from bitkd.quant.swap import swap_layers
from tests.engine.conftest import FAMILIES, ODD, SPECS, make_packed, make_rows, make_student

CLOSE = 0.05
"""Two logits that are closer than this can change places when an 8-bit code is rounded otherwise."""


@pytest.fixture
def calls(engine, monkeypatch):
    """The shapes of the hidden states that the engine got."""
    seen, compute = [], NativeEncoder.forward

    def note(self, hidden, *rest):
        seen.append(tuple(hidden.shape))
        return compute(self, hidden, *rest)

    monkeypatch.setattr(NativeEncoder, "forward", note)
    return seen


def logits_of(model, rows):
    with torch.inference_mode():
        return model(**rows).logits


def attached(family="Bert", spec="W1", **sizes):
    """The same packed model twice: without the engine and with it."""
    _, packed = make_packed(family, spec, **sizes)
    fast = copy.deepcopy(packed)
    assert attach(fast)
    return packed, fast


def assert_alike(found, expected):
    """Equal up to rounding, but for 8-bit codes that are rounded otherwise now and then."""
    assert (found - expected).abs().median() <= 1e-6
    top = expected.topk(2).values
    clear = top[:, 0] - top[:, 1] > CLOSE
    assert torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def many_rows(count=60):
    torch.manual_seed(3)
    return make_rows(torch.randint(1, 30, (count,)).tolist(), seed=4)


@pytest.mark.parametrize(
    ("family", "spec"), [*((family, "W1") for family in FAMILIES), *(("Bert", spec) for spec in SPECS)]
)
def test_the_engine_computes_what_the_packed_layers_do(family, spec, calls):
    packed, fast = attached(family, spec)
    rows = many_rows()
    assert_alike(logits_of(fast, rows), logits_of(packed, rows))
    tokens = int(rows["attention_mask"].sum())
    assert calls == [(tokens, 32)]


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh"])
def test_other_hidden_activations(activation, calls):
    packed, fast = attached(hidden_act=activation, **ODD)
    rows = many_rows(40)
    assert_alike(logits_of(fast, rows), logits_of(packed, rows))
    assert len(calls) == 1


def test_narrow_students_and_trits(calls):
    torch.manual_seed(0)
    whole = make_student()
    swap_layers(whole, QuantSpec())
    student = build_student(whole, ShapeSpec(layers=[0, 2], width=0.5, init="random"))
    prepare(student, SPECS["W2"]).eval()
    pack_layers(student, ternary=TRITS)
    fast = copy.deepcopy(student)
    assert attach(fast)
    rows = many_rows(40)
    assert_alike(logits_of(fast, rows), logits_of(student, rows))
    assert len(calls) == 1


@pytest.mark.parametrize("spec", ["W1", "split, unequal"])
def test_logits_do_not_depend_on_the_batch_nor_on_the_threads(spec, calls):
    _, fast = attached(spec=spec)
    rows = make_rows((17, 9, 1, 12, 30))
    whole = logits_of(fast, rows)
    for i, length in enumerate(rows["attention_mask"].sum(1)):
        one = {name: value[i : i + 1, :length] for name, value in rows.items()}
        torch.testing.assert_close(logits_of(fast, one)[0], whole[i], rtol=0, atol=1e-6)
    threads = torch.get_num_threads()
    try:
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            torch.testing.assert_close(logits_of(fast, rows), whole, rtol=0, atol=1e-6)
            one = {name: value[:1] for name, value in rows.items()}
            torch.testing.assert_close(logits_of(fast, one)[0], whole[0], rtol=0, atol=1e-6)
    finally:
        torch.set_num_threads(threads)


def test_a_mask_with_holes_hides_tokens_as_if_they_were_not_there(calls):
    _, fast = attached()
    ids = torch.randint(5, 60, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, [3, 4, 9]] = 0
    mask[1, [1, 2, 11]] = 0
    found = logits_of(fast, {"input_ids": ids, "attention_mask": mask})
    kept = mask.nonzero()[:, 1].view(2, 9)
    without = logits_of(fast, {"input_ids": ids.gather(1, kept), "position_ids": kept})
    torch.testing.assert_close(found, without, rtol=0, atol=1e-6)
    assert calls == [(18, 32), (18, 32)]


def test_padding_is_zero_and_the_rest_is_in_place(calls):
    _, fast = attached()
    rows = make_rows()
    with torch.inference_mode():
        states = fast.bert(**rows).last_hidden_state
        one = fast.bert(**{name: value[1:2, :9] for name, value in rows.items()}).last_hidden_state
    assert not states[rows["attention_mask"] == 0].any()
    torch.testing.assert_close(states[1, :9], one[0], rtol=0, atol=1e-6)


def everything(model):
    """What the engine leaves to the packed layers: by name, a function of the model and rows that gives a tensor."""

    def embedded(rows, value):
        states = model.get_input_embeddings()(rows["input_ids"])
        states[0, 0, 0] = value
        return model(inputs_embeds=states, attention_mask=rows["attention_mask"]).logits

    def wide(rows):
        mask = rows["attention_mask"][:, None, None, :].expand(-1, 1, rows["input_ids"].shape[1], -1)
        return model(input_ids=rows["input_ids"], attention_mask=(mask - 1.0) * 1e9).logits

    def empty(rows):
        mask = rows["attention_mask"].clone()
        mask[2] = 0
        return model(input_ids=rows["input_ids"], attention_mask=mask).logits

    return {
        "hidden states": lambda rows: model(**rows, output_hidden_states=True).hidden_states[1],
        "attentions": lambda rows: model(**rows, output_attentions=True).attentions[0],
        "not a number": lambda rows: embedded(rows, float("nan")),
        "infinite": lambda rows: embedded(rows, float("inf")),
        "a mask for each token": wide,
        "a row without tokens": empty,
    }


@pytest.mark.parametrize("what", everything(None))
def test_other_calls_run_by_the_packed_layers(what, calls):
    packed, fast = attached()
    rows = make_rows()
    with torch.inference_mode():
        expected = everything(packed)[what](rows)
        torch.testing.assert_close(everything(fast)[what](rows), expected, rtol=0, atol=0, equal_nan=True)
    assert calls == []


def test_dropout_and_gradients_run_by_the_packed_layers(calls):
    packed, fast = attached()
    rows = make_rows()
    states = [model.get_input_embeddings()(rows["input_ids"]) for model in (packed, fast)]
    fast.train()
    fast(**rows)
    fast.eval()
    with pytest.raises(RuntimeError, match="for inference only"):
        fast(inputs_embeds=states[1].requires_grad_(), attention_mask=rows["attention_mask"])
    assert calls == []
    assert torch.isfinite(fast(**rows).logits).all()  # without inference_mode: no parameter needs a gradient
    assert len(calls) == 1


def test_embeddings_may_be_given(calls):
    _, fast = attached()
    rows = make_rows()
    states = fast.get_input_embeddings()(rows["input_ids"])
    before = states.clone()
    found = logits_of(fast, {"inputs_embeds": states, "attention_mask": rows["attention_mask"]})
    assert torch.equal(found, logits_of(fast, rows))
    assert torch.equal(states, before)
    assert len(calls) == 2


def test_wrong_calls_get_the_models_own_errors(engine):
    _, fast = attached()
    rows = make_rows()
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        fast(attention_mask=rows["attention_mask"])
    with pytest.raises(IndexError):
        fast(input_ids=torch.full((1, 3), 60))


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_encoders_return_what_they_did(family, calls):
    packed, fast = attached(family)
    rows = make_rows()
    plain, quick = packed.base_model, fast.base_model
    with torch.inference_mode():
        expected, found = plain(**rows), quick(**rows)
        assert type(found) is type(expected)
        assert found.keys() == expected.keys()
        as_tuple = quick(rows["input_ids"], rows["attention_mask"], return_dict=False)
        assert len(as_tuple) == len(plain(**rows, return_dict=False))
        assert torch.equal(as_tuple[0], found.last_hidden_state)
    real = rows["attention_mask"].bool()
    assert (found.last_hidden_state - expected.last_hidden_state)[real].abs().median() <= 1e-6
    assert len(calls) == 2


def test_a_copy_has_an_engine_of_its_own(calls):
    _, fast = attached()
    rows = make_rows()
    expected = logits_of(fast, rows)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(logits_of(twin, rows), expected)
        with torch.no_grad():
            twin.bert.encoder.layer[0].output.LayerNorm.weight.mul_(3)
        assert not torch.equal(logits_of(twin, rows), expected)
    assert torch.equal(logits_of(fast, rows), expected)
    assert len(calls) == 6


@pytest.mark.parametrize("how", ["in place", "loaded", "assigned", "replaced", "unpacked"])
def test_weights_that_change_reach_the_engine(how, calls):
    _, fast = attached()
    _, other = make_packed(spec="W1", initializer_range=0.5)
    rows = make_rows()
    before = logits_of(fast, rows)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
        other.bert.encoder.layer[2].output.dense.packed.bitwise_not_()
    if how == "in place":
        with torch.no_grad():
            for own, new in zip(fast.state_dict().values(), other.state_dict().values(), strict=True):
                own.copy_(new)
    elif how in ("loaded", "assigned"):
        fast.load_state_dict(other.state_dict(), assign=how == "assigned")
    elif how == "replaced":  # as a move to another device does
        for mine, new in zip(fast.modules(), other.modules(), strict=True):
            mine._buffers |= new._buffers
            for name, parameter in mine._parameters.items():
                if parameter is not None:
                    parameter.data = new._parameters[name].data
    elif how == "unpacked":  # layers that the engine cannot read take the place of packed ones
        for mine, new in zip(fast.bert.encoder.layer, make_student(spec="W2").bert.encoder.layer, strict=True):
            mine.output.dense = new.output.dense
        other = copy.deepcopy(fast)
        detach(other)
    after = logits_of(fast, rows)
    assert not torch.equal(after, before)
    assert_alike(after, logits_of(other, rows))
    assert len(calls) == (1 if how == "unpacked" else 2)


def cut(encoder):
    encoder.layer = encoder.layer[:1]


def delete(encoder):
    del encoder.layer[1]


def swap(encoder):
    first, second, _ = encoder.layer
    encoder.layer[0], encoder.layer[1] = second, first


def double(encoder):
    encoder.layer.append(encoder.layer[0])


def scale_up(encoder):
    linear = encoder.layer[0].intermediate.dense
    linear.scale = linear.scale * 3


def lose_bias(encoder):
    encoder.layer[0].attention.self.value.bias = None


def replace_norm(encoder):
    encoder.layer[1].output.LayerNorm = torch.nn.LayerNorm(32, 1e-12).requires_grad_(False)


def move_norm(encoder):
    norm = encoder.layer[1].attention.output.LayerNorm
    norm.weight.data = norm.weight.data * 2


def replace_attention(encoder):
    encoder.layer[0].attention = copy.deepcopy(encoder.layer[2].attention)


CHANGES = [cut, delete, swap, double, scale_up, lose_bias, replace_norm, move_norm, replace_attention]


@pytest.mark.parametrize("change", CHANGES)
def test_layers_and_tensors_that_are_replaced_reach_the_engine(change, calls):
    packed, fast = attached()
    rows = many_rows(20)
    before = logits_of(fast, rows)
    for model in (packed, fast):
        change(model.bert.encoder)
    after = logits_of(fast, rows)
    assert not torch.equal(after, before)
    assert_alike(after, logits_of(packed, rows))
    assert torch.equal(logits_of(fast, rows), after)
    assert len(calls) == 3


@pytest.mark.parametrize("owner", ["bert", "head"])
def test_a_deleted_model_is_freed_at_once(owner, calls):
    _, fast = attached()
    rows = make_rows()
    logits_of(fast, rows)
    kept = weakref.ref(fast.base_model), weakref.ref(fast.bert.forward._native[0])
    forward = fast.bert.forward
    fast = fast.bert if owner == "bert" else fast
    assert kept[0]() is not None
    with torch.inference_mode():
        fast(**rows)
    gc.disable()
    try:
        del fast
        assert kept[0]() is None
        with pytest.raises(ReferenceError, match="keep the model"):
            forward(**rows)
        del forward
        assert kept[1]() is None
    finally:
        gc.enable()


def test_threads_may_call_one_model(calls):
    _, fast = attached()
    batches = [make_rows((5 + i, 20, 3), seed=i) for i in range(8)]
    found = {}

    def work(i):
        found[i] = [logits_of(fast, batch) for batch in batches[i::2]]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        for batch, logits in zip(batches[i::2], found[i], strict=True):
            torch.testing.assert_close(logits_of(fast, batch), logits, rtol=0, atol=1e-6)


def _logits_and_calls(model, rows, queue):
    queue.put(logits_of(model, rows).tolist())


def test_a_forked_process_computes_large_products(engine):
    """OpenMP's threads stay in the parent; torch waited for them without end."""
    packed, fast = attached(hidden_size=256, intermediate_size=1024)
    rows = make_rows((40, 40, 40, 40))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = logits_of(packed, rows)  # starts the threads
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_logits_and_calls, args=(fast, rows, queue))
        child.start()
        child.join(20)
        child.kill()
        assert child.exitcode == 0
        torch.testing.assert_close(torch.tensor(queue.get()), expected, rtol=0, atol=CLOSE)
    finally:
        torch.set_num_threads(threads)


def test_a_forked_process_uses_the_packed_layers(engine):
    packed, fast = attached()
    rows = make_rows()
    logits_of(fast, rows)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_logits_and_calls, args=(fast, rows, queue))
    child.start()
    found = queue.get()
    child.join()
    assert found == logits_of(packed, rows).tolist()
    assert not forward._forked


def test_states_of_another_type_are_computed_by_the_packed_layers(calls):
    packed, fast = attached("Electra")
    rows = make_rows()
    with torch.autocast("cpu", torch.bfloat16):  # its embeddings are projected to the hidden size
        assert torch.equal(logits_of(fast, rows), logits_of(packed, rows))
    assert calls == []


OTHERS = {
    "a decoder": (lambda: make_packed(is_decoder=True)[1], "it is a decoder"),
    "another activation": (lambda: make_packed(hidden_act="silu")[1], "its hidden activation is silu"),
    "not packed": (make_student, "is not packed"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_models_are_left_as_they_are(what, monkeypatch, caplog):
    make, words = OTHERS[what]
    model = make()
    with caplog.at_level(logging.INFO, "bitkd"):
        assert not attach(model)
    assert words in caplog.text
    assert "forward" not in vars(model.base_model)
    assert kernels_of(model) is None
    monkeypatch.setenv(build.MODE, "require")
    with pytest.raises(InputError, match=f"BITKD_ENGINE=require, but the engine does not run this model: .*{words}"):
        attach(model)


@pytest.mark.parametrize(
    "path", [*LAYOUTS[0].projections, "attention.output.dense", "intermediate.dense", "output.dense"]
)
def test_layers_of_different_shapes_are_left_to_the_packed_layers(path):
    _, model = make_packed()
    linear = model.bert.encoder.layer[1].get_submodule(path)
    assert find_obstacle(model) is None
    linear.out_features += 8
    assert find_obstacle(model) == "its layers differ in shape"


def test_inputs_in_full_precision_are_left_to_the_packed_layers():
    student = make_student()
    prepare(student, QuantSpec(weight_bits=1))
    pack_layers(student)
    assert "is not quantized to 8 bits per token" in find_obstacle(student)


def test_scales_of_columns_are_left_to_the_packed_layers_on_a_gpu():
    _, model = make_packed(spec="row x column")
    assert find_obstacle(model) is None
    assert find_obstacle(model, on_gpu=True) == "attention.self.query has scales of columns"


def test_the_engine_can_be_switched_off_and_required(engine, monkeypatch):
    _, packed = make_packed()
    monkeypatch.setenv(build.MODE, "off")
    assert not attach(packed)
    monkeypatch.setenv(build.MODE, "require")
    assert attach(packed)
    assert kernels_of(packed).startswith("queries, keys, values: ")
    detach(packed)
    assert "forward" not in vars(packed.bert)
    assert kernels_of(packed) is None
    detach(packed)


def test_without_an_engine_the_packed_layers_run(monkeypatch):
    monkeypatch.setattr(forward, "library", lambda: None)
    packed, fast = attached()
    assert torch.equal(logits_of(fast, make_rows()), logits_of(packed, make_rows()))
    assert kernels_of(fast) is None


def test_packed_folders_are_loaded_with_the_engine(tmp_path, calls, monkeypatch):
    student = make_student()
    save_packed(student, tmp_path)
    rows = make_rows()
    for load in (load_packed, AutoModelForSequenceClassification.from_pretrained):
        assert_alike(logits_of(load(tmp_path), rows), logits_of(pack_student(student), rows))
    assert len(calls) == 2
    monkeypatch.setenv(build.MODE, "off")
    assert torch.equal(logits_of(load_packed(tmp_path), rows), logits_of(pack_student(student), rows))
    assert len(calls) == 2


def test_the_signature_stays():
    _, fast = attached()
    names = list(inspect.signature(fast.bert.forward).parameters)
    assert names == list(inspect.signature(BertModel.forward).parameters)[1:]
