"""One LightningModule per KD stage."""

from bitkd.stages.base import OptimSpec, StudentModule
from bitkd.stages.distillation import DistillationModule, LossSpec
from bitkd.stages.finetune import FineTune
from bitkd.stages.general import GeneralDistillation
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation

__all__ = [
    "DistillationModule",
    "FineTune",
    "GeneralDistillation",
    "IntermediateDistillation",
    "LossSpec",
    "OptimSpec",
    "PredictionDistillation",
    "SingleStageDistillation",
    "StudentModule",
]
