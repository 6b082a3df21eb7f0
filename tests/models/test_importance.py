import pytest
import torch

from bitkd.models.encoder import encoder_layers
from bitkd.models.importance import estimate_importance
from tests.models.conftest import batch, classifier


def test_importance_finds_the_head_and_the_neuron_that_do_nothing():
    teacher = classifier()
    with torch.no_grad():
        encoder_layers(teacher)[1].attention.output.dense.weight[:, 8:16] = 0
        encoder_layers(teacher)[2].output.dense.weight[:, 5] = 0
    rows = [batch() | {"labels": torch.tensor([0, 1, 2])}]
    for model, batches in ((teacher, rows), (teacher.base_model, [batch()])):
        importance = estimate_importance(model, batches)
        assert importance.heads[1].argmin() == 1
        assert importance.heads[1, 1] == 0
        assert importance.neurons[2, 5] == 0
        assert (importance.heads > 0).sum() == 15


def test_importance_is_the_published_weight_times_gradient():
    teacher = classifier()
    rows = batch() | {"labels": torch.tensor([0, 1, 2])}
    importance = estimate_importance(teacher, [rows])
    teacher(**rows).loss.backward()
    weight = encoder_layers(teacher)[0].output.dense.weight
    torch.testing.assert_close(importance.neurons[0], (weight * weight.grad).sum(0).abs(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("with_head", [True, False])
def test_importance_passes_only_what_a_model_reads(with_head, monkeypatch):
    """A batch of a streamed corpus has a `position`, which is about the stream."""
    teacher = classifier()
    model = teacher if with_head else teacher.base_model
    read = ("input_ids", "attention_mask", "labels") if with_head else ("input_ids", "attention_mask")
    forward = model.forward

    def strict(**inputs):
        unknown = set(inputs) - set(read)
        assert not unknown, f"forward() got unexpected keyword arguments {unknown}"
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", strict)
    about_rows = {"index": torch.arange(3), "position": torch.arange(3), "labels": torch.tensor([0, 1, 2])}
    assert (estimate_importance(model, [batch() | about_rows]).heads > 0).all()
