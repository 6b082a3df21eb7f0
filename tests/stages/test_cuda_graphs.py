"""Recorded training steps: the results of steps whose kernels are started one by one, to the last bit where kernels repeat."""

import re
from contextlib import nullcontext
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, DebertaV2Config

from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.pipeline import execute
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.quant.modules import QuantLinear
from bitkd.quant.spec import QuantSpec
from bitkd.stages import cuda_graphs
from bitkd.stages.base import StudentModule
from bitkd.stages.cuda_graphs import RECORDED_AT, check_graphs, find_error, should_record
from bitkd.stages.finetune import FineTune
from bitkd.stages.general import GeneralDistillation
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import LossSpec
from tests.conftest import read_weights
from tests.stages.test_stages import classifier, with_heads

NAN = float("nan")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

W1A8 = QuantSpec(weight_bits=1, activation_bits=8)
W2A8 = QuantSpec(weight_bits=2, activation_bits=8, attention_activations=True)
SPLIT, NARROW, MIXED = "split", "narrow", "mixed"
EACH = [
    (SingleStageDistillation, W1A8, None),
    (SingleStageDistillation, W2A8, None),
    (IntermediateDistillation, QuantSpec(weight_bits=2, activation_bits=8), SPLIT),
    (PredictionDistillation, W1A8, None),
    (FineTune, QuantSpec(), None),
    (GeneralDistillation, QuantSpec(), NARROW),
    (SingleStageDistillation, W2A8, MIXED),
]
INTERVENTION = LossSpec(
    intervention="gradual", intervention_share=0.5, extra={"attention_map": 1.0, "attention_output": 1.0}
)


def module_of(kind, quant, change, device="cuda"):
    teacher = classifier()
    student = prepare(classifier(hidden_size=16) if change == NARROW else with_heads(teacher), quant)
    if change == SPLIT:
        split_ternary_(student)
    loss = INTERVENTION if change == MIXED else None
    module = (kind(student) if kind is FineTune else kind(student, teacher, loss)).to(device)
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
    device = module.device.type
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    found = []
    with module.recorded(module.device) if recorded else nullcontext():
        losses = module._graphs or module.losses
        for number, batch in enumerate(batches(steps, device)):
            if getattr(module, "intervention", None) is not None:
                module.intervention.set_step(number, steps)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                names, terms = losses(batch)
                total = terms.sum() / accumulate
            found.append(terms.detach())
            if number % accumulate == 0:  # where Lightning does it
                optimizer.zero_grad()
            total.backward()
            if number % accumulate == accumulate - 1:
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
    assert list(module.loss_terms(batch)) == names
    random = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    return [*found, *(p.detach() for p in module.parameters())], random, losses


def assert_equal(kind, quant, change, device, accumulate, graphs=2):
    one_by_one, state, _ = train(module_of(kind, quant, change, device), False, accumulate=accumulate)
    recorded, random, losses = train(module_of(kind, quant, change, device), True, accumulate=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, recorded, strict=True))
    assert torch.equal(state, random)
    assert len(losses._graphs) == graphs


@needs_gpu
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("kind", "quant", "change"), EACH)
def test_recorded_steps_are_steps(kind, quant, change, accumulate):
    assert_equal(kind, quant, change, "cuda", accumulate)


class Tape:
    """Stands for a CUDA graph on a CPU: it computes again at each replay, in the same memory. `error` is added to the terms;
    `drawn`: random numbers that it takes before."""

    error, drawn = 0.0, 0

    def __init__(self, losses, batch, pool):
        self.batch, self.losses, self.tape = batch, losses, None
        self.names, terms = losses(batch)
        self.terms, self.gradient = terms.detach() * NAN, torch.zeros_like(terms)
        self.anchor = torch.zeros((), requires_grad=True)
        self.forward = SimpleNamespace(replay=self.replay_forward)
        self.backward = SimpleNamespace(replay=lambda: self.tape.backward(self.gradient))

    def replay_forward(self):
        torch.rand(self.drawn)
        with torch.enable_grad():
            _, self.tape = self.losses(self.batch)
        self.terms.copy_(self.tape.detach() + self.error)


