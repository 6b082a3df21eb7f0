"""Compiled training steps: few graphs, the same bytes twice, and nothing left behind."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForSequenceClassification, BertConfig

from bitkd.errors import InputError
from bitkd.models.encoder import encoder_layers
from bitkd.models.prepare import prepare
from bitkd.quant.spec import QuantSpec
from bitkd.stages import compiling
from bitkd.stages.compiling import PAYS_FROM_STEPS, check_compiler, compilation, should_compile
from bitkd.stages.single_stage import SingleStageDistillation


def distillation(device="cpu"):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, num_labels=2
    )
    teacher, student = (AutoModelForSequenceClassification.from_config(config) for _ in range(2))
    student = prepare(student, QuantSpec(weight_bits=1, activation_bits=8))
    module = SingleStageDistillation(student, teacher, total_steps=9).to(device).train()
    module.teacher.to(device).eval()
    return module


def steps(module, folder):
    """Three steps of other lengths, the second after a validation. Returns the gradients' sum and the graphs after each."""
    torch.manual_seed(1)
    graphs = []
    counters.clear()
    with compilation(folder) as callback:
        for rows, length in ((4, 4), (4, 8), (3, 5)):
            batch = {"input_ids": torch.randint(0, 30, (rows, length)), "attention_mask": torch.ones(rows, length)}
            batch = {name: column.long().to(module.device) for name, column in batch.items()}
            callback.on_train_batch_start(None, module, batch, 0)
            sum(module.loss_terms(batch).values()).backward()
            graphs.append(counters["stats"]["unique_graphs"])
            callback.on_validation_start(None, module)
            with torch.no_grad():
                module.eval().loss_terms(batch)
            module.student.train()
            callback.on_validation_end(None, module)
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None], graphs


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", "eager"),
        pytest.param(
            "cuda",
            "inductor",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_layers_share_graphs_of_any_length_and_steps_repeat(tmp_path, monkeypatch, device, backend):
    """One graph for all layers of the student and one for the teacher's: no other length compiles anything, even if the
    first batch has as many rows as tokens, nor does a validation."""
    monkeypatch.setattr(compiling, "BACKEND", backend)
    module = distillation(device)
    names = list(module.state_dict())
    gradients, graphs = steps(module, tmp_path)
    assert graphs == [2, 2, 2]
    assert not counters["graph_break"]
    again, _ = steps(distillation(device), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    assert list(module.state_dict()) == names
    for model in (module.student, module.teacher):
        assert not any("forward" in vars(layer) for layer in encoder_layers(model))
    copy.deepcopy(module.student)


@pytest.mark.parametrize("recorded", [True, False])
def test_auto_compiles_long_stages_on_cuda(recorded):
    cases = [
        ("auto", "cuda:0", 0),
        ("auto", "cuda:0", -1),
        ("auto", "cpu", 0),
        ("true", "cpu", -1),
        ("false", "cuda", 0),
    ]
    enough = PAYS_FROM_STEPS[recorded]
    decided = [should_compile(setting, device, enough + more, recorded) for setting, device, more in cases]
    assert decided == [True, False, False, True, False]


def test_without_a_compiler_true_is_refused(monkeypatch):
    monkeypatch.setattr(compiling, "compiler_problem", lambda device: "there is no compiler")
    check_compiler("auto", "cpu")
    with pytest.raises(InputError, match=r"trainer\.compile=true, but there is no compiler.*auto"):
        check_compiler("true", "cpu")
