"""General KD: a task-agnostic student, taught on a text corpus (TinyBERT, arXiv:1909.10351, section 3.2)."""

from transformers import PreTrainedModel

from bitkd.models.prepare import prepare
from bitkd.stages.base import Origin
from bitkd.stages.distillation import DistillationModule


class GeneralDistillation(DistillationModule):
    """Attention scores and hidden states of the pre-trained BERT on unlabelled text; there is no head yet."""

    kind = "general"

    @classmethod
    def start(cls, origin: Origin) -> PreTrainedModel:
        """A smaller student, made out of the pre-trained BERT as `student.*` says."""
        return prepare(origin.reshape(), origin.quant)
