from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, ElectraConfig, RobertaConfig
from transformers.activations import ACT2FN

from bitkd.errors import InputError
from bitkd.models.attention import ATTENTION
from bitkd.models.encoder import describe_source, encoder_layers, read_spec, set_hidden_act
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import ShapeSpec, check_shape
from bitkd.models.student import add_head, build_student
from bitkd.models.teacher_map import map_student
from bitkd.quant.spec import QuantSpec
from tests.models.conftest import SHAPE, batch, classifier, importance_of
from tests.models.test_families import WORKING, config_of


def test_captured_scores_softmax_to_the_stock_attentions():
    model = classifier()
    stock = AutoModelForSequenceClassification.from_config(BertConfig(**SHAPE), attn_implementation="eager").eval()
    stock.load_state_dict(model.state_dict())
    inputs = batch()
    ours, theirs = (m(**inputs, output_attentions=True) for m in (model, stock))
    hidden_keys = inputs["attention_mask"][:, None, None, :] == 0
    for scores, probabilities in zip(ours.attentions, theirs.attentions):
        torch.testing.assert_close(scores.masked_fill(hidden_keys, -torch.inf).softmax(-1), probabilities)
    torch.testing.assert_close(ours.logits, theirs.logits)


def test_a_full_copy_has_the_teachers_outputs():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec()).eval()
    torch.testing.assert_close(student(**batch()).logits, teacher(**batch()).logits)


def test_chosen_layers_are_copied_and_recorded():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[1, 3]))
    assert read_spec(student).layers == [1, 3]
    for mine, theirs in zip(encoder_layers(student), (encoder_layers(teacher)[1], encoder_layers(teacher)[3])):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict())
    grandchild = build_student(student, ShapeSpec(layers=[1]))
    assert read_spec(grandchild).layers == [3]


def test_a_half_width_student_has_the_kept_heads_outputs():
    teacher = classifier()
    importance = importance_of(teacher)
    student = build_student(teacher, ShapeSpec(width=0.5), importance).eval()
    kept = read_spec(student).kept_heads[0]
    assert kept == sorted(importance.heads[0].topk(2).indices.tolist())
    contexts = []
    for model in (teacher, student):
        block = encoder_layers(model)[0].attention.output.dense
        block.register_forward_pre_hook(lambda _, args: contexts.append(args[0]))
        model(**batch())
    wide, narrow = (context.unflatten(-1, (-1, 8)) for context in contexts)
    torch.testing.assert_close(narrow, wide[:, :, kept])


def test_the_neurons_that_matter_most_are_kept():
    teacher = classifier()
    importance = importance_of(teacher)
    student = build_student(teacher, ShapeSpec(width=0.25), importance)
    rows = importance.neurons[2].topk(16).indices.sort().values
    torch.testing.assert_close(
        encoder_layers(student)[2].intermediate.dense.weight, encoder_layers(teacher)[2].intermediate.dense.weight[rows]
    )


def test_a_copy_keeps_as_many_heads_and_neurons_as_it_is_told():
    teacher = classifier()
    importance = importance_of(teacher)
    half = build_student(teacher, ShapeSpec(width=0.5), importance)
    told = build_student(teacher, ShapeSpec(heads=2, intermediate_size=32), importance)
    torch.testing.assert_close(told.state_dict(), half.state_dict(), rtol=0, atol=0)
    spec = read_spec(build_student(teacher, ShapeSpec(intermediate_size=10), importance))
    assert (spec.heads, spec.neurons) == (4, 10)
    with pytest.raises(InputError, match=r"leaves out heads or neurons .* needs their importance"):
        build_student(teacher, ShapeSpec(intermediate_size=10))


@pytest.mark.parametrize("family", [RobertaConfig, ElectraConfig])
def test_other_bert_shaped_encoders_work_alike(family, tmp_path):
    teacher = classifier(family(**SHAPE, pad_token_id=0))
    student = build_student(teacher, ShapeSpec(layers=[0, 2], width=0.5), importance_of(teacher))
    prepare(student, QuantSpec(weight_bits=1, activation_bits=8))
    student.eval()
    assert student(**batch()).logits.shape == (3, 3)
    encoder = AutoModel.from_config(family(**SHAPE, pad_token_id=0), attn_implementation=ATTENTION)
    headed = add_head(build_student(encoder, ShapeSpec(layers=[0, 2])), teacher)
    torch.testing.assert_close(headed.classifier.state_dict(), teacher.classifier.state_dict())


