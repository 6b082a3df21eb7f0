"""The optimizer of TinyBERT's, TernaryBERT's, BinaryBERT's and BiT's code, which is that of BERT's own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class BertAdam(Optimizer):
    """Adam without bias correction, with decoupled weight decay (Devlin et al., arXiv:1810.04805):

    m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) g²,  w ← w - lr · (m / (√v + eps) + weight_decay · w)

    Where the gradient stays the same, the first step is (1 - β₁) / √(1 - β₂) = 3.2 times AdamW's, the 15th 6.5 times, and
    step 5000 1.0 times: a learning rate for one is none for the other, unless the training is long. The published class
    (`optimization.py` of pytorch-pretrained-bert) also clips gradients and sets the schedule of the learning rate; here
    `clip_each_` and torch's schedulers do.

    params: parameters, or groups of them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient. It reads nothing on the host.

        closure: computes the gradients and returns the loss, which is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained:
                self._update(trained, group)
        return loss

    def _update(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in trained:
            if not self.state[parameter]:
                self.state[parameter] = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        means = [self.state[parameter]["exp_avg"] for parameter in trained]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in trained]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(trained, means, roots, -group["lr"])


@torch.no_grad()
def clip_each_(parameters: Iterable[Tensor], largest: float) -> None:
    """Scale each parameter's gradient to a norm of at most `largest`, in place: not all of them together, as
    `torch.nn.utils.clip_grad_norm_` does. It reads nothing on the host."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        norms = torch.stack(torch._foreach_norm(gradients))
        torch._foreach_mul_(gradients, list((largest / (norms + 1e-6)).clamp_(max=1.0).unbind()))
