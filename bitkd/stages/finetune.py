"""Fine-tuning the task-specific teacher (Devlin et al., arXiv:1810.04805)."""

from torch import Tensor
from transformers import PreTrainedModel

from bitkd.models.artifact import load_classifier, new_classifier, permute_labels
from bitkd.models.heads import BARE
from bitkd.models.inputs import model_inputs
from bitkd.models.prepare import prepare
from bitkd.models.student import drop_pooler
from bitkd.stages.base import Origin, StudentModule


class FineTune(StudentModule):
    """An encoder with a head, trained on the task's labels: the teacher of everything after it."""

    @classmethod
    def start(cls, origin: Origin) -> PreTrainedModel:
        """A given checkpoint, its outputs in the task's order; or the pre-trained BERT under a new head; or the student
        of the stage before.
        """
        if origin.checkpoint is not None:
            model = load_classifier(origin.checkpoint, origin.head)
            permute_labels(model, origin.labels, origin.checkpoint_labels)
        elif origin.pretrained is not None:
            model = new_classifier(origin.pretrained, origin.labels, origin.head)
        else:
            model = origin.load()
        if origin.head is BARE:
            model = drop_pooler(model)
        return prepare(model, origin.quant)

    def loss_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the head on `labels`: of classes the cross entropy, of a regression the squared error."""
        output = self.student(**model_inputs(batch, self.student))
        return {"label": self.head.label_loss(self.head.logits(output, batch), batch)}
