"""What models answer: each head's logits and losses by hand, and the way of a student of each kind onto the disk."""

import math

import pytest
import torch
from transformers import AutoModelForMultipleChoice, BertConfig, BertModel

from bitkd.errors import InputError
from bitkd.models.artifact import load_classifier, load_encoder, new_classifier, save_student
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.heads import HEADS, head_of
from bitkd.models.importance import estimate_importance
from bitkd.models.inputs import model_inputs
from bitkd.models.packed import load_packed, pack_student, save_packed
from bitkd.models.prepare import prepare
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import add_head, build_student
from bitkd.models.unpacked import unpack_student
from bitkd.quant.spec import QuantSpec
from tests.models.conftest import SHAPE, batch, importance_of

LABELS = {"text_classification": ["a", "b", "c"], "token_classification": ["O", "B-x", "I-x"]}


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    BertModel(BertConfig(**SHAPE)).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture(params=HEADS)
def made(request, encoder):
    torch.manual_seed(0)
    return new_classifier(encoder, LABELS.get(request.param), HEADS[request.param]).eval()


def trained(model):
    spec = read_spec(model)
    spec.trained_head = True
    write_spec(model, spec)
    return model


@torch.no_grad()
def answer(model):
    rows = batch(rows=4, padding=0) | {"index": torch.arange(4)}
    return head_of(model).logits(model.eval()(**model_inputs(rows, model)), rows)


def test_a_student_of_each_kind_is_saved_loaded_and_packed(made, tmp_path):
    student = trained(
        prepare(build_student(made, ShapeSpec(layers=[0, 2])), QuantSpec(weight_bits=1, activation_bits=8))
    ).eval()
    assert type(student) is type(made)
    save_student(student, tmp_path / "saved")
    head = head_of(made)
    assert torch.equal(answer(load_classifier(tmp_path / "saved", head)), answer(student))
    packed = pack_student(student)
    save_packed(packed, tmp_path / "packed")
    assert torch.equal(answer(unpack_student(packed)), answer(packed))
    torch.testing.assert_close(answer(load_packed(tmp_path / "packed")), answer(packed), rtol=1e-4, atol=1e-4)
    other = HEADS["question_answering" if head.name != "question_answering" else "token_classification"]
    with pytest.raises(InputError, match=r"for this kind of task|no trained head"):
        load_classifier(tmp_path / "saved", other)


def test_a_task_agnostic_student_gets_the_teachers_head(made, encoder):
    if head_of(made).name == "sentence_similarity":
        return
    student = add_head(build_student(load_encoder(encoder), ShapeSpec(layers=[1, 3])), trained(made))
    assert type(student) is type(made)
    own, given = student.state_dict(), made.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in given if not name.startswith("bert."))


def test_heads_and_neurons_are_chosen_by_the_loss_of_the_head(made):
    head = head_of(made)
    rows = batch(rows=4, length=9) | {"index": torch.arange(2 if head.name == "sentence_similarity" else 4)}
    rows["labels"] = {
        "text_classification": torch.tensor([0, 1, 2, 0]),
        "question_answering": torch.tensor([[1, 2], [0, 0], [3, 3], [1, 5]]),
        "token_classification": torch.full((4, 9), -100).index_fill(1, torch.tensor([1, 3]), 2),
        "sentence_similarity": torch.tensor([0.0, 1.0]),
    }[head.name]
    found = estimate_importance(trained(made), [rows])
    assert (found.heads > 0).all()
    assert build_student(made, ShapeSpec(width=0.5), importance_of(made)).config.num_labels == made.config.num_labels


def test_an_answers_loss_is_the_mean_of_its_ends():
    head = HEADS["question_answering"]
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]]])
    rows = {"attention_mask": torch.tensor([[1, 1, 0]]), "labels": torch.tensor([[1, 0]])}
    start, end = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))  # the third token is padding
    assert float(head.label_loss(logits, rows)) == pytest.approx((start + end) / 2)


def test_a_tags_loss_is_the_mean_over_the_words():
    head = HEADS["token_classification"]
    logits = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]]])
    labels = torch.tensor([[-100, 0, 1]])
    expected = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1))) / 2
    assert float(head.label_loss(logits, {"labels": labels})) == pytest.approx(expected)
    assert float(head.label_loss(logits, {"labels": torch.full((1, 3), -100)})) == 0
    assert head.label_weight({"labels": labels}) == 2  # so a mean over batches is one over all words


def test_a_head_of_another_kind_is_refused(tmp_path):
    model = AutoModelForMultipleChoice.from_config(BertConfig(**SHAPE))
    with pytest.raises(InputError, match="ForMultipleChoice has no head of a kind of task"):
        save_student(model, tmp_path)
    assert not tmp_path.joinpath("config.json").exists()
