"""Stage-II KD: the prediction layer on the task's data (TinyBERT, arXiv:1909.10351; BinaryBERT, arXiv:2012.15701)."""

from bitkd.stages.distillation import DistillationModule


class PredictionDistillation(DistillationModule):
    """Only the logits of the teacher."""

    kind = "prediction"
