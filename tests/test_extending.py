"""How to add a stage kind, a loss term, a bit width, a task, a pipeline: each is registered in one place, and nothing else
is patched. CONTRIBUTING.md and docs/extending.md refer to these tests.
"""

import json

import pytest
import torch
from torch import Tensor
from transformers import JinaEmbeddingsV3Config

from bitkd.cli import main
from bitkd.commands.inference import PREDICTORS
from bitkd.compare.load import load_run
from bitkd.config.load import load_config
from bitkd.data.task_kinds import KINDS_OF_TASKS
from bitkd.errors import InputError
from bitkd.models.answers import ANSWERS
from bitkd.models.artifact import load_student
from bitkd.models.heads import HEADS
from bitkd.models.probe import try_architecture
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.quant import layout, table
from bitkd.quant.layout import Layout
from bitkd.stages import kinds, spec, terms
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.kinds import Kind
from bitkd.stages.spec import Term


class LogitsAndScores(DistillationModule):
    """A KD stage of another sort: logits and attention scores, without hidden states."""

    kind = "logits_and_scores"


def cosine_term(module: DistillationModule, student, teacher, batch) -> Tensor:
    """1 - cosine of the last hidden states at the first token."""
    pair = (outputs.hidden_states[-1][:, 0] for outputs in (student, teacher))
    return 1 - torch.nn.functional.cosine_similarity(*pair).mean()


@pytest.fixture
def extended(monkeypatch):
    """One row in each table."""
    row = Kind("logits_and_scores", f"{__name__}:LogitsAndScores", terms=("logits", "attention"), trains=True)
    monkeypatch.setitem(kinds.KINDS, row.name, row)
    monkeypatch.setitem(spec.TERMS, "cosine", Term(f"{__name__}:cosine_term", reads_layers=True))
    monkeypatch.setitem(table.ACTIVATIONS, 4, table.ACTIVATIONS[8])


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline of one's own is a YAML file of nodes."""
    file = tmp_path / "toy.yaml"
    quant = "{weight_bits: 1, activation_bits: 4, attention_activations: true}"
    file.write_text(
        f"""
pipeline: {{name: toy}}
budget: {{shares: {{toy: 0.5, toy_binary: 0.5}}}}
stages:
  teacher: {{kind: finetune, title: Teacher}}
  init: {{kind: init, student: teacher}}
  toy: {{kind: logits_and_scores, student: init, teacher: teacher, loss: {{extra: {{cosine: 0.5}}}}}}
  toy_binary: {{kind: logits_and_scores, student: toy, teacher: teacher, quant: {quant}}}
"""
    )
    return str(file)


def test_a_kind_a_term_and_a_width_go_from_plan_to_comparison(extended, pipeline, settings, tmp_path, capsys):
    overrides = settings(tmp_path, pipeline, "train.max_steps=2")
    assert [stage.kind.name for stage in make_plan(load_config(overrides)).stages][2:] == ["logits_and_scores"] * 2
    assert main(["run", *overrides, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    assert [row["precision"] for row in rows] == ["W32A32"] * 3 + ["W1A4"]
    folder = tmp_path / "rte" / "toy"
    log = next((folder / "logs" / "toy").rglob("metrics.csv")).read_text().splitlines()[0]
    assert {"train/logits", "train/attention", "train/cosine"} <= set(log.split(","))
    assert "train/hidden" not in log
    student = load_student(folder / "toy_binary")
    codes, _ = student.bert.encoder.layer[0].intermediate.dense.input_quantizer.codes(torch.randn(3, 32))
    assert codes.abs().max() == 7
    report = tmp_path / "report"
    assert main(["compare", str(folder), "--no-latency", "--out", str(report)]) == 0
    assert "W1A4" in (report / "report.md").read_text()
    assert main(["plan", *overrides, "--json"]) == 0
    assert {
        stage["state"]
        for stage in json.loads(capsys.readouterr().out.partition("report:")[2].partition("\n")[2])["stages"]
    } == {"done"}


def test_a_term_is_part_of_the_fingerprint_only_if_it_counts(extended, pipeline, settings, tmp_path):
    def keys(*more):
        return [stage.key for stage in make_plan(load_config(settings(tmp_path, pipeline, *more))).stages]

    changed = keys("stages.toy.loss.extra.cosine=0.25")
    assert [old == new for old, new in zip(keys(), changed)] == [True, True, False, False]
    assert keys("stages.toy_binary.loss.hidden=0.3") == keys()  # a term that its kind does not read
    assert keys("stages.toy_binary.loss.extra.cosine=0") == keys()


def test_a_budget_and_its_flops_know_the_new_kind(extended, pipeline, settings, tmp_path):
    plan = make_plan(load_config(settings(tmp_path, pipeline, "budget.flops=1e9", "train.max_steps=null")))
    steps = {stage.name: stage.total_steps for stage in plan.stages}
    assert steps["toy"] > 0
    assert steps["toy_binary"] > 0


def vector_term(module, student, teacher, batch):
    return student.logits[:, 0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nowhere:cosine_term", "loss term cosine names nowhere:cosine_term"),
        (f"{__name__}:vector_term", r"loss term cosine gives shape \(1,\); it must give a scalar"),
    ],
)
def test_a_wrong_term_is_named(extended, pipeline, settings, tmp_path, console, monkeypatch, function, message):
    monkeypatch.setitem(spec.TERMS, "cosine", Term(function))
    with pytest.raises((InputError, StageFailedError), match=message):
        run(load_config(settings(tmp_path, pipeline, "train.max_steps=1")), console)
    assert ("nowhere" in function) == (not console.lines)  # what cannot be imported is found before any stage


def test_a_family_of_encoders_is_a_row(monkeypatch):
    config = JinaEmbeddingsV3Config(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, pad_token_id=1
    )
    with pytest.raises(InputError, match="does not keep its layers as BERT"):
        try_architecture(config)
    query, key, value, output = (f"self_attn.{name}_proj" for name in "qkvo")
    row = Layout("JinaEmbeddingsV3", "layers", "self_attn", query, key, value, output, "mlp.fc1", "mlp.fc2")
    monkeypatch.setattr(layout, "LAYOUTS", [*layout.LAYOUTS, row])
    assert try_architecture(config).narrowing is None


def test_without_the_rows_each_is_refused_by_name(pipeline, settings, tmp_path, capsys):
    assert main(["plan", *settings(tmp_path, pipeline)]) == 2
    assert "cosine is no loss term" in capsys.readouterr().err


def test_a_task_is_a_yaml_file(settings, tiny_task, console, tmp_path):
    (tmp_path / "task.yaml").write_text(
        """
task:
  name: own
  text: [sentence1, sentence2]
  labels: [not_entailment, entailment]
  metric: f1
  metrics: [f1, accuracy]
  files: {folder: RTE, dev: {dev: dev.tsv}}
"""
    )
    overrides = [text for text in settings(tmp_path) if not text.startswith("task=")]
    plan = run(load_config([*overrides, f"task={tmp_path / 'task.yaml'}"]), console)
    assert load_run(plan.folder.folder).metric == "f1"


def test_every_kind_of_task_has_a_row_in_each_table():
    for table_of in (ANSWERS, HEADS, PREDICTORS, terms._LOGITS):
        assert table_of.keys() == KINDS_OF_TASKS.keys()
