"""A student of sizes that no byte, register or tile divides: trained, and the same in every form that it is exported in."""

import copy

import pytest
import torch
from transformers import BertConfig

from bitkd.engine.attach import attach
from bitkd.export.unpacked import make_stock
from bitkd.models.packed import pack_student
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.models.unpacked import unpack_student
from bitkd.quant.spec import QuantSpec
from bitkd.quant.swap import unquantized_activations
from bitkd.stages.single_stage import SingleStageDistillation
from tests.engine.conftest import engine, make_rows  # noqa: F401 - the compiled engine, as a fixture
from tests.models.conftest import SHAPE, batch, classifier

SIZES = ShapeSpec(layers=[1, 3], init="random", hidden_size=78, heads=6, intermediate_size=50, dropout=0.0)
ROWS = make_rows([1, 5, 9, 17, 29, 12] * 10)


ROW_COLUMN = {"per_row": True, "column_scales": True}
FORMS = {
    "W1A8": {"weight_bits": 1},
    "W2A8 per row": {"weight_bits": 2, "per_row": True},
    "split": {"weight_bits": 2},
    "row x column, split": {"weight_bits": 2, **ROW_COLUMN},
    "learned row x column": {"weight_bits": 1, "learned_scales": True, **ROW_COLUMN},
    "four levels": {"weight_bits": 2, "levels": 4, "embedding_bits": 4},
}


@pytest.fixture(scope="module", params=FORMS)
def student(request):
    """Six heads of 13 features, which learn from six of 8 in two steps."""
    teacher = classifier(BertConfig(**SHAPE | {"hidden_size": 48, "num_attention_heads": 6}))
    made = build_student(teacher, SIZES)
    with torch.no_grad():  # the stock initialization is so small that nothing differs
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    prepare(made, QuantSpec(activation_bits=8, attention_activations=True, **FORMS[request.param]))
    if "split" in request.param:
        split_ternary_(made)
    module = SingleStageDistillation(made.train(), teacher)
    assert module.map.heads == [list(range(6))] * 2
    assert not module.recorders
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    before = copy.deepcopy(made.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        terms = module.loss_terms(batch())
        assert terms.keys() == {"logits", "hidden", "attention"}
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert sum(not torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items()) > 20
    return made.eval()


@torch.no_grad()
def logits(model):
    return model(**ROWS).logits


def assert_alike(found, expected):
    """Equal up to rounding, but for 8-bit codes that are rounded otherwise now and then."""
    assert (found - expected).abs().amax(1).median() <= 2e-6
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_packed_and_by_the_engine(student, engine):  # noqa: F811
    packed = pack_student(student)
    assert torch.equal(logits(unpack_student(packed)), logits(packed))
    fast = copy.deepcopy(packed)
    assert attach(fast)
    assert_alike(logits(fast), logits(packed))


def test_in_onnx(student, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from bitkd.export.onnx import export_onnx
    from bitkd.models.onnx import load_onnx

    packed = pack_student(student)
    export_onnx(packed, None, tmp_path)
    assert_alike(logits(load_onnx(tmp_path)), logits(packed))


def test_as_a_stock_model(student):
    with unquantized_activations(student):
        expected = logits(student)
    torch.testing.assert_close(logits(make_stock(student)), expected, rtol=1e-5, atol=1e-5)
