"""What was prepared, trained or split is what is loaded again."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from bitkd.callbacks import WeightSplitting
from bitkd.models.artifact import load_student, save_student
from bitkd.models.attention import ATTENTION
from bitkd.models.encoder import read_spec
from bitkd.models.importance import Importance
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.size import measure
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.modules import QuantEmbedding, QuantLinear
from bitkd.quant.pairs import SplitEmbedding, SplitLinear
from bitkd.quant.spec import QuantSpec
from bitkd.quant.table import ACTIVATIONS, ActivationQuantizer

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
IDS = torch.randint(5, 60, (4, 9), generator=torch.Generator().manual_seed(0))
FAMILIES = [
    (BertForSequenceClassification, BertConfig),
    (BertModel, BertConfig),
    (RobertaForSequenceClassification, RobertaConfig),
    (RobertaModel, RobertaConfig),
    (ElectraForSequenceClassification, ElectraConfig),
    (ElectraModel, ElectraConfig),
]


def make(model: Any = BertForSequenceClassification, config: Any = BertConfig) -> Any:
    """A stock model, as a user of transformers makes it."""
    torch.manual_seed(0)
    made = model(config(**SHAPE)).eval()
    with torch.no_grad():  # the stock initialization is so small that outputs hardly differ
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def outputs(model: Any) -> Tensor:
    mask = torch.ones_like(IDS)
    mask[1:, 6:] = 0
    with torch.no_grad():
        return model(IDS, attention_mask=mask)[0]


def round_trip(model: Any, folder: Any) -> Any:
    save_student(model, folder)
    return load_student(folder)


class User(pl.LightningModule):
    """A user's own module around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids)[0]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(*callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )


def loader() -> DataLoader:
    return DataLoader(IDS, batch_size=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "config"), FAMILIES, ids=lambda value: value.__name__)
@pytest.mark.parametrize("bits", [1, 2])
def test_a_prepared_model_comes_back_as_it_was(tmp_path, family, config, bits):
    spec = QuantSpec(weight_bits=bits, activation_bits=8, attention_activations=True)
    model = prepare(make(family, config), spec)
    assert read_spec(model).quant == spec
    full = outputs(make(family, config))
    loaded = round_trip(model, tmp_path)
    assert type(loaded) is family
    assert torch.equal(outputs(loaded), outputs(model))
    assert not torch.allclose(outputs(loaded), full, atol=1e-3)
    assert measure(loaded) == measure(model)
    assert measure(loaded).precision == f"W{bits}A8"


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(),
        QuantSpec(weight_bits=1, embedding_bits=32),
        QuantSpec(weight_bits=1, embedding_bits=2, per_row=True),
        QuantSpec(weight_bits=1, activation_bits=8, pooler=True, ste_clip=2.5),
        QuantSpec(weight_bits=2, ste_clip=0.02, forward_clip=True),
        QuantSpec(activation_bits=8),
        QuantSpec(embedding_bits=1),
    ],
    ids=str,
)
def test_every_option_comes_back(tmp_path, spec):
    model = prepare(make(), spec)
    assert torch.equal(outputs(round_trip(model, tmp_path)), outputs(model))


def test_a_width_from_the_table_comes_back(tmp_path, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, 4, ActivationQuantizer("bitkd.quant.inputs:PerToken"))
    model = prepare(make(), QuantSpec(weight_bits=1, activation_bits=4))
    assert measure(model).precision == "W1A4"
    assert torch.equal(outputs(round_trip(model, tmp_path)), outputs(model))
    for other in (8, 32):
        assert not torch.allclose(
            outputs(model), outputs(prepare(make(), QuantSpec(weight_bits=1, activation_bits=other))), atol=1e-4
        )


@pytest.mark.parametrize("fit", [False, True], ids=["validate", "fit"])
@pytest.mark.parametrize(
    ("spec", "pairs"),
    [
        (QuantSpec(weight_bits=2, activation_bits=8), (12, 1)),
        (QuantSpec(weight_bits=2, activation_bits=8, pooler=True, per_row=True), (13, 1)),
        (QuantSpec(weight_bits=2, embedding_bits=32), (12, 0)),
        (QuantSpec(weight_bits=2, embedding_bits=1), (12, 0)),
        (QuantSpec(weight_bits=1, embedding_bits=2), (0, 1)),
        (QuantSpec(embedding_bits=2), (0, 1)),
    ],
    ids=str,
)
def test_a_model_split_by_the_callback_comes_back(tmp_path, spec, pairs, fit):
    module = User(prepare(make(), spec))
    if fit:
        trainer(WeightSplitting()).fit(module, loader())
    else:
        trainer(WeightSplitting()).validate(module, loader(), verbose=False)
    model = module.model.eval()
    recorded = read_spec(model)
    assert recorded.split
    assert 2 not in (recorded.quant.weight_bits, recorded.quant.resolved_embedding_bits)
    loaded = round_trip(model, tmp_path)
    types = [type(layer) for layer in loaded.modules()]
    assert (types.count(SplitLinear), types.count(SplitEmbedding)) == pairs
    assert torch.equal(outputs(loaded), outputs(model))
    assert measure(loaded) == measure(model)


def test_the_embedding_bits_of_a_split_model_are_what_they_became():
    became = []
    for bits in (None, 1, 2, 32):
        model = prepare(make(), QuantSpec(weight_bits=2, embedding_bits=bits))
        assert split_ternary_(nn.ModuleList([model, make()])) == (13 if bits in (None, 2) else 12)
        became.append((read_spec(model).quant.weight_bits, read_spec(model).quant.embedding_bits))
    assert became == [(1, None), (1, 1), (1, 1), (1, 32)]


def test_a_split_model_can_be_prepared_again(tmp_path):
    model = prepare(make(), QuantSpec(weight_bits=2, embedding_bits=32))
    split_ternary_(model)
    prepare(model, QuantSpec(weight_bits=1, activation_bits=8))
    assert read_spec(model).split
    assert isinstance(model.get_input_embeddings(), QuantEmbedding)
    assert torch.equal(outputs(round_trip(model, tmp_path)), outputs(model))


def test_a_half_width_student_is_prepared_trained_and_loaded(tmp_path):
    importance = Importance(torch.rand(2, 4), torch.rand(2, 64))
    student = build_student(make(), ShapeSpec(width=0.5), importance)
    module = User(prepare(student, QuantSpec(weight_bits=1, activation_bits=8)))
    trainer().fit(module, loader())
    loaded = round_trip(student.eval(), tmp_path / "one")
    assert torch.equal(outputs(loaded), outputs(student))
    save_student(loaded, tmp_path / "two")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_encoder_without_a_pooler_comes_back(tmp_path):
    model = prepare(make(RobertaForSequenceClassification, RobertaConfig), QuantSpec(weight_bits=1))
    loaded = round_trip(model.roberta, tmp_path)
    assert loaded.pooler is None
    assert torch.equal(outputs(loaded), outputs(model.roberta))


def test_a_loaded_model_computes_scores():
    assert prepare(make(), QuantSpec()).config._attn_implementation == ATTENTION
    assert isinstance(prepare(make(), QuantSpec(weight_bits=1)).bert.encoder.layer[0].output.dense, QuantLinear)
