"""Stages of sentence similarity: a bare encoder learns embeddings."""

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel

from bitkd.data.tokenized import Batches, Padding, encode_apart
from bitkd.distill.similarity import mean_pooling
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.heads import BARE
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.stages.base import Origin
from bitkd.stages.finetune import FineTune
from bitkd.stages.flops import row_flops
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import LossSpec

TEXTS = [
    ["a dog", "a small cat sleeps", "a bird", "the dog"],
    ["the horse runs", "a cat", "a bird sings with the old dog", "a"],
]


def encoder(seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"vocab_size": 80, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64} | changes
    return BertModel(BertConfig(**shape, num_hidden_layers=2, initializer_range=0.2)).eval()


@pytest.fixture
def batches(tiny_tokenizer):
    rows = encode_apart(tiny_tokenizer, TEXTS, 24) | {"label": [0.1, 0.9, 0.3, 1.0], "index": [0, 1, 2, 3]}
    return Batches(Dataset.from_dict(rows), Padding.of(tiny_tokenizer))


def start(stage, student, teacher):
    origin = Origin(load=lambda: student, importance=lambda model: None, head=BARE, teacher=teacher)
    return stage.start(origin)


def teacher_of(model):
    spec = read_spec(model)
    spec.trained_head = True
    write_spec(model, spec)
    return model


@pytest.mark.parametrize("target", ["teacher", "label"])
def test_the_loss_of_a_batch_is_the_mean_over_its_divided_pairs(batches, target):
    teacher = teacher_of(encoder(seed=1))
    student = start(SingleStageDistillation, encoder(), teacher)
    module = SingleStageDistillation(student, teacher, LossSpec(regression_target=target)).eval()
    together = module.loss_terms(batches[[0, 1, 2, 3]])
    parts = [module.loss_terms(batches[rows]) for rows in ([0, 2], [1, 3])]
    for name, term in together.items():
        torch.testing.assert_close(term, (parts[0][name] + parts[1][name]) / 2)
    # The parts that no loss reads are gone, so every parameter has a gradient.
    gradients = torch.autograd.grad(sum(together.values()), list(student.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_an_answer_is_the_cosine_of_texts_that_are_read_alone(batches, tiny_tokenizer):
    module = FineTune(start(FineTune, encoder(), None))
    batch = batches[[2, 0]]
    embeddings = []
    for text in (TEXTS[0][2], TEXTS[0][0], TEXTS[1][2], TEXTS[1][0]):
        inputs = tiny_tokenizer(text, return_tensors="pt")
        embeddings.append(mean_pooling(module.student.eval()(**inputs).last_hidden_state, inputs["attention_mask"]))
    expected = torch.cat(embeddings)
    torch.testing.assert_close(module.answer(batch), expected, rtol=1e-5, atol=1e-5)
    cosines = torch.cosine_similarity(expected[:2], expected[2:])
    torch.testing.assert_close(module.head.answers(module.answer(batch), batch)[0], cosines)
    torch.testing.assert_close(module.loss_terms(batch)["label"], (cosines - torch.tensor([0.3, 0.1])).square().mean())


def test_a_task_agnostic_student_answers_as_its_teacher_once_it_is_as_wide(batches):
    teacher = teacher_of(encoder())
    student = start(IntermediateDistillation, build_student(encoder(), ShapeSpec(dropout=0.0)), teacher)
    assert student.pooler is None
    assert read_spec(student).trained_head
    assert PredictionDistillation(student, teacher).loss_terms(batches[[0, 1]])["logits"] < 1e-6
    narrow = start(PredictionDistillation, encoder(hidden_size=16), teacher)
    assert not read_spec(narrow).trained_head
    assert PredictionDistillation(narrow, teacher).loss_terms(batches[[0, 1]])["logits"] > 0


def test_flops_are_those_of_a_text(batches):
    module = FineTune(start(FineTune, encoder(), None))
    one, many = row_flops(module, batches[[0]])[0], row_flops(module, batches[[0, 1, 2]])[0]
    assert one == many
    layers, width, neurons = 2, 32, 64
    assert one[1] == 3 * layers * 2 * (4 * width * width + 2 * width * neurons)  # backward costs twice the forward