@pytest.fixture
def tapes(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_Graph", Tape)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("kind", "quant", "change"), [EACH[0], EACH[3], EACH[5], EACH[6]])
def test_recording_leaves_no_trace(kind, quant, change, accumulate, tapes):
    """Neither in random numbers nor in gradients that are being added up."""
    assert_equal(kind, quant, change, "cpu", accumulate)


@pytest.mark.parametrize(("fault", "size", "worst"), [("error", 10.0, "logits"), ("drawn", 1, "student")])
def test_graphs_that_give_other_numbers_are_not_used(fault, size, worst, tapes, monkeypatch, caplog):
    monkeypatch.setattr(Tape, fault, size)
    assert_equal(SingleStageDistillation, W1A8, None, "cpu", 2, graphs=0)
    assert caplog.text.count(f"gave other numbers than one by one: {worst}") == 1


def test_graphs_that_differ_by_rounding_are_used(tapes, monkeypatch):
    monkeypatch.setattr(Tape, "error", 1e-6)
    _, _, losses = train(module_of(SingleStageDistillation, W1A8, None, "cpu"), True)
    assert len(losses._graphs) == 2


def test_only_rounding_passes():
    """A weight's gradient, one that is zero in exact arithmetic, and one whose kernels do not repeat."""
    torch.manual_seed(0)
    right = {"weight": torch.randn(100, 10), "zero": torch.randn(10) * 1e-3, "loose": torch.randn(10)}

    def moved(**by):
        return {name: g + by.get(name, 0.0) * g.norm() * nn.functional.normalize(torch.randn_like(g), dim=None)
                for name, g in right.items()}  # fmt: skip

    again = moved(weight=1e-6, zero=1.0, loose=0.2)
    for found in (right, moved(weight=0.05, zero=3.0, loose=0.7)):
        assert find_error(right, again, found) is None
    dropped = right | {"weight": torch.zeros(100, 10)}
    for found, name in (
        (moved(weight=0.2), "weight"),
        (dropped, "weight"),
        (moved(loose=0.9), "loose"),
        (moved(zero=100.0), "zero"),
        (right | {"weight": right["weight"] * NAN}, "weight"),
        (right | {"zero": right["zero"] * NAN}, "zero"),
    ):
        assert re.match(rf"{name} \(norm .*\) is off by .*; 1 of 3", find_error(right, again, found))
    overflow = right | {"weight": right["weight"] / 0.0}
    assert find_error(overflow, overflow, overflow) is None
    assert "weight" in find_error(overflow, overflow, right)


class NoSynchronization(pl.Callback):
    """Waiting for the GPU fails from when all shapes are recorded until the last step, which writes a row of the log."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        inside = 2 * RECORDED_AT <= batch_idx < trainer.max_steps - 1
        torch.cuda.set_sync_debug_mode("error" if inside else "default")

    def on_exception(self, trainer, pl_module, exception):
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("kind", "quant", "change"), EACH)
def test_a_fit_waits_for_no_gpu(kind, quant, change, recorded):
    module = module_of(kind, quant, change)
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
    with module.recorded("cuda") if recorded else nullcontext():
        trainer.fit(module, DataLoader(rows, batch_size=None))
    assert trainer.global_step == 12


class Unknown(nn.Module):
    """Code that is not bitkd's."""


def test_auto_records_on_one_gpu_what_bitkd_knows():
    module = module_of(SingleStageDistillation, W1A8, None, device="cpu")
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


def test_auto_leaves_out_encoders_and_quantizers_that_may_read_values_on_the_host():
    module = module_of(SingleStageDistillation, W1A8, None, device="cpu")
    deberta = DebertaV2Config(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    assert not should_record("auto", "cuda", 1, AutoModelForSequenceClassification.from_config(deberta).modules())
    assert should_record("auto", "cuda", 1, module.code())
    layer = next(layer for layer in module.modules() if isinstance(layer, QuantLinear))
    layer.weight_codes = lambda weight, scale: weight.sign()
    assert not should_record("auto", "cuda", 1, module.code())


@pytest.mark.parametrize("steps", [1000, 3000])
def test_recording_does_not_decide_what_auto_compiles(monkeypatch, steps):
    monkeypatch.setattr(execute, "compiler_problem", lambda device: None)
    module = module_of(SingleStageDistillation, W1A8, None, device="cpu")
    group = SimpleNamespace(device="cuda", world_size=1, any=lambda value: value)
    compiled = set()
    for setting in ("auto", "true", "false"):
        trainer = SimpleNamespace(compile="auto", cuda_graphs=setting)
        context = SimpleNamespace(
            config=SimpleNamespace(trainer=trainer),
            group=group,
            stage=SimpleNamespace(name="binary", total_steps=steps),
            say=print,
        )
        compiled.add(execute._compiles(context, module))
    assert compiled == {steps == 3000}


def test_graphs_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"cuda_graphs=true, but .* not on cpu; use trainer.cuda_graphs=auto"):
        check_graphs("true", "cpu", 1)
    with pytest.raises(InputError, match=r"DDP .* 2 processes"):
        check_graphs("true", "cuda", 2)
    check_graphs("auto", "cpu", 2)


def test_rare_shapes_are_not_recorded(monkeypatch):
    module = module_of(SingleStageDistillation, W1A8, None, device="cpu")
    recorded = []
    monkeypatch.setattr(cuda_graphs.GraphedLosses, "_record", lambda self, batch: recorded.append(batch) or 1 / 0)
    with module.recorded(module.device):
        for batch in list(batches(2 * RECORDED_AT - 2, "cpu")):
            module._graphs(batch)
        with pytest.raises(ZeroDivisionError):
            module._graphs(batch)
    assert len(recorded) == 1
    assert module._graphs is None


@needs_gpu
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_runs_repeat_and_resume_to_the_last_bit(settings, console, tmp_path, monkeypatch, compiled):
    """With graphs and without, and killed in between."""
    gpu = ["trainer.accelerator=gpu", "trainer.precision=bf16-mixed", f"trainer.compile={compiled}"]
    gpu += ["train.max_steps=14", "train.batch_size=8", "checkpoint.every_steps=5"]

    def weights(folder, *more):
        run(load_config(settings(tmp_path / folder, "singlestage", *gpu, *more)), console)
        return read_weights(tmp_path / folder)

    recorded = weights("recorded")
    assert weights("one_by_one", "trainer.cuda_graphs=false") == recorded
    step = StudentModule.training_step

    def killed(self, batch, batch_idx):
        if self.global_step == 12 and self.trainer.max_steps == 14:
            monkeypatch.setattr(StudentModule, "training_step", step)
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", killed)
    with pytest.raises(StageFailedError):
        weights("killed")
    assert weights("killed") == recorded
