"""Stage-I KD: intermediate layers on the task's data (TinyBERT, arXiv:1909.10351; BinaryBERT, arXiv:2012.15701)."""

from bitkd.stages.distillation import DistillationModule


class IntermediateDistillation(DistillationModule):
    """Attention scores and hidden states of the teacher; the head is frozen."""

    kind = "intermediate"
