import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from bitkd.distill.losses import attention_score_mse, hidden_mse, soft_cross_entropy
from bitkd.errors import InputError
from bitkd.models.attention import ATTENTION
from bitkd.models.encoder import encoder_layers
from bitkd.models.importance import Importance
from bitkd.models.inputs import model_inputs
from bitkd.models.prepare import prepare
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.spec import QuantSpec
from bitkd.stages.base import NonFiniteLossError, StudentModule
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.finetune import FineTune
from bitkd.stages.general import GeneralDistillation
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.kinds import KINDS
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import LossSpec, OptimSpec

STAGES = [GeneralDistillation, IntermediateDistillation, PredictionDistillation, SingleStageDistillation]


def classifier(labels=3, layers=4, seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64} | changes
    config = BertConfig(**shape, num_hidden_layers=layers, num_labels=labels, initializer_range=0.2)
    if labels == 1:
        config.problem_type = "regression"
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION).eval()


def batch(length=7, padded_to=None):
    torch.manual_seed(3)
    ids, mask = torch.randint(5, 60, (4, length)), torch.ones(4, length, dtype=torch.long)
    mask[2:, length - 2 :] = 0
    extra = (padded_to or length) - length
    pad = torch.nn.functional.pad
    return {
        "input_ids": pad(ids * mask, (0, extra)),
        "attention_mask": pad(mask, (0, extra)),
        "labels": torch.tensor([0, 1, 2, 1]),
        "index": torch.arange(4),
    }


def half(teacher, **shape):
    importance = Importance(torch.rand(4, 4), torch.rand(4, 64))
    return build_student(teacher, ShapeSpec(width=0.5, dropout=0.0, **shape), importance)


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("quant", [QuantSpec(), QuantSpec(weight_bits=1, activation_bits=8)])
def test_padding_never_changes_a_loss(kind, quant):
    teacher = classifier()
    module = kind(prepare(half(teacher, layers=[0, 3]), quant), teacher)
    near, far = module.loss_terms(batch()), module.loss_terms(batch(padded_to=16))
    assert tuple(near) == KINDS[kind.kind].terms
    for term in near:
        torch.testing.assert_close(near[term], far[term], rtol=1e-5, atol=1e-6)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    teacher = classifier()
    module = SingleStageDistillation(build_student(teacher, ShapeSpec(dropout=0.0)), teacher)
    terms = module.loss_terms(batch())
    probabilities = teacher(**model_inputs(batch(), teacher)).logits.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1).mean()
    torch.testing.assert_close(terms["logits"], entropy)
    assert terms["hidden"] == terms["attention"] == 0


def test_the_objective_is_the_sum_over_layers_of_like_with_like():
    teacher = classifier()
    student = half(teacher, layers=[1, 3])
    module = SingleStageDistillation(student, teacher, LossSpec(logits=2.0, temperature=3.0))
    rows = batch()
    mask = rows["attention_mask"].bool()
    output, target = (
        model(**model_inputs(rows, model), output_hidden_states=True, output_attentions=True)
        for model in (student, teacher)
    )
    heads = student.config.bitkd["kept_heads"]
    expected = {
        "logits": 2 * soft_cross_entropy(output.logits, target.logits, 3.0),
        "hidden": sum(
            hidden_mse(output.hidden_states[j], target.hidden_states[t], mask) for j, t in enumerate([0, 2, 4])
        ),
        "attention": sum(
            attention_score_mse(output.attentions[i], target.attentions[t][:, heads[i]], mask)
            for i, t in enumerate([1, 3])
        ),
    }
    torch.testing.assert_close(module.loss_terms(rows), expected)


@pytest.mark.parametrize("kind", STAGES)
def test_every_parameter_that_is_trained_gets_a_gradient(kind):
    teacher = classifier()
    module = kind(half(teacher), teacher)
    sum(module.loss_terms(batch()).values()).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_narrower_hidden_size_learns_a_projection():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[0, 1], hidden_size=16, init="random"))
    module = IntermediateDistillation(student, teacher)
    module.loss_terms(batch())["hidden"].backward()
    assert module.project.weight.shape == (32, 16)
    assert module.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("unmatched", ["relation", "group_mean"])
