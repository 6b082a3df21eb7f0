"""Single-Stage KD: everything at once (XTC, arXiv:2206.01859); also the 2-bit KD of TernaryBERT (arXiv:2009.12812)."""

from bitkd.stages.distillation import DistillationModule


class SingleStageDistillation(DistillationModule):
    """Logits, hidden states and attention scores of the teacher, weighted 1:1:1 by default."""

    kind = "single_stage"
