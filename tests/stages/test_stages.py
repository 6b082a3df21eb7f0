from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bitkd.distill.losses import attention_score_mse, hidden_mse, soft_cross_entropy
from bitkd.errors import InputError
from bitkd.models.attention import ATTENTION, attention_with_scores
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.importance import Importance
from bitkd.models.inputs import model_inputs
from bitkd.models.prepare import prepare
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.spec import QuantSpec
from bitkd.stages.base import Origin, StudentModule
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.finetune import FineTune
from bitkd.stages.finite import NonFiniteLossError
from bitkd.stages.general import GeneralDistillation
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.kinds import KINDS
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import TERMS, LossSpec, OptimSpec, Term
from bitkd.stages.split import Splitting

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
    # Not zero: the student keeps its scores for its gradient, the teacher attends without them.
    assert max(terms["hidden"], terms["attention"]) < 1e-10


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


ALL_QUANTIZED = QuantSpec(weight_bits=2, activation_bits=8, attention_activations=True)
KEPT = [[0, 1], [1, 2], [0, 3], [3, 1]]


def with_heads(teacher, kept=KEPT):
    """A student of half width with these heads of each layer: consecutive ones, and others."""
    heads = torch.zeros(4, 4)
    for layer, found in enumerate(kept):
        heads[layer, found] = 1
    return build_student(teacher, ShapeSpec(width=0.5, dropout=0.1), Importance(heads, torch.rand(4, 64)))


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("quant", [QuantSpec(), ALL_QUANTIZED])
def test_a_step_waits_for_no_device(kind, quant, no_host_reads):
    teacher = classifier()
    module = kind(prepare(with_heads(teacher), quant), teacher)
    module.student.train()
    rows = batch()
    with no_host_reads():
        torch.stack(list(module.loss_terms(rows).values())).sum().backward()


def test_what_waits_for_a_device_is_found(no_host_reads):
    x = torch.ones(3)
    for read in (lambda: bool(x.all()), lambda: x[[0, 2]], lambda: x[x > 0], lambda: torch.tensor(0.0), x.tolist):
        with pytest.raises(AssertionError, match="waits for the device"), no_host_reads():
            read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("quant", [QuantSpec(), QuantSpec(weight_bits=1, activation_bits=8), ALL_QUANTIZED])
def test_a_step_waits_for_no_gpu(kind, quant):
    teacher = classifier()
    module = kind(prepare(with_heads(teacher), quant), teacher).cuda()
    module.student.train()
    teacher.cuda()
    rows = {name: tensor.cuda() for name, tensor in batch().items()}
    try:
        for mode in ("default", "error"):  # the first step makes what later steps find
            with torch.autocast("cuda", torch.bfloat16):
                torch.cuda.set_sync_debug_mode(mode)
                torch.stack(list(module.loss_terms(rows).values())).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def scores_of_each_call(module, monkeypatch):
    """What a step's attention gives as scores, layer by layer, teacher first: a shape, or None."""
    shapes = []

    def attend(*args, **kwargs):
        output, scores = attention_with_scores(*args, **kwargs)
        kept = getattr(args[0], "kept_scores", None)
        assert scores is None  # transformers collects none
        shapes.append(None if kept is None else tuple(kept.shape))
        return output, scores

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, ATTENTION, attend)
    module.loss_terms(batch())
    return shapes


def test_scores_are_computed_where_a_term_reads_them(monkeypatch):
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[1, 3]))
    all_heads = (4, 4, 7, 7)
    for kind, loss, expected in (
        (PredictionDistillation, LossSpec(), [None] * 6),
        (IntermediateDistillation, LossSpec(attention=0.0), [None] * 6),
        (SingleStageDistillation, LossSpec(), [(0,), all_heads, (0,), all_heads, all_heads, all_heads]),
    ):
        with monkeypatch.context() as patch:
            assert scores_of_each_call(kind(student, teacher, loss), patch) == expected
    # A term of somebody else may read any of them.
    monkeypatch.setitem(TERMS, "all_scores", Term(f"{__name__}:all_scores", reads_layers=True))
    module = PredictionDistillation(student, teacher, LossSpec(extra={"all_scores": 1.0}))
    assert scores_of_each_call(module, monkeypatch) == [all_heads] * 6


def all_scores(module, student, teacher, batch):
    return torch.stack([scores.mean() for scores in (*student.attentions, *teacher.attentions)]).sum()


