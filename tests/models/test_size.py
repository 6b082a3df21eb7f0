import pytest
import torch
from transformers import AutoModel, BertConfig

from bitkd.export.sizes import file_parts
from bitkd.models.attention import ATTENTION
from bitkd.models.encoder import encoder_layers
from bitkd.models.packed import int8_parts, load_packed, save_packed
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.size import measure
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.packing import TRITS, TWO_BITS
from bitkd.quant.spec import QuantSpec
from bitkd.quant.table import WEIGHTS, WeightQuantizer
from tests.models.conftest import classifier, importance_of


def test_sizes_by_both_conventions_are_the_published_ones():
    with torch.device("meta"):
        model = AutoModel.from_config(BertConfig(num_hidden_layers=12), attn_implementation=ATTENTION)
    assert measure(model).paper_mib == pytest.approx(417.6, abs=0.2)
    size = measure(prepare(model, QuantSpec(weight_bits=1)))
    assert size.paper_mib == pytest.approx(13.05, abs=0.05)
    assert size.file_mib == pytest.approx(15.1, abs=0.3)
    prepare(model, QuantSpec(weight_bits=1, embedding_bits=32))
    assert measure(model).paper_mib == pytest.approx(13.05 + 30522 * 768 * 31 / 8 / 2**20, abs=0.05)


def test_a_split_half_width_student_has_the_encoder_bits_of_a_full_width_one():
    half = build_student(classifier(), ShapeSpec(width=0.5), importance_of(classifier()))
    prepare(half, QuantSpec(weight_bits=2))
    split_ternary_(half)
    full = build_student(classifier(), ShapeSpec())
    prepare(full, QuantSpec(weight_bits=1))
    assert measure(half).encoder_bits == measure(full).encoder_bits
    assert measure(half).parameters > measure(full).parameters


def test_a_full_precision_encoder_is_kept_in_16_bits_when_only_embeddings_are_quantized():
    model = prepare(classifier(), QuantSpec(embedding_bits=1))
    encoder = sum(
        m.weight.numel() for layer in encoder_layers(model) for m in layer.modules() if hasattr(m, "in_features")
    )
    assert measure(model).encoder_bits == 32 * encoder
    assert 16 * encoder < measure(model).file_mib * 2**23 < 32 * encoder
    assert measure(classifier()).file_mib == measure(classifier()).paper_mib


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("ternary", [TWO_BITS, TRITS], ids=lambda packing: packing.name)
@pytest.mark.parametrize("int8", [int8_parts, lambda model: []], ids=["8 bits", "16 bits"])
def test_the_counted_size_is_that_of_the_files_tensors(bits, per_row, ternary, int8, tmp_path):
    model = prepare(classifier(), QuantSpec(weight_bits=bits, embedding_bits=3 - bits, per_row=per_row))
    for split in (False, True):
        if split and bits == 2:
            split_ternary_(model)
        names = int8(model)
        save_packed(model, tmp_path, ternary=ternary, int8=names)
        parts = {part.name: part.size for part in file_parts(tmp_path / "model.safetensors", model)}
        size = measure(model, ternary, names)
        assert size.file_mib * 2**20 == sum(parts.values()) - parts["header"]
        assert measure(load_packed(tmp_path)) == size


@pytest.mark.parametrize(
    "settings",
    [
        {"column_scales": True},
        {"column_scales": True, "learned_scales": True},
        {"weight_bits": 2, "column_scales": True},
        {"weight_bits": 2, "levels": 4},
        {"embedding_bits": 4},
        {"embedding_bits": 8},
    ],
    ids=str,
)
def test_scales_of_columns_levels_and_wider_words_are_counted_as_they_are_written(settings, tmp_path):
    plain = measure(classifier())
    model = prepare(classifier(), QuantSpec(**{"weight_bits": 1, "per_row": True} | settings))
    for split in (False, settings.get("weight_bits") == 2 and "levels" not in settings):
        if split:
            split_ternary_(model)
        save_packed(model, tmp_path)
        parts = {part.name: part.size for part in file_parts(tmp_path / "model.safetensors", model)}
        size = measure(model)
        assert size.file_mib * 2**20 == sum(parts.values()) - parts["header"]
        assert measure(load_packed(tmp_path)) == size
        assert split or size.parameters == plain.parameters


def test_steps_and_shifts_of_activations_are_a_part_of_the_file(tmp_path):
    model = prepare(classifier(), QuantSpec(weight_bits=1, activation_bits=2, attention_activations=True))
    steps = [parameter for module in quantizers_of(model) for parameter in module.parameters()]
    for module in quantizers_of(model):
        module.start(torch.tensor(1.0))
    save_packed(model, tmp_path)
    parts = {part.name: part.size for part in file_parts(tmp_path / "model.safetensors", model)}
    assert parts["steps and shifts of activations"] == 4 * sum(parameter.numel() for parameter in steps)
    assert measure(model).file_mib * 2**20 == sum(parts.values()) - parts["header"]


def quantizers_of(model):
    return [module for module in model.modules() if isinstance(module, InputQuantizer)]


def test_a_width_from_the_table_is_counted_at_its_bits(monkeypatch):
    monkeypatch.setitem(WEIGHTS, 4, WeightQuantizer("4-bit", "linear", "bitkd.quant.functional:binary_codes"))
    one, four = (measure(prepare(classifier(), QuantSpec(weight_bits=bits))) for bits in (1, 4))
    assert four.encoder_bits == 4 * one.encoder_bits
    assert four.paper_mib == 4 * one.paper_mib
    assert four.precision == "W4A32"
    assert one.file_mib < four.file_mib < measure(classifier()).file_mib
