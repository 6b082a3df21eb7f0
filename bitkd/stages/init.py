"""Initialization: a student out of some of the teacher's layers (XTC, arXiv:2206.01859)."""

from transformers import PreTrainedModel

from bitkd.models.prepare import prepare
from bitkd.stages.base import Origin, StudentModule


class Initialization(StudentModule):
    """Copies chosen layers, heads and neurons; nothing is trained."""

    @classmethod
    def start(cls, origin: Origin) -> PreTrainedModel:
        """A smaller student, made out of the model of the stage before as `student.*` says."""
        return prepare(origin.reshape(), origin.quant)
