"""Where learned steps of activations start, and what is made of a student that has them."""

import copy

import pytest
import torch

import bitkd
from bitkd.engine.build import MODE
from bitkd.engine.families import find_obstacle
from bitkd.errors import InputError
from bitkd.export.unpacked import make_stock
from bitkd.models.artifact import load_student, save_student
from bitkd.models.calibration import calibrate, needs_calibration
from bitkd.models.packed import load_packed, pack_student, save_packed
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.size import measure
from bitkd.models.unpacked import unpack_student
from bitkd.quant.elastic import Elastic
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.layout import layers_of
from bitkd.quant.spec import QuantSpec
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import LossSpec, OptimSpec
from tests.models.conftest import classifier
from tests.models.test_families import ROWS, WORKING, config_of


def spec(bits=2, weights=1):
    return QuantSpec(weight_bits=weights, activation_bits=bits, attention_activations=True)


def relu(name="Bert"):
    act = {"DistilBert": "activation", "ModernBert": "hidden_activation"}.get(name, "hidden_act")
    return classifier(config_of(name, WORKING[name] | {act: "relu"}))


def student(bits=2, weights=1, name="Bert"):
    """A student that has learned: steps and shifts have moved."""
    model = prepare(relu(name), spec(bits, weights))
    calibrate(model, [ROWS])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Elastic):
                module.step.mul_(1 + 0.1 * torch.rand((), generator=generator))
                if module.shift is not None:
                    module.shift.add_(0.1 * torch.randn(module.shift.shape, generator=generator))
    return model


def steps(model):
    return {name: value for name, value in model.state_dict().items() if name.endswith(".step")}


@pytest.mark.parametrize("name", WORKING)
@pytest.mark.parametrize("bits", [1, 4])
def test_every_family_is_calibrated_saved_loaded_and_packed(name, bits, tmp_path, monkeypatch):
    monkeypatch.setenv(MODE, "off")
    model = prepare(relu(name), spec(bits)).train()
    with pytest.raises(InputError, match="have a step that is learned"):
        model(**ROWS)
    calibrate(model, [ROWS])
    assert all(module.training for module in model.modules())
    assert not needs_calibration(model)
    assert all(value > 0 for value in steps(model).values())
    assert len(steps(model)) == len([m for m in model.modules() if isinstance(m, Elastic)])
    model(**ROWS).logits.square().sum().backward()
    assert all(parameter.grad is not None for n, parameter in model.named_parameters() if "quantizer" in n)
    model.eval()
    with torch.no_grad():
        before = model(**ROWS).logits
        save_student(model, tmp_path / "student")
        assert torch.equal(load_student(tmp_path / "student")(**ROWS).logits, before)
        packed = pack_student(model)
        assert torch.equal(packed(**ROWS).logits, unpack_student(packed)(**ROWS).logits)
        assert all(torch.equal(packed.state_dict()[name], value) for name, value in steps(model).items())
        save_packed(packed, tmp_path / "packed")
        loaded = load_packed(tmp_path / "packed")
        assert torch.equal(loaded(**ROWS).logits, packed(**ROWS).logits)
        assert torch.equal(unpack_student(loaded)(**ROWS).logits, packed(**ROWS).logits)


def test_a_start_depends_neither_on_padding_nor_on_what_padding_holds():
    wide = {
        name: torch.nn.functional.pad(column, (0, 9), value=7 * (name == "input_ids")) for name, column in ROWS.items()
    }
    found = []
    for batch in (ROWS, wide):
        model = prepare(relu(), spec(1))
        calibrate(model, [batch])
        found.append(steps(model))
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


def test_steps_start_from_the_real_tokens_of_all_batches_in_order():
    model = prepare(relu(), spec(1))
    halves = [{name: column[i : i + 1] for name, column in ROWS.items()} for i in range(2)]
    calibrate(model, halves)
    embedded = model.bert.embeddings(input_ids=ROWS["input_ids"])[ROWS["attention_mask"].bool()]
    torch.testing.assert_close(
        model.bert.encoder.layer[0].attention.self.query.input_quantizer.step.detach(), embedded.abs().mean().detach()
    )


