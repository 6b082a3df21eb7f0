"""bitkd: from a fine-tuned BERT to a 1-bit BERT by knowledge distillation.

The public names are imported when they are first used (torch, lightning and transformers take seconds to load).
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitkd.api import RunResult as RunResult
    from bitkd.api import run as run
    from bitkd.callbacks.weight_splitting import WeightSplitting as WeightSplitting
    from bitkd.commands.inference import load_predictor as load_predictor
    from bitkd.commands.predictor import Predictor as Predictor
    from bitkd.config.load import load_config as load_config
    from bitkd.data.augment.augmenter import load_shards as load_shards
    from bitkd.data.batches import LoaderSpec as LoaderSpec
    from bitkd.data.corpus_rows import CorpusRows as CorpusRows
    from bitkd.data.corpus_rows import StreamRows as StreamRows
    from bitkd.data.documents import FileDocuments as FileDocuments
    from bitkd.data.documents import HubDocuments as HubDocuments
    from bitkd.data.modules import CorpusDataModule as CorpusDataModule
    from bitkd.data.modules import TaskDataModule as TaskDataModule
    from bitkd.data.stream import StreamDataModule as StreamDataModule
    from bitkd.data.task_rows import TaskRows as TaskRows
    from bitkd.data.tasks import TaskSpec as TaskSpec
    from bitkd.errors import InputError as InputError
    from bitkd.errors import StoppedError as StoppedError
    from bitkd.models.artifact import load_classifier as load_classifier
    from bitkd.models.artifact import load_encoder as load_encoder
    from bitkd.models.artifact import load_student as load_student
    from bitkd.models.artifact import new_classifier as new_classifier
    from bitkd.models.artifact import save_student as save_student
    from bitkd.models.calibration import calibrate as calibrate
    from bitkd.models.importance import estimate_importance as estimate_importance
    from bitkd.models.packed import load_packed as load_packed
    from bitkd.models.packed import pack_student as pack_student
    from bitkd.models.packed import save_packed as save_packed
    from bitkd.models.prepare import prepare as prepare
    from bitkd.models.spec import ShapeSpec as ShapeSpec
    from bitkd.models.student import build_student as build_student
    from bitkd.models.unpacked import unpack_student as unpack_student
    from bitkd.pipeline.runner import StageFailedError as StageFailedError
    from bitkd.quant.functional import binarize as binarize
    from bitkd.quant.functional import ternarize as ternarize
    from bitkd.quant.spec import QuantSpec as QuantSpec
    from bitkd.quant.splitting import split_ternary as split_ternary
    from bitkd.stages.finetune import FineTune as FineTune
    from bitkd.stages.finite import NonFiniteLossError as NonFiniteLossError
    from bitkd.stages.general import GeneralDistillation as GeneralDistillation
    from bitkd.stages.intermediate import IntermediateDistillation as IntermediateDistillation
    from bitkd.stages.prediction import PredictionDistillation as PredictionDistillation
    from bitkd.stages.single_stage import SingleStageDistillation as SingleStageDistillation
    from bitkd.stages.spec import LossSpec as LossSpec
    from bitkd.stages.spec import OptimSpec as OptimSpec

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
    "NonFiniteLossError": "bitkd.stages.finite",
    "OptimSpec": "bitkd.stages.spec",
    "PredictionDistillation": "bitkd.stages.prediction",
    "Predictor": "bitkd.commands.predictor",
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
    "calibrate": "bitkd.models.calibration",
    "estimate_importance": "bitkd.models.importance",
    "load_classifier": "bitkd.models.artifact",
    "load_config": "bitkd.config.load",
    "load_encoder": "bitkd.models.artifact",
    "load_packed": "bitkd.models.packed",
    "load_predictor": "bitkd.commands.inference",
    "load_shards": "bitkd.data.augment.augmenter",
    "load_student": "bitkd.models.artifact",
    "new_classifier": "bitkd.models.artifact",
    "pack_student": "bitkd.models.packed",
    "prepare": "bitkd.models.prepare",
    "run": "bitkd.api",
    "save_packed": "bitkd.models.packed",
    "save_student": "bitkd.models.artifact",
    "split_ternary": "bitkd.quant.splitting",
    "ternarize": "bitkd.quant.functional",
    "unpack_student": "bitkd.models.unpacked",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bitkd' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


_REGISTERED = {
    "transformers.models.auto.configuration_auto": "bitkd.models.model_types:register_types",
    "transformers.quantizers.auto": "bitkd.models.from_pretrained:register",
}
"""A module of transformers that students are registered with -> the function that does it."""


class _StudentsInTransformers(MetaPathFinder, Loader):
    """Registers students with a module of transformers as soon as that is imported, which takes seconds, by whomever."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        resolve_name(_REGISTERED[self.module])()


for _module, _register in _REGISTERED.items():
    if _module in sys.modules:
        resolve_name(_register)()
    else:
        sys.meta_path.insert(0, _StudentsInTransformers(_module))
