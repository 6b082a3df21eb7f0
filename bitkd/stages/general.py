"""General KD: a task-agnostic student, taught on a text corpus (TinyBERT, arXiv:1909.10351, section 3.2)."""

from bitkd.stages.distillation import DistillationModule


class GeneralDistillation(DistillationModule):
    """Attention scores and hidden states of the pre-trained BERT on unlabelled text; there is no head yet."""

    terms = ("hidden", "attention")
