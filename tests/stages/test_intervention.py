"""Teacher intervention: what takes the teacher's place, when it is withdrawn, and what of it stays."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForSequenceClassification

from bitkd.errors import InputError
from bitkd.models.inputs import model_inputs
from bitkd.models.layer_reader import LayerReader, Parts
from bitkd.models.prepare import prepare
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.spec import QuantSpec
from bitkd.stages import compiling
from bitkd.stages.compiling import compilation
from bitkd.stages.fit import SPANS
from bitkd.stages.flops import row_flops
from bitkd.stages.general import GeneralDistillation
from bitkd.stages.intervention import Intervention
from bitkd.stages.kinds import kind_of
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import LossSpec, OptimSpec
from tests.models.test_families import ROWS, WORKING, config_of, families
from tests.stages.test_flops import forward_flops, times
from tests.stages.test_stages import ALL_QUANTIZED, batch, classifier, with_heads

W1A8 = QuantSpec(weight_bits=1, activation_bits=8)
AFTER = "attention.output.dropout"
"""The module of a layer that reads what the Linear behind attention gives; without dropout it puts out the same."""

kinds = pytest.mark.parametrize("intervention", SPANS)


def distillation(intervention, quant=W1A8, kind=SingleStageDistillation, **settings):
    """A student of two layers of its teacher, without dropout."""
    teacher = classifier()
    student = prepare(build_student(teacher, ShapeSpec(layers=[1, 3], dropout=0.0)), quant)
    return kind(student, teacher, LossSpec(intervention=intervention, **settings), total_steps=8)


def kept_in_a_step(module, path):
    """What the student's layers put out at `path` in a step."""
    found, layers = [], module.student.bert.encoder.layer
    handles = [
        layer.get_submodule(path).register_forward_hook(lambda _, __, output: found.append(output)) for layer in layers
    ]
    module.loss_terms(batch())
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("quant", [QuantSpec(), W1A8])
def test_at_weight_one_the_teachers_output_goes_on(quant):
    module, rows = distillation("output", quant), batch()
    target = LayerReader(module.teacher).run(Parts(projected=True), None, **model_inputs(rows, module.teacher))
    for found, t in zip(kept_in_a_step(module, AFTER), (1, 3), strict=True):
        torch.testing.assert_close(found, target.attention_projected[t])


