"""Packed layers by torch: the simulation's bits, with as little memory as on disk."""

import copy
import pickle

import pytest
import torch

from bitkd.quant import packed as packed_module
from bitkd.quant.packed import PackedEmbedding
from bitkd.quant.packing import PACKINGS, pack_codes, unpack_codes
from tests.engine.conftest import ODD, SPECS, make_packed, make_rows


@pytest.fixture(params=[False, True], ids=["FP32", "int8"])
def integers(request, monkeypatch):
    """Both ways to multiply; torch has a loop for int8 where the CPU has no instructions."""
    monkeypatch.setattr(packed_module, "multiplies_integers", lambda: request.param)
    return request.param


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("sizes", [{}, ODD], ids=["even", "odd"])
def test_a_packed_model_gives_the_simulations_logits(spec, sizes, integers):
    student, packed = make_packed(spec=spec, **sizes)
    rows = make_rows()
    for _ in range(2):  # the second time with what was kept
        with torch.inference_mode():
            assert torch.equal(packed(**rows).logits, student(**rows).logits)


def test_autocast_changes_nothing_in_a_packed_product():
    _, packed = make_packed(spec="split, unequal")
    layer = packed.bert.encoder.layer[0].output.dense
    x = torch.randn(5, layer.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert torch.equal(low, layer(x))


def test_kept_codes_follow_the_weights(integers):
    _, packed = make_packed()
    _, other = make_packed(spec="W1 per row")
    layer, source = packed.bert.encoder.layer[0].output.dense, other.bert.encoder.layer[1].output.dense
    x = torch.randn(5, layer.in_features)
    before = layer(x)
    layer.load_state_dict(source.state_dict() | {"scale": layer.scale})
    assert not torch.equal(layer(x), before)
    layer.load_state_dict(packed.bert.encoder.layer[1].output.dense.state_dict())
    assert torch.equal(layer(x), packed.bert.encoder.layer[1].output.dense(x))


@pytest.mark.parametrize("spec", ["W1", "split, unequal"])
def test_kept_codes_follow_buffers_that_change(spec, integers):
    _, packed = make_packed(spec=spec)
    layer = packed.bert.encoder.layer[0].output.dense
    x = torch.randn(5, layer.in_features)
    before = layer(x)
    prefix = "second_" if layer.split else ""
    scale, codes = getattr(layer, f"{prefix}scale"), getattr(layer, f"{prefix}packed")
    scale.mul_(2)
    in_place = layer(x)
    assert not torch.equal(in_place, before)
    setattr(layer, f"{prefix}scale", scale / 2)
    assert torch.equal(layer(x), before)
    setattr(layer, f"{prefix}packed", codes.bitwise_not())
    assert not torch.equal(layer(x), before)
    getattr(layer, f"{prefix}packed").bitwise_not_()
    assert torch.equal(layer(x), before)


def test_kept_codes_are_neither_saved_nor_copied(integers):
    _, packed = make_packed()
    rows = make_rows()
    size = len(pickle.dumps(packed))
    logits = packed(**rows).logits
    assert len(pickle.dumps(packed)) == size
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(twin(**rows).logits, logits)


def test_gradients_are_refused():
    _, packed = make_packed()
    assert not any(parameter.requires_grad for parameter in packed.parameters())
    packed.bert.embeddings.LayerNorm.requires_grad_(True)
    with pytest.raises(RuntimeError, match="for inference only"):
        packed(**make_rows())
    with torch.no_grad():
        packed(**make_rows())


def test_a_head_on_packed_layers_can_be_trained():
    _, packed = make_packed()
    packed.classifier.requires_grad_(True)
    packed.train()
    packed(**make_rows(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert packed.classifier.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("columns", [1, 7, 40])
def test_unpacked_codes_are_those_that_were_packed(packing, columns):
    digits = torch.randint(packing.digits, (9, columns), generator=torch.Generator().manual_seed(0))
    codes = packing.lowest + packing.step * digits
    for dtype in (torch.int8, torch.float32):
        unpacked = unpack_codes(pack_codes(codes, packing), packing, columns, dtype)
        assert unpacked.dtype == dtype
        assert torch.equal(unpacked, codes.to(dtype))


def test_only_the_rows_looked_up_are_unpacked(monkeypatch):
    _, packed = make_packed(spec="split")
    table = packed.get_input_embeddings()
    assert isinstance(table, PackedEmbedding)
    unpacked = []

    def note(packed, *rest):
        unpacked.append(len(packed))
        return unpack_codes(packed, *rest)

    monkeypatch.setattr(packed_module, "unpack_codes", note)
    table(torch.tensor([[3, 4, 3]]))
    assert unpacked == [3, 3]
