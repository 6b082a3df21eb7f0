"""The losses on attention maps and on attention outputs."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from bitkd.distill.losses import attention_map_kl, hidden_mse
from bitkd.errors import InputError
from bitkd.models.inputs import model_inputs
from bitkd.models.layer_reader import LayerReader, Parts
from bitkd.models.prepare import prepare
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.spec import QuantSpec
from bitkd.stages.flops import row_flops
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import LossSpec
from tests.models.test_families import ROWS, WORKING, config_of, families
from tests.stages.test_flops import forward_flops, times
from tests.stages.test_stages import batch, classifier, half

BOTH = {"attention_map": 2.0, "attention_output": 3.0}
ONLY = {"logits": 0.0, "hidden": 0.0, "attention": 0.0}
W1A8 = QuantSpec(weight_bits=1, activation_bits=8)


def test_they_are_the_sums_over_layers_of_like_with_like():
    teacher = classifier()
    student = half(teacher, layers=[1, 3])
    module = PredictionDistillation(student, teacher, LossSpec(extra=BOTH))
    rows = batch()
    mask = rows["attention_mask"].bool()
    outputs = []
    for model in (
        student,
        teacher,
    ):  # BERT's module of that name: the Linear, dropout, the residual connection, LayerNorm
        found = []
        handles = [
            layer.attention.output.register_forward_hook(lambda _, __, output, found=found: found.append(output))
            for layer in model.bert.encoder.layer
        ]
        scores = model(**model_inputs(rows, model), output_attentions=True).attentions
        outputs.append((found, scores))
        for handle in handles:
            handle.remove()
    (own, scores), (target, targets) = outputs
    heads = student.config.bitkd["kept_heads"]
    terms = module.loss_terms(rows)
    pairs = list(enumerate([1, 3]))
    maps = sum(attention_map_kl(scores[i], targets[t][:, heads[i]], mask) for i, t in pairs)
    torch.testing.assert_close(terms["attention_map"], 2 * maps)
    torch.testing.assert_close(
        terms["attention_output"], 3 * sum(hidden_mse(own[i], target[t], mask) for i, t in pairs)
    )


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    teacher = classifier()
    module = SingleStageDistillation(build_student(teacher, ShapeSpec(dropout=0.0)), teacher, LossSpec(extra=BOTH))
    terms = module.loss_terms(batch())
    assert max(terms["attention_map"], terms["attention_output"]).abs() < 1e-6


@pytest.mark.parametrize("quant", [QuantSpec(), W1A8])
def test_padding_never_changes_them(quant):
    teacher = classifier()
    module = PredictionDistillation(prepare(half(teacher), quant), teacher, LossSpec(extra=BOTH))
    near, far = module.loss_terms(batch()), module.loss_terms(batch(padded_to=16))
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_alone_they_leave_the_last_ffn_without_a_gradient_and_nothing_else(name):
    """So DDP has to look for parameters without one, as `reads_last_layer` says."""
    teacher = classifier()
    module = PredictionDistillation(half(teacher), teacher, LossSpec(**ONLY, extra={name: 1.0}))
    sum(module.loss_terms(batch()).values()).backward()
    without = {name for name, p in module.named_parameters() if p.requires_grad and p.grad is None}
    assert without
    assert all(".layer.3." in name for name in without)
    with_hidden = IntermediateDistillation(half(teacher), teacher, LossSpec(attention=0.0, extra={name: 1.0}))
    sum(with_hidden.loss_terms(batch()).values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in with_hidden.parameters())


def test_nothing_of_a_step_stays_in_the_models():
    teacher = classifier()
    module = PredictionDistillation(half(teacher), teacher, LossSpec(extra=BOTH))
    module.loss_terms(batch())
    for model in (module.student, teacher):
        for part in model.modules():
            assert not part._forward_hooks
            assert not part._forward_pre_hooks
            assert getattr(part, "kept_scores", None) is None


def test_a_narrower_hidden_size_learns_a_projection_for_the_output():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[0, 1], hidden_size=16, heads=4, init="random"))
    module = PredictionDistillation(student, teacher, LossSpec(extra=BOTH))
    sum(module.loss_terms(batch()).values()).backward()
    assert module.project.weight.grad.abs().sum() > 0


def test_heads_without_a_source_are_compared_with_groups_or_refused():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[0, 1], width=0.5, init="random", dropout=0.0))
    with pytest.raises(InputError, match=r"attention_map compares .* head by head.*unmatched_heads=group_mean"):
        PredictionDistillation(student, teacher, LossSpec(extra={"attention_map": 1.0}))
    PredictionDistillation(student, teacher, LossSpec(extra={"attention_output": 1.0}))
    loss = LossSpec(extra={"attention_map": 1.0}, unmatched_heads="group_mean")
    assert PredictionDistillation(student, teacher, loss).loss_terms(batch())["attention_map"] > 0


def test_they_cost_no_matrix_product_but_the_projection():
    teacher = classifier()
    module = SingleStageDistillation(build_student(teacher, ShapeSpec()), teacher, LossSpec(extra=BOTH))
    assert row_flops(module, batch()) == (times(3, forward_flops(4)), forward_flops(4))


def test_they_read_more_than_the_teachers_logits():
    teacher = classifier()
    assert PredictionDistillation(half(teacher), teacher).can_keep_logits
    for name in BOTH:
        assert not PredictionDistillation(half(teacher), teacher, LossSpec(extra={name: 1.0})).can_keep_logits


@families
def test_every_family_hands_out_what_its_ffn_reads_and_what_its_attention_puts_out(name):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config_of(name, WORKING[name])).eval()
    PredictionDistillation(model, model)  # its attention hands out scores now
    expected = model(**ROWS).logits
    output = LayerReader(model).run(Parts(outputs=True, projected=True), **ROWS)
    torch.testing.assert_close(output.logits, expected)
    assert [x.shape for x in (*output.attention_outputs, *output.attention_projected)] == [(2, 24, 32)] * 8


def test_a_local_layer_is_compared_over_the_keys_that_it_sees():
    """ModernBERT's: the maps are those of the stock model, whose windows hide most keys."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = config_of("ModernBert", WORKING["ModernBert"])
        models.append(AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval())
    own, target = ([*model(**ROWS, output_attentions=True).attentions] for model in models)
    lengths, losses = ROWS["attention_mask"].sum(1).tolist(), []
    for student, teacher in zip(own, target, strict=True):
        for row, length in enumerate(lengths):
            p, q = (x[row, :, :length, :length].double() for x in (teacher, student))
            losses.append((p * (p / q).log()).nan_to_num(0.0).sum(-1).mean() / len(lengths))
    module = PredictionDistillation(*models, LossSpec(extra={"attention_map": 1.0}))
    found = module.loss_terms(ROWS | {"labels": torch.tensor([0, 1])})["attention_map"]
    torch.testing.assert_close(found.double(), sum(losses), rtol=1e-4, atol=1e-6)
    assert module.windows == [None, 5, 5, None]