def test_heads_without_a_source_are_compared_otherwise(unmatched):
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[0, 1], width=0.5, init="random", dropout=0.0))
    prepare(student, QuantSpec(weight_bits=1, activation_bits=8))
    module = IntermediateDistillation(student, teacher, LossSpec(unmatched_heads=unmatched))
    near, far = (module.loss_terms(rows)["attention"] for rows in (batch(), batch(padded_to=16)))
    torch.testing.assert_close(near, far)
    far.backward()
    query = encoder_layers(student)[0].attention.self.query
    assert query.weight.grad.abs().sum() > 0


def test_regression_learns_the_teachers_output_or_the_label():
    teacher, student = classifier(labels=1), classifier(labels=1, seed=1)
    rows = batch() | {"labels": torch.tensor([0.5, 1.0, 2.0, 4.0])}
    outputs, targets = student(**model_inputs(rows, student)).logits, teacher(**model_inputs(rows, teacher)).logits
    terms = PredictionDistillation(student, teacher).loss_terms(rows)
    torch.testing.assert_close(terms["logits"], (outputs - targets).square().mean())
    terms = PredictionDistillation(student, teacher, LossSpec(regression_target="label")).loss_terms(rows)
    torch.testing.assert_close(terms["logits"], (outputs[:, 0] - rows["labels"]).square().mean())


def test_a_fit_turns_dropout_on_in_the_student_and_leaves_the_teacher_alone():
    teacher = classifier()
    module = SingleStageDistillation(half(teacher).eval(), teacher)
    module.on_fit_start()
    assert all(part.training for part in module.student.modules())
    assert not any(part.training for part in teacher.modules())


def test_fine_tuning_learns_the_labels():
    model = classifier()
    loss = FineTune(model).loss_terms(batch())["label"]
    expected = model(**model_inputs(batch(), model), labels=batch()["labels"]).loss
    torch.testing.assert_close(loss, expected)


def test_the_teacher_stays_out_of_checkpoints_and_in_eval_mode():
    teacher = classifier()
    module = SingleStageDistillation(half(teacher), teacher).train()
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert set(module.state_dict()) == {f"student.{name}" for name in module.student.state_dict()}


def test_weight_decay_spares_biases_and_layer_norms():
    module = FineTune(classifier(), optim=OptimSpec(weight_decay=0.1), total_steps=10)
    decayed, plain = module.configure_optimizers()["optimizer"].param_groups
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert all(names[id(p)].endswith("weight") and "LayerNorm" not in names[id(p)] for p in decayed["params"])
    assert all(names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(module.parameters()))


def test_warm_up_and_decay_follow_the_whole_stage():
    module = FineTune(classifier(), optim=OptimSpec(lr=1.0, warmup_ratio=0.2), total_steps=10)
    settings = module.configure_optimizers()
    rates = []
    for _ in range(11):
        rates.append(settings["optimizer"].param_groups[0]["lr"])
        settings["optimizer"].step()
        settings["lr_scheduler"]["scheduler"].step()
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[10] == 0.0
    assert rates[6] == 0.5


def test_a_loss_that_is_not_finite_names_term_batch_and_rows():
    teacher = classifier()
    student = half(teacher)
    with torch.no_grad():
        student.classifier.bias[0] = torch.nan
    module = SingleStageDistillation(student, teacher)
    with pytest.raises(NonFiniteLossError, match=r"loss term logits is not finite at batch 5 .*rows \[0, 1, 2, 3\]"):
        module.training_step(batch(), 5)


def test_a_stage_without_a_term_is_refused():
    with pytest.raises(InputError, match="no loss term left"):
        IntermediateDistillation(half(classifier()), classifier(), LossSpec(hidden=0.0, attention=0.0))
    with pytest.raises(InputError, match="only validates"):
        StudentModule(classifier()).loss_terms(batch())
    assert issubclass(GeneralDistillation, DistillationModule)


def test_weights_are_quantized_once_for_an_accumulated_step(tmp_path):
    """Two steps of 2 micro-batches each."""
    teacher = classifier(layers=1)
    module = SingleStageDistillation(
        prepare(classifier(layers=1), QuantSpec(weight_bits=1, activation_bits=8)), teacher, total_steps=2
    )
    layer = module.student.bert.encoder.layer[0].output.dense
    codes_of, seen = layer.weight_codes, []
    layer.weight_codes = lambda *args: seen.append(args[0].clone()) or codes_of(*args)
    trainer = pl.Trainer(
        max_steps=2,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    rows = [batch() for _ in range(4)]
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=None))
    assert len(seen) == 2
    assert not torch.equal(*seen)
    assert layer.held is None