def test_an_input_starts_as_it_is_quantized_with_the_scale_of_its_columns():
    spec = QuantSpec(weight_bits=1, activation_bits=1, per_row=True, column_scales=True)
    model = prepare(relu(), spec)
    calibrate(model, [ROWS])
    query = model.bert.encoder.layer[0].attention.self.query
    *_, column = query.quantized()
    read = model.bert.embeddings(input_ids=ROWS["input_ids"])[ROWS["attention_mask"].bool()] * column
    torch.testing.assert_close(query.input_quantizer.step.detach(), read.abs().mean().detach())
    model(**ROWS).logits.square().sum().backward()
    assert query.input_quantizer.shift.grad.abs().max() > 0


def test_what_has_started_stays_and_what_cannot_start_is_refused():
    model = student()
    before = copy.deepcopy(model.state_dict())
    calibrate(model, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    prepare(model, spec())
    assert not needs_calibration(model)
    prepare(model, spec(bits=1))
    with pytest.raises(InputError, match="calibrated without rows"):
        calibrate(model, [])
    last = model.bert.encoder.layer[-1].output.dense
    with torch.no_grad():
        model.bert.encoder.layer[-1].intermediate.dense.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="is not finite, so that its quantizer cannot start"):
        calibrate(model, [ROWS])
    assert not any(steps(model).values())
    assert not last.input_quantizer.calibrated
    with pytest.raises(InputError, match="cannot be calibrated"):
        calibrate(pack_student(student()), [ROWS])
    assert bitkd.calibrate is calibrate


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_split_student_is_the_ternary_one_and_keeps_what_its_quantizers_learned(bits, tmp_path):
    model = student(bits, weights=2).eval()
    with torch.no_grad():
        before, learned = model(**ROWS).logits, steps(model)
        split_ternary_(model)
        assert torch.equal(model(**ROWS).logits, before)
        assert steps(model) == learned
        save_student(model, tmp_path)
        assert torch.equal(load_student(tmp_path)(**ROWS).logits, before)
        packed = pack_student(model)
        assert torch.equal(packed(**ROWS).logits, unpack_student(packed)(**ROWS).logits)


def test_a_packed_file_has_the_size_that_was_measured(tmp_path):
    model = student()
    save_packed(model, tmp_path)
    learned = sum(p.numel() for m in model.modules() if isinstance(m, InputQuantizer) for p in m.parameters())
    plain = prepare(copy.deepcopy(model), QuantSpec(weight_bits=1, activation_bits=8))
    assert measure(model).file_mib - measure(plain).file_mib == pytest.approx(4 * learned / 2**20)
    assert measure(model).precision == "W1A2"


def test_forms_that_cannot_compute_it_say_so():
    model = student()
    obstacle = find_obstacle(pack_student(model))
    assert obstacle is not None
    assert "is not quantized to 8 bits per token" in obstacle
    with pytest.raises(InputError, match="2-bit activations are shifted and have steps that it learned"):
        make_stock(model)


def test_what_quantizers_learn_has_a_learning_rate_of_its_own_and_no_decay():
    teacher = relu()
    optim, loss = OptimSpec(lr=1e-3, weight_decay=0.1, scales_lr=1e-2), LossSpec(attention=0)
    module = SingleStageDistillation(student(), teacher, loss, optim=optim, total_steps=4)
    *groups, scales = module.configure_optimizers()["optimizer"].param_groups
    assert {id(p) for p in scales["params"]} == {id(p) for n, p in module.named_parameters() if "quantizer" in n}
    assert (scales["initial_lr"], scales["weight_decay"]) == (1e-2, 0.0)
    assert [group["initial_lr"] for group in groups] == [1e-3, 1e-3]
    plain = SingleStageDistillation(relu(), teacher, loss, optim=optim, total_steps=4)
    assert len(plain.configure_optimizers()["optimizer"].param_groups) == 2


def test_a_training_step_reads_nothing_on_the_host(no_host_reads):
    """A CUDA graph cannot."""
    module = SingleStageDistillation(student().train(), relu(), LossSpec(attention=0))
    with no_host_reads():
        torch.stack(list(module.loss_terms(ROWS).values())).sum().backward()


def test_the_second_linear_of_a_gated_ffn_reads_negative_values_too():
    model = student(name="ModernBert")
    assert all(linear.signed_input for linear in layers_of(model).parts("down"))
