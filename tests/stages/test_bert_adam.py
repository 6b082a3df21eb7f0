import math

import lightning.pytorch as pl
import pytest
import torch

from bitkd.stages.bert_adam import BertAdam, clip_each_
from bitkd.stages.finetune import FineTune
from bitkd.stages.spec import OptimSpec
from tests.stages.test_stages import batch, classifier

DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def by_hand(weights, gradients, lr, decay, clip):
    """The published update, number by number.  gradients: of each step, for each tensor a list of numbers."""
    weights = [list(tensor) for tensor in weights]
    means = [[0.0] * len(tensor) for tensor in weights]
    squares = [[0.0] * len(tensor) for tensor in weights]
    for step in gradients:
        for t, gradient in enumerate(step):
            norm = math.sqrt(sum(g * g for g in gradient))
            factor = min(1.0, clip / (norm + 1e-6))
            for i, g in enumerate(gradient):
                g *= factor
                means[t][i] = 0.9 * means[t][i] + 0.1 * g
                squares[t][i] = 0.999 * squares[t][i] + 0.001 * g * g
                change = means[t][i] / (math.sqrt(squares[t][i]) + 1e-6) + decay * weights[t][i]
                weights[t][i] -= lr * change
    return weights


def test_steps_are_those_of_the_published_optimizer():
    start = [[1.0, -2.0, 0.5], [4.0]]
    # The first tensor's gradients are longer than 1, the second's are not, and one step has none of them.
    gradients = [[[3.0, -4.0, 0.0], [1e-3]], [[0.1, 0.2, -0.3], [-0.5]], [[1.0, 1.0, 1.0], [0.0]]]
    parameters = [torch.nn.Parameter(torch.tensor(tensor)) for tensor in start]
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = BertAdam([*parameters, unused], lr=0.1, weight_decay=0.01)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        clip_each_([*parameters, unused], 1.0)
        optimizer.step()
    expected = by_hand(start, gradients, 0.1, 0.01, 1.0)
    assert [parameter.tolist() for parameter in parameters] == [pytest.approx(tensor) for tensor in expected]
    assert unused.tolist() == [1, 1]
    # The first step of every number alone: 0.1 / √0.001 times the learning rate, whatever the gradient.
    alone = torch.nn.Parameter(torch.zeros(1))
    alone.grad = torch.tensor([0.7])
    BertAdam([alone], lr=1.0, weight_decay=0.0).step()
    assert alone.item() == pytest.approx(-0.1 / math.sqrt(0.001), rel=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_clips_each_tensor_and_resumes_exactly(tmp_path, precision):
    norms = []

    class Norms(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            norms.append([float(grad.norm()) for grad in grads])

    def fit(steps, checkpoint=None):
        torch.manual_seed(0)
        module = FineTune(classifier(layers=1, **DRY), OptimSpec(lr=1e-3, optimizer="bert_adam"), total_steps=4)
        trainer = pl.Trainer(
            accelerator="cpu", precision=precision, max_steps=steps, accumulate_grad_batches=2, gradient_clip_val=0.01,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[Norms()],
        )  # fmt: skip
        rows = [batch()] * 8
        trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=None), ckpt_path=checkpoint, weights_only=True)
        return trainer, module

    whole = fit(4)[1]
    after_steps = [each for each in norms if each]
    assert after_steps
    assert all(max(each) <= 0.01 * (1 + 1e-3) for each in after_steps)
    assert any(math.hypot(*each) > 0.02 for each in after_steps)  # together they are longer
    fit(2)[0].save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(4, tmp_path / "half.ckpt")[1]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
