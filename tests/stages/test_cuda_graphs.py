"""Recorded training steps: exactly the results of steps whose kernels are started one by one."""

from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bitkd.errors import InputError
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.quant.spec import QuantSpec
from bitkd.stages import cuda_graphs
from bitkd.stages.cuda_graphs import RECORDED_AT, check_graphs, should_record
from bitkd.stages.finetune import FineTune
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from tests.stages.test_stages import classifier, with_heads

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

W1A8 = QuantSpec(weight_bits=1, activation_bits=8)
W2A8 = QuantSpec(weight_bits=2, activation_bits=8, attention_activations=True)
EACH = [
    (SingleStageDistillation, W1A8, False),
    (SingleStageDistillation, W2A8, False),
    (IntermediateDistillation, QuantSpec(weight_bits=2, activation_bits=8), True),
    (PredictionDistillation, W1A8, False),
    (FineTune, QuantSpec(), False),
]


def module_of(kind, quant, split, device="cuda"):
    teacher = classifier()
    student = prepare(with_heads(teacher), quant)
    if split:
        split_ternary_(student)
    module = (kind(student) if kind is FineTune else kind(student, teacher)).to(device)
    module.total_steps = 30
    module.train()
    if kind is not FineTune:
        teacher.to(device)
    if kind is PredictionDistillation:
        module.keep_logits(torch.randn(20, 3, generator=torch.Generator().manual_seed(2)))
    return module


def batches(count, device="cuda"):
    """Of two shapes in turn, the second shorter."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        rows, length = (8, 16) if number % 2 else (8, 8)
        lengths = torch.randint(4, length + 1, (rows, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        yield {
            "input_ids": (torch.randint(5, 60, (rows, length), generator=generator) * mask).to(device),
            "attention_mask": mask.to(device),
            "labels": torch.randint(0, 3, (rows,), generator=generator).to(device),
            "index": torch.randint(0, 20, (rows,), generator=generator).to(device),
        }


def train(module, recorded, steps=16, accumulate=1):
    """Losses of all batches, the weights afterwards, and the random state."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    found = []
    with module.recorded() if recorded else nullcontext():
        losses = module._graphs or module.losses
        for number, batch in enumerate(batches(steps)):
            with torch.autocast("cuda", torch.bfloat16):
                names, terms = losses(batch)
                total = terms.sum() / accumulate
            found.append(terms.detach())
            if number % accumulate == 0:  # where Lightning does it
                optimizer.zero_grad()
            total.backward()
            if number % accumulate == accumulate - 1:
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
        if recorded:
            assert len(losses._graphs) == 2
    assert list(module.loss_terms(batch)) == names
    return [*found, *(p.detach() for p in module.parameters())], torch.cuda.get_rng_state()


@needs_gpu
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("kind", "quant", "split"), EACH)
def test_recorded_steps_are_steps(kind, quant, split, accumulate):
    one_by_one, state = train(module_of(kind, quant, split), False, accumulate=accumulate)
    recorded, random = train(module_of(kind, quant, split), True, accumulate=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, recorded, strict=True))
    assert torch.equal(state, random)


class NoSynchronization(pl.Callback):
    """Waiting for the GPU fails once all shapes are recorded."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2 * RECORDED_AT:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_end(self, trainer, pl_module):
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer, pl_module, exception):
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("kind", "quant", "split"), EACH)
def test_a_fit_waits_for_no_gpu(kind, quant, split, recorded):
    module = module_of(kind, quant, split)
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=12,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=[NoSynchronization()],
    )
    rows = [{name: column.cpu().pin_memory() for name, column in batch.items()} for batch in batches(12)]
    with module.recorded() if recorded else nullcontext():
        trainer.fit(module, DataLoader(rows, batch_size=None))
    assert trainer.global_step == 12


class Unknown(nn.Module):
    """Code that is not bitkd's."""


def test_auto_records_on_one_gpu_what_bitkd_knows():
    module = module_of(SingleStageDistillation, W1A8, False, device="cpu")
    known = list(module.code())
    assert {type(part).__name__ for part in known} >= {"SingleStageDistillation", "QuantLinear", "function"}
    for setting, device, processes, code, expected in (
        ("auto", "cuda:0", 1, known, True),
        ("auto", "cuda:0", 1, [*known, Unknown()], False),
        ("true", "cuda:0", 1, [*known, Unknown()], True),
        ("false", "cuda:0", 1, known, False),
        ("auto", "cuda:0", 2, known, False),
        ("auto", "cpu", 1, known, False),
    ):
        assert should_record(setting, device, processes, code) is expected


def test_graphs_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"cuda_graphs=true, but .* not on cpu; use trainer.cuda_graphs=auto"):
        check_graphs("true", "cpu", 1)
    with pytest.raises(InputError, match=r"DDP .* 2 processes"):
        check_graphs("true", "cuda", 2)
    check_graphs("auto", "cpu", 2)


def test_rare_shapes_are_not_recorded(monkeypatch):
    module = module_of(SingleStageDistillation, W1A8, False, device="cpu")
    recorded = []
    monkeypatch.setattr(cuda_graphs.GraphedLosses, "_record", lambda self, batch: recorded.append(batch) or 1 / 0)
    with module.recorded():
        for batch in list(batches(2 * RECORDED_AT - 2, "cpu")):
            module._graphs(batch)
        with pytest.raises(ZeroDivisionError):
            module._graphs(batch)
    assert len(recorded) == 1
    assert module._graphs is None
