"""Fine-tuning the task-specific teacher (Devlin et al., arXiv:1810.04805)."""

from torch import Tensor, nn

from bitkd.stages.base import StudentModule


class FineTune(StudentModule):
    """The pre-trained encoder with a new head, trained on the task's labels: the teacher of everything after it."""

    def loss_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.student(**self.inputs(batch)).logits
        if logits.shape[1] == 1:
            return {"label": nn.functional.mse_loss(logits[:, 0].float(), batch["labels"].float())}
        return {"label": nn.functional.cross_entropy(logits.float(), batch["labels"])}