def test_at_weight_one_the_teachers_map_weighs_the_students_values():
    module, rows = distillation("map", QuantSpec()), batch()
    scores = module.teacher(**model_inputs(rows, module.teacher), output_attentions=True).attentions
    mask = rows["attention_mask"].bool()
    contexts = kept_in_a_step(module, "attention.self")
    values = kept_in_a_step(module, "attention.self.value")
    for (context, _), value, t in zip(contexts, values, (1, 3), strict=True):
        maps = scores[t].masked_fill(~mask[:, None, None], -1e9).softmax(-1)
        expected = maps @ value.unflatten(-1, (4, -1)).transpose(1, 2)
        torch.testing.assert_close(context, expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_between_it_is_the_weighted_mean(weight):
    module = distillation("output")
    first = kept_in_a_step(module, AFTER)[0]  # the teacher's
    module.intervention.weights.fill_(0.0)
    own = kept_in_a_step(module, AFTER)[0]
    module.intervention.weights.fill_(weight)
    torch.testing.assert_close(kept_in_a_step(module, AFTER)[0], (1 - weight) * own + weight * first)


@kinds
@pytest.mark.parametrize("quant", [QuantSpec(), ALL_QUANTIZED])
def test_a_withdrawn_teacher_changes_no_number(intervention, quant):
    plain, module = distillation(None, quant), distillation(intervention, quant)
    module.intervention.set_step(2, 8)
    assert module.intervention.weights.tolist() == [0.0] * len(SPANS[intervention])
    results = []
    for each in (plain, module):
        terms = each.loss_terms(batch())
        sum(terms.values()).backward()
        results.append((terms, {name: p.grad for name, p in each.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@kinds
def test_validation_and_prediction_see_the_student_by_itself(intervention):
    rows = batch()
    plain, module = (distillation(each).eval() for each in (None, intervention))
    torch.testing.assert_close(plain.loss_terms(rows), module.loss_terms(rows), rtol=0, atol=0)
    torch.testing.assert_close(plain.answer(rows), module.train().answer(rows), rtol=0, atol=0)
    general = GeneralDistillation(module.student.base_model, module.teacher.base_model, LossSpec(), total_steps=8)
    assert general.eval().loss_terms(rows).keys() == {"hidden", "attention"}


@kinds
@pytest.mark.parametrize("step", [0, 1])
def test_every_parameter_that_is_trained_gets_a_gradient_and_nothing_stays(intervention, step, no_host_reads):
    """At weight 1 it is zero where the teacher stands; DDP needs it."""
    teacher = classifier()
    student = prepare(with_heads(teacher) if intervention == "map" else build_student(teacher, ShapeSpec()), W1A8)
    module = SingleStageDistillation(student, teacher, LossSpec(intervention=intervention), total_steps=16)
    names = list(student.state_dict())
    module.intervention.set_step(step, 16)
    rows = batch()
    with no_host_reads():
        torch.stack(list(module.loss_terms(rows).values())).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in module.parameters())
    assert set(module.state_dict()) == {f"student.{name}" for name in names}
    for model in (student, teacher):
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        copy.deepcopy(model)


def test_the_weights_fall_with_the_steps():
    def weights(intervention, share):
        found = Intervention(LossSpec(intervention=intervention, intervention_share=share))
        rows = []
        for step in range(12):
            found.set_step(step, 12)
            rows.append(found.weights.tolist())
        return [list(column) for column in zip(*rows, strict=True)]

    (falling,) = weights("map", 0.5)
    assert falling == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, *[0] * 6])
    assert weights("output", 0.5) == [falling]
    output, maps = weights("gradual", 0.5)
    assert output == pytest.approx([1, 0.5, *[0] * 10])
    assert maps == pytest.approx([1, 1, 1, 3 / 4, 2 / 4, 1 / 4, *[0] * 6])


@kinds
def test_padding_never_changes_a_loss(intervention):
    module = distillation(intervention)
    module.intervention.weights.fill_(0.4)
    near, far = module.loss_terms(batch()), module.loss_terms(batch(padded_to=16))
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused():
    teacher = classifier()
    fewer = build_student(teacher, ShapeSpec(width=0.5, init="random"))
    with pytest.raises(InputError, match=r"loss.intervention=map puts attention maps .*as many heads, or use null"):
        SingleStageDistillation(fewer, teacher, LossSpec(intervention="map"))
    narrower = build_student(teacher, ShapeSpec(hidden_size=16, heads=4, init="random"))
    SingleStageDistillation(narrower, teacher, LossSpec(intervention="map")).loss_terms(batch())
    for intervention in ("output", "gradual"):
        with pytest.raises(InputError, match=r"hidden sizes differ \(16 and 32\); use map, or null"):
            SingleStageDistillation(narrower, teacher, LossSpec(intervention=intervention))
    with pytest.raises(InputError, match=r"intervention_share=0 is no share of the steps; use more than 0"):
        LossSpec(intervention_share=0)


def test_it_reads_the_teacher_in_every_step():
    loss = LossSpec(intervention="map", regression_target="label")
    assert kind_of("prediction").reads_teacher(loss, numbers=True)
    assert not kind_of("prediction").reads_teacher(LossSpec(regression_target="label"), numbers=True)
    assert not distillation("map", kind=PredictionDistillation).can_keep_logits


@kinds
def test_flops_are_those_without(intervention):
    of_student, of_teacher = row_flops(distillation(intervention, QuantSpec()), batch())
    assert of_teacher == forward_flops(4)
    assert of_student == times(3, forward_flops(2))


@families
def test_every_family_takes_the_teachers_place(name):
    torch.manual_seed(0)
    config = config_of(name, WORKING[name])
    teacher, student = (AutoModelForSequenceClassification.from_config(config).eval() for _ in range(2))
    prepare(student, W1A8)
    rows, losses = ROWS | {"labels": torch.tensor([0, 1])}, {}
    for intervention in (None, "map", "output"):
        torch.manual_seed(1)
        module = SingleStageDistillation(student, teacher, LossSpec(intervention=intervention))
        losses[intervention] = module.loss_terms(rows)["hidden"].item()
    assert len(set(losses.values())) == 3
    assert losses["output"] < losses[None]


def test_compiled_layers_share_a_graph_and_see_the_weights_change(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    losses, graphs = [], []
    for compiled in (False, True):
        module = distillation("gradual", extra={"attention_map": 1.0, "attention_output": 1.0})
        counters.clear()
        with compilation(tmp_path) as callback:
            for step, (rows, length) in enumerate(((4, 7), (4, 9), (3, 8))):
                module.intervention.set_step(step, 12)
                if compiled:
                    callback.on_train_batch_start(None, module, {}, 0)
                data = {name: column[:rows] for name, column in batch(length).items()}
                losses.append({name: value.item() for name, value in module.loss_terms(data).items()})
                graphs.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"]
    assert losses[:3] == losses[3:]
    # The student's; the teacher's layers with scores, and those without.
    assert graphs == [0, 0, 0, 3, 3, 3]


def train(module, folder, until, resume=None, accumulate=2):
    """Steps of two batches each; returns the weights at each batch's start."""
    seen = []

    class Watch(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            seen.append(pl_module.intervention.weights.clone())

    trainer = pl.Trainer(
        max_steps=until,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        callbacks=[Watch()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    torch.manual_seed(0)
    rows = [batch() | {"input_ids": torch.randint(5, 60, (4, 7))} for _ in range(16)]
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=None), ckpt_path=resume, weights_only=False)
    trainer.save_checkpoint(folder / f"{until}.ckpt")
    return seen


@kinds
def test_a_resumed_stage_ends_as_an_uninterrupted_one(intervention, tmp_path):
    optim = OptimSpec(lr=1e-2)
    make = lambda: distillation(intervention, intervention_share=0.5)  # noqa: E731
    whole, first, second = make(), make(), make()
    for module in (whole, first, second):
        module.optim = optim
    weights = train(whole, tmp_path, 6)
    before = train(first, tmp_path, 2)
    after = train(second, tmp_path, 6, tmp_path / "2.ckpt")
    torch.testing.assert_close([*before, *after], weights, rtol=0, atol=0)
    assert all(torch.equal(one, other) for one, other in zip(weights[::2], weights[1::2], strict=True))
    assert weights[0].tolist() == [1.0] * len(SPANS[intervention])
    for (name, one), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
