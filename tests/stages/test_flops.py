import random

import pytest
import torch

from bitkd.models.importance import Importance
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.spec import QuantSpec
from bitkd.stages.finetune import FineTune
from bitkd.stages.flops import importance_flops, row_flops
from bitkd.stages.general import GeneralDistillation
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from tests.stages.test_stages import batch, classifier

HIDDEN, NEURONS, LABELS = 32, 64, 3


def forward_flops(layers, width=1.0, head=True):
    """By hand: 2 for each multiplication and addition. Of a row of length L, as (constant, · L, · L²)."""
    attention, neurons = HIDDEN * width, NEURONS * width
    linear = 2 * (4 * HIDDEN * attention + 2 * HIDDEN * neurons)  # query, key, value, output; in, out
    products = 2 * 2 * attention  # scores, and their sum over values
    pooled = 2 * (HIDDEN * HIDDEN + HIDDEN * LABELS)
    return (pooled if head else 0, layers * linear, layers * products)


def times(factor, flops):
    return tuple(factor * value for value in flops)


def test_flops_of_fine_tuning_are_three_forwards():
    student, teacher = row_flops(FineTune(classifier()), batch())
    assert student == times(3, forward_flops(4))  # the backward multiplies twice: for inputs and for weights
    assert teacher == (0, 0, 0)


@pytest.mark.parametrize("bits", [1, 2, 32])
def test_quantized_students_cost_the_products_of_full_ones(bits):
    teacher = classifier()
    student = prepare(build_student(teacher, ShapeSpec(layers=[0, 3])), QuantSpec(weight_bits=bits, activation_bits=8))
    of_student, of_teacher = row_flops(SingleStageDistillation(student, teacher), batch())
    assert of_student == times(3, forward_flops(2))
    assert of_teacher == forward_flops(4)


def test_half_the_width_costs_half_split_or_not():
    teacher = classifier()
    importance = Importance(torch.rand(4, 4), torch.rand(4, 64))
    module = PredictionDistillation(build_student(teacher, ShapeSpec(width=0.5), importance), teacher)
    half = times(3, forward_flops(4, width=0.5))
    assert row_flops(module, batch())[0] == half
    prepare(module.student, QuantSpec(weight_bits=2))
    split_ternary_(module)
    assert row_flops(module, batch())[0] == half  # halves on one input are added before they are multiplied


def test_a_task_agnostic_student_has_no_head_to_pay_for():
    teacher = classifier()
    module = GeneralDistillation(build_student(teacher, ShapeSpec()).base_model, teacher.base_model)
    (constant, linear, _), (of_pooler, _, _) = row_flops(module, batch())
    assert linear == 3 * forward_flops(4)[1]
    assert constant == of_pooler == 2 * HIDDEN * HIDDEN  # computed, and not learned from


def test_counting_leaves_no_trace():
    module, rows = FineTune(classifier().train()), batch()
    before, state = torch.get_rng_state(), random.getstate()
    row_flops(module, rows)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == state
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_mode_of_a_module_changes_no_count_and_stays():
    teacher = classifier()
    module = PredictionDistillation(build_student(teacher, ShapeSpec()), teacher)
    prepare(module.student, QuantSpec(weight_bits=2, activation_bits=8))
    split_ternary_(module)
    for name, weights in module.named_parameters():
        if ".second." in name:  # scales that differ: evaluation multiplies the halves one by one
            weights.data.mul_(torch.rand(weights.shape))
    counted = row_flops(module.train(), batch())
    module.eval()
    module.student.classifier.train()
    assert row_flops(module, batch()) == counted
    assert counted[0] == times(3, forward_flops(4))
    assert not module.training
    assert [part for part in module.modules() if part.training] == [module.student.classifier]


def test_the_teachers_side_of_the_relation_loss_is_the_teachers():
    student, teacher = classifier(layers=2, hidden_size=16, num_attention_heads=2), classifier()
    module = GeneralDistillation(student.base_model, teacher.base_model)
    assert module.recorders
    of_student, of_teacher = row_flops(module, batch())
    relations = 2 * 3 * 2 * HIDDEN  # two layers, of queries, keys and values: each row with each
    assert of_teacher[2] == forward_flops(4)[2] + relations
    assert of_student[2] == 3 * 2 * 2 * 2 * 16 + 3 * relations / 2  # half the width; a product's gradient is two


@pytest.mark.parametrize("head", [True, False])
def test_importance_costs_a_forward_and_the_gradients_of_its_masks(head):
    model = classifier() if head else classifier().base_model
    constant, linear, square = importance_flops(model, batch())
    whole = forward_flops(4, head=head)
    # No gradient goes further back than the first mask, behind the first layer's attention.
    assert linear == 2 * whole[1] - 2 * 3 * HIDDEN * HIDDEN
    assert square == 3 * whole[2] - 2 * 2 * 2 * HIDDEN  # a product of two hidden states has two gradients
    assert constant == (2 * whole[0] if head else 2 * HIDDEN * HIDDEN)  # a bare encoder's pooler has no gradient