def test_a_split_student_is_not_reduced_again():
    with pytest.raises(InputError, match="reduce it before splitting"):
        build_student(split_student(), ShapeSpec(layers=[0]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ShapeSpec(layers=[0, 4]), r"layer 4; the source has 4 layers, use numbers from 0 to 3"),
        (ShapeSpec(layers=[-1]), "layer -1"),
        (ShapeSpec(layers=[1, 1]), "repeats a layer or is out of order"),
        (ShapeSpec(layers=[]), "list is empty"),
        (ShapeSpec(width=0.3), r"leaves 1\.2 of 4 heads; .* use one of 0\.25, 0\.5, 0\.75, 1"),
        (ShapeSpec(width=0.0), "leaves 0 of 4 heads"),
        (ShapeSpec(width=2.0), "leaves 8 of 4 heads"),
        (ShapeSpec(hidden_size=16), "needs student.init=random"),
        (ShapeSpec(hidden_size=20, init="random"), "use a multiple of the head size 8, or give student.heads"),
        (
            ShapeSpec(hidden_size=20, heads=3, init="random"),
            "does not divide the hidden size 20 .* one of 1, 2, 4, 5, 10, 20",
        ),
        (ShapeSpec(heads=0, init="random"), "does not divide the hidden size 32"),
        (ShapeSpec(intermediate_size=0, init="random"), "leaves no neuron"),
        (
            ShapeSpec(heads=5),
            "student.heads=5 cannot be copied from a source that has 4; use 1 to 4, or student.init=random",
        ),
        (ShapeSpec(intermediate_size=65), "intermediate_size=65 cannot be copied from a source that has 64"),
        (ShapeSpec(width=0.5, heads=2), "set student.width=1 to use those"),
        (ShapeSpec(dropout=1.0), r"is not in \[0, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(InputError, match=message):
        check_shape(shape, describe_source(BertConfig(**SHAPE)))


def test_an_unknown_initialization_is_refused():
    with pytest.raises(InputError, match=r"student\.init=zeros is unknown; use one of copy, random"):
        ShapeSpec(init="zeros")  # type: ignore[arg-type]


def test_the_map_compares_parts_with_what_they_were_copied_from():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[0, 3], width=0.5), importance_of(teacher))
    found = map_student(read_spec(student), 2, read_spec(teacher), 4)
    assert found.attention == [0, 3]
    assert found.hidden == [0, 1, 4]
    assert found.heads == read_spec(student).kept_heads
    own = map_student(read_spec(student), 2, read_spec(student), 2)
    assert own.attention == [0, 1]
    assert own.heads == [[0, 1], [0, 1]]


def test_the_map_of_a_random_student_is_uniform():
    teacher = classifier()
    student = build_student(teacher, ShapeSpec(layers=[0, 1], init="random"))
    found = map_student(read_spec(student), 2, read_spec(teacher), 4)
    assert found.attention == [1, 3]
    assert found.hidden == [0, 2, 4]
    assert found.heads == [[0, 1, 2, 3]] * 2
    narrow = build_student(teacher, ShapeSpec(layers=[0, 1], init="random", width=0.5))
    assert map_student(read_spec(narrow), 2, read_spec(teacher), 4).heads is None
    odd = build_student(teacher, ShapeSpec(layers=[0, 1, 2], init="random"))
    with pytest.raises(InputError, match="3"):
        map_student(read_spec(odd), 3, read_spec(teacher), 4)


def test_a_head_is_added_from_the_teacher():
    teacher = classifier()
    encoder = AutoModel.from_config(BertConfig(**SHAPE), attn_implementation=ATTENTION)
    model = add_head(build_student(encoder, ShapeSpec(layers=[1])), teacher)
    torch.testing.assert_close(model.classifier.weight, teacher.classifier.weight)
    torch.testing.assert_close(model.bert.pooler.dense.weight, teacher.bert.pooler.dense.weight)
    torch.testing.assert_close(model.bert.encoder.layer[0].state_dict(), encoder.encoder.layer[1].state_dict())
    assert read_spec(model).trained_head
    other = build_student(encoder, ShapeSpec(layers=[1], hidden_size=16, init="random"))
    assert not read_spec(add_head(other, teacher)).trained_head


def split_student():
    student = build_student(classifier(), ShapeSpec(layers=[1, 2]))
    split_ternary_(prepare(student, QuantSpec(weight_bits=2, activation_bits=8)))
    return student.eval()


def test_a_student_may_have_another_activation_function_in_every_family():
    for name, setting in (("Bert", "hidden_act"), ("DistilBert", "activation"), ("ModernBert", "hidden_activation")):
        source = classifier(config_of(name, WORKING[name]))
        student = build_student(source, ShapeSpec(hidden_act="relu")).eval()
        assert (getattr(student.config, setting), getattr(source.config, setting)) == ("relu", "gelu")
        assert not torch.equal(student(**batch()).logits, source(**batch()).logits)
        for (key, ours), theirs in zip(student.state_dict().items(), source.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), key
        same = build_student(source, ShapeSpec(hidden_act="gelu")).eval()
        assert torch.equal(same(**batch()).logits, build_student(source, ShapeSpec()).eval()(**batch()).logits)


def test_activation_functions_are_those_of_transformers():
    choices = get_args(get_args(get_type_hints(ShapeSpec)["hidden_act"])[0])
    assert "relu" in choices
    assert all(name in ACT2FN for name in choices)
    with pytest.raises(InputError, match=r"student\.hidden_act.*relu"):
        ShapeSpec(hidden_act="rellu")
    with pytest.raises(InputError, match="a bert model has none of hidden_act, activation, hidden_activation"):
        set_hidden_act(SimpleNamespace(model_type="bert"), "relu")
