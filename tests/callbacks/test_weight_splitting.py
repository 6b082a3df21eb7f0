import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from bitkd.callbacks import WeightSplitting
from bitkd.errors import InputError
from bitkd.models.prepare import prepare
from bitkd.quant.modules import QuantLinear
from bitkd.quant.pairs import SplitEmbedding, SplitLinear
from bitkd.quant.spec import QuantSpec

IDS = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(0))


def bert(spec: QuantSpec) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
        max_position_embeddings=12,
    )
    return prepare(BertForSequenceClassification(config), spec)


class Classifier(pl.LightningModule):
    """A user's own module: nothing of bitkd but the quantized layers."""

    def __init__(self, spec: QuantSpec | None = None) -> None:
        super().__init__()
        self.model: nn.Module | None = None
        self.spec = spec or QuantSpec(weight_bits=2, activation_bits=8)

    def configure_model(self) -> None:
        if self.model is None:
            self.model = bert(self.spec)

    def forward(self, input_ids: Tensor) -> Tensor:
        assert self.model is not None
        return self.model(input_ids).logits

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("score", self(batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, callback: pl.Callback, **settings: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "max_steps": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "callbacks": [callback],
    }
    return pl.Trainer(**options | settings)


def loader() -> DataLoader:
    return DataLoader(IDS, batch_size=2)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_fit_trains_the_split_parameters(tmp_path: Path) -> None:
    module, seen = Classifier(), []

    class Spy(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    fit = trainer(tmp_path, WeightSplitting())
    fit.callbacks.append(Spy())
    fit.fit(module, loader())
    layers = [m for m in module.modules() if isinstance(m, SplitLinear)]
    assert len(layers) == 6
    assert not any(isinstance(m, QuantLinear) and m.weight_bits == 2 for m in module.modules())
    optimized = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    for layer in layers:
        for half in (layer.first, layer.second):
            assert id(half.weight) in optimized
    query = "model.bert.encoder.layer.0.attention.self.query"
    for half in ("first", "second"):
        before, after = seen[0][f"{query}.{half}.weight"], module.get_parameter(f"{query}.{half}.weight")
        assert not torch.equal(before, after)


def test_split_module_scores_like_the_ternary_one(tmp_path: Path) -> None:
    ternary, split = Classifier(), Classifier()
    plain = trainer(tmp_path, pl.Callback()).validate(ternary, loader(), verbose=False)
    again = trainer(tmp_path, WeightSplitting()).validate(split, loader(), verbose=False)
    assert plain == again
    assert split.model is not None
    assert isinstance(split.model.get_input_embeddings(), SplitEmbedding)  # type: ignore[operator]


def test_second_setup_does_nothing(tmp_path: Path) -> None:
    module, callback = Classifier(), WeightSplitting()
    trainer(tmp_path, callback).validate(module, loader(), verbose=False)
    parameters = [id(p) for p in module.parameters()]
    trainer(tmp_path, callback).fit(module, loader())
    assert [id(p) for p in module.parameters()] == parameters


def test_resume_loads_into_split_layers(tmp_path: Path) -> None:
    module, file = Classifier(), tmp_path / "a.ckpt"
    first = trainer(tmp_path, WeightSplitting())
    first.fit(module, loader())
    first.save_checkpoint(file)
    again = Classifier()
    trainer(tmp_path, WeightSplitting(), max_steps=1).fit(again, loader(), ckpt_path=file, weights_only=True)
    for (name, a), (_, b) in zip(module.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_setup_leaves_modes_and_random_state_alone(tmp_path: Path) -> None:
    module = Classifier()
    module.configure_model()
    assert module.model is not None
    module.model.train()
    module.model.bert.embeddings.eval()  # type: ignore[union-attr, operator]
    state = torch.get_rng_state()
    WeightSplitting().setup(trainer(tmp_path, pl.Callback()), module, "fit")
    assert torch.equal(torch.get_rng_state(), state)
    embeddings = [m for m in module.modules() if isinstance(m, SplitEmbedding)]
    assert not embeddings[0].first.training
    linear = next(m for m in module.modules() if isinstance(m, SplitLinear))
    assert linear.training
    assert linear.first.training
    assert linear.activation_bits == 8


class Drifting(Classifier):
    """A module whose output depends on how often it ran, so that no split could equal the ternary one."""

    calls = 0

    def forward(self, input_ids: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(input_ids) + self.calls


@pytest.mark.parametrize("example", [{"input_ids": IDS}, (IDS,), IDS])
def test_deviation_is_reported(tmp_path: Path, example: Any) -> None:
    with pytest.raises(RuntimeError, match=r"output 0 of the split model deviates by 1 from the ternary one"):
        WeightSplitting(example).setup(trainer(tmp_path, pl.Callback()), Drifting(), "fit")
    module = Drifting()
    module.example_input_array = example
    with pytest.raises(RuntimeError, match=r"deviates by 1 from the ternary one \(tolerance 1e-05\)"):
        WeightSplitting().setup(trainer(tmp_path, pl.Callback()), module, "fit")
    WeightSplitting(example, tolerance=1.1).setup(trainer(tmp_path, pl.Callback()), Drifting(), "fit")


def test_wrong_halves_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitkd.quant.splitting.split_ternary", lambda w, per_row=False: (w / 2, w / 2))
    with pytest.raises(RuntimeError, match=r"layer model\.bert\.\S+ deviates by \S+ from the ternary one"):
        WeightSplitting().setup(trainer(tmp_path, pl.Callback()), Classifier(), "fit")


def test_any_model_with_ternary_layers(tmp_path: Path) -> None:
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = QuantLinear(4, 4, weight_bits=2)

    module = Plain()
    WeightSplitting().setup(trainer(tmp_path, pl.Callback()), module, "validate")
    assert isinstance(module.layer, SplitLinear)


@pytest.mark.parametrize("bits", [1, 32])
def test_nothing_ternary(tmp_path: Path, bits: int) -> None:
    with pytest.raises(InputError, match=r"Classifier has neither ternary nor split layers; quantize it first"):
        trainer(tmp_path, WeightSplitting()).fit(Classifier(QuantSpec(weight_bits=bits)), loader())
