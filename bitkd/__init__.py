"""bitkd: from a fine-tuned BERT to a 1-bit BERT by knowledge distillation.

The public names are imported when they are first used (torch, lightning and transformers take seconds to load).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitkd.api import RunResult, run
    from bitkd.callbacks.weight_splitting import WeightSplitting
    from bitkd.config.load import load_config
    from bitkd.data.augment.augmenter import load_shards
    from bitkd.data.documents import FileDocuments, HubDocuments
    from bitkd.data.batches import LoaderSpec
    from bitkd.data.corpus_rows import CorpusRows, StreamRows
    from bitkd.data.modules import CorpusDataModule, TaskDataModule
    from bitkd.data.stream import StreamDataModule
    from bitkd.data.task_rows import TaskRows
    from bitkd.data.tasks import TaskSpec
    from bitkd.errors import InputError, StoppedError
    from bitkd.models.artifact import load_classifier, load_encoder, load_student, new_classifier, save_student
    from bitkd.models.importance import estimate_importance
    from bitkd.models.spec import ShapeSpec
    from bitkd.models.student import build_student
    from bitkd.pipeline.runner import StageFailedError
    from bitkd.quant.functional import binarize, ternarize
    from bitkd.quant.prepare import prepare
    from bitkd.quant.spec import QuantSpec
    from bitkd.quant.splitting import split_ternary
    from bitkd.stages.finetune import FineTune
    from bitkd.stages.general import GeneralDistillation
    from bitkd.stages.intermediate import IntermediateDistillation
    from bitkd.stages.prediction import PredictionDistillation
    from bitkd.stages.single_stage import SingleStageDistillation
    from bitkd.stages.spec import LossSpec, OptimSpec

__version__ = "0.1.0"

_PUBLIC = {
    "CorpusDataModule": "bitkd.data.modules",
    "CorpusRows": "bitkd.data.corpus_rows",
    "FileDocuments": "bitkd.data.documents",
    "FineTune": "bitkd.stages.finetune",
    "GeneralDistillation": "bitkd.stages.general",
    "HubDocuments": "bitkd.data.documents",
    "InputError": "bitkd.errors",
    "IntermediateDistillation": "bitkd.stages.intermediate",
    "LoaderSpec": "bitkd.data.batches",
    "LossSpec": "bitkd.stages.spec",
    "OptimSpec": "bitkd.stages.spec",
    "PredictionDistillation": "bitkd.stages.prediction",
    "QuantSpec": "bitkd.quant.spec",
    "RunResult": "bitkd.api",
    "ShapeSpec": "bitkd.models.spec",
    "SingleStageDistillation": "bitkd.stages.single_stage",
    "StageFailedError": "bitkd.pipeline.runner",
    "StoppedError": "bitkd.errors",
    "StreamDataModule": "bitkd.data.stream",
    "StreamRows": "bitkd.data.corpus_rows",
    "TaskDataModule": "bitkd.data.modules",
    "TaskRows": "bitkd.data.task_rows",
    "TaskSpec": "bitkd.data.tasks",
    "WeightSplitting": "bitkd.callbacks.weight_splitting",
    "binarize": "bitkd.quant.functional",
    "build_student": "bitkd.models.student",
    "estimate_importance": "bitkd.models.importance",
    "load_classifier": "bitkd.models.artifact",
    "load_config": "bitkd.config.load",
    "load_encoder": "bitkd.models.artifact",
    "load_shards": "bitkd.data.augment.augmenter",
    "load_student": "bitkd.models.artifact",
    "new_classifier": "bitkd.models.artifact",
    "prepare": "bitkd.quant.prepare",
    "run": "bitkd.api",
    "save_student": "bitkd.models.artifact",
    "split_ternary": "bitkd.quant.splitting",
    "ternarize": "bitkd.quant.functional",
}
__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604 - names only


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bitkd' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