@pytest.mark.parametrize("unread", ["student", "teacher"])
def test_scores_that_nobody_reads_change_no_gradient(unread):
    gradients = []
    for skipped in (False, True):
        teacher = classifier()
        student = build_student(teacher, ShapeSpec(layers=[1, 3], dropout=0.0))
        kind = PredictionDistillation if unread == "student" else SingleStageDistillation
        module = kind(prepare(student, QuantSpec(weight_bits=1)), teacher)
        if not skipped:
            module._scores = True, True
        torch.manual_seed(0)
        torch.stack(list(module.loss_terms(batch()).values())).sum().backward()
        gradients.append({name: x.grad for name, x in student.named_parameters() if x.grad is not None})
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


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


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, [1.0] * 5), (0.4, [0.0, 0.5, 1.0, 1.0, 1.0])])
def test_a_constant_rate_stays_after_warm_up(ratio, expected):
    """Without warm-up it is TinyBERT's schedule of Stage-I."""
    optim = OptimSpec(lr=1.0, warmup_ratio=ratio, schedule="constant")
    settings, rates = FineTune(classifier(layers=1), optim=optim, total_steps=5).configure_optimizers(), []
    for _ in range(5):
        rates.append(settings["optimizer"].param_groups[0]["lr"])
        settings["optimizer"].step()
        settings["lr_scheduler"]["scheduler"].step()
    assert rates == expected


@pytest.mark.parametrize("padding", ["zero", "leave"])
def test_published_means_are_over_rows_of_one_length(padding):
    """The squared errors of one layer, number by number, with what published code makes of a mask."""
    teacher = classifier(layers=1)
    student = build_student(classifier(layers=1, seed=1), ShapeSpec(dropout=0.0))
    module = IntermediateDistillation(student, teacher, LossSpec(padding=padding))
    rows = batch(length=5, padded_to=8)
    sums = {"hidden": 0.0, "attention": 0.0}
    with torch.no_grad():
        found = module.loss_terms(rows)
        ours, theirs = (
            model(**model_inputs(rows, model), output_hidden_states=True, output_attentions=True)
            for model in (student.eval(), teacher)
        )
    for one, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        pairs = zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)
        sums["hidden"] += sum((a - b) ** 2 for a, b in pairs) / one.numel()
    scores, targets = (outputs.attentions[0].tolist() for outputs in (ours, theirs))
    for row in range(4):
        for head in range(4):
            for query in range(8):
                for key in range(8):
                    mask = 0 if rows["attention_mask"][row, key] else -1e4
                    one, other = scores[row][head][query][key] + mask, targets[row][head][query][key] + mask
                    if padding == "zero":
                        one, other = (0.0 if score <= -1e2 else score for score in (one, other))
                    sums["attention"] += (one - other) ** 2 / (4 * 4 * 8 * 8)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(sums, rel=1e-4)


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


@pytest.mark.parametrize(("scaler", "fused"), [(None, True), (object(), None)])
def test_the_optimizer_is_fused_unless_gradients_are_scaled(scaler, fused):
    module = FineTune(classifier(layers=1), total_steps=10)
    module._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    assert module.configure_optimizers()["optimizer"].defaults["fused"] is fused


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


def test_every_epoch_has_a_training_loss_however_rarely_steps_are_logged():
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, log_every_n_steps=50, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = FineTune(classifier(), total_steps=2)
    trainer.fit(module, torch.utils.data.DataLoader([batch()] * 2, batch_size=None))
    assert trainer.callback_metrics["train/loss"] > 0
    assert FineTune(classifier()).training_step(batch(), 0) > 0  # in a loop of one's own


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_mixed_precision_clips_gradients_for_an_optimizer_in_one_pass(algorithm):
    sizes, limit = [], {"norm": 0.5, "value": 0.01}[algorithm]

    class Norm(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            assert trainer.optimizers[0].defaults["fused"]
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            largest = max(grad.abs().max() for grad in grads)
            sizes.append(float(torch.nn.utils.get_total_norm(grads) if algorithm == "norm" else largest))

    trainer = pl.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        gradient_clip_val=limit,
        gradient_clip_algorithm=algorithm,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Norm()],
    )
    trainer.fit(FineTune(classifier(), total_steps=2), torch.utils.data.DataLoader([batch()] * 2, batch_size=None))
    assert sizes == pytest.approx([limit, limit], rel=0.01)


@torch.no_grad()
def test_a_split_begins_with_its_ternary_student_as_it_is():
    clipped = QuantSpec(weight_bits=2, embedding_bits=8, activation_bits=8, ste_clip=0.02, forward_clip=True)
    student = prepare(classifier(), clipped)
    inputs = model_inputs(batch(), student)
    expected = student(**inputs).logits
    origin = Origin(lambda: student, lambda model: None, quant=QuantSpec(weight_bits=1, activation_bits=8))
    assert torch.equal(Splitting.start(origin)(**inputs).logits, expected)
    plain = Splitting.start(replace(origin, load=classifier))
    assert read_spec(plain).quant == QuantSpec(weight_bits=2, activation_bits=8)
