"""Weight splitting: each ternary matrix becomes two binary ones with the same sum (BinaryBERT, arXiv:2012.15701)."""

from dataclasses import replace

import lightning.pytorch as pl
from transformers import PreTrainedModel

from bitkd.callbacks.weight_splitting import WeightSplitting
from bitkd.models.encoder import read_spec
from bitkd.models.prepare import prepare
from bitkd.quant.table import TERNARY
from bitkd.stages.base import Origin, StudentModule


class Splitting(StudentModule):
    """Nothing is trained: the callback splits the student before a validation."""

    @classmethod
    def start(cls, origin: Origin) -> PreTrainedModel:
        """The student of the stage before, if it is ternary; another one is made ternary first, without training."""
        student = origin.load()
        if read_spec(student).quant.weight_bits == TERNARY:
            return student
        embedding_bits = origin.quant.embedding_bits
        ternary = replace(
            origin.quant,
            weight_bits=TERNARY,
            embedding_bits=TERNARY if embedding_bits == 1 else embedding_bits,
        )
        return prepare(student, ternary)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [WeightSplitting()]
