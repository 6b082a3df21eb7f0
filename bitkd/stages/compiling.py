"""torch.compile for a stage's training steps: when it pays, and how a module's layers are compiled and made plain again.

Each encoder layer is compiled, not the whole step: equal layers share one graph, so the time to compile does not grow with
their number. Batches of any length use the same graph, because sizes are symbols in it.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from typing_extensions import override

from bitkd.errors import InputError
from bitkd.models.encoder import encoder_layers
from bitkd.stages.base import StudentModule
from bitkd.stages.distillation import DistillationModule

PAYS_FROM_STEPS = {True: 2000, False: 500}
"""`auto` compiles stages of at least so many steps, by whether they are recorded as CUDA graphs. On an H200, 26 seconds of
compiling made a step of BERT-base (batch 32, length 128) 19 ms faster if steps are recorded, and 56 ms if not."""

BACKEND = "inductor"

CACHE = "compiled"
"""Folder of compiled graphs in the cache beside a store."""

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

_PURE = ("torch.amp.autocast_mode._enter_autocast", "torch.amp.autocast_mode._exit_autocast")
"""Functions in the graphs whose effect is in the graph itself; PyTorch's cache does not know that yet."""


def compiler_problem(device: torch.device | str) -> str | None:
    """Why torch.compile cannot work on this device, with advice; None if it can. A CPU needs a C++ compiler, CUDA Triton."""
    kind = torch.device(device).type
    if kind == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is missing or does not support this GPU; install triton"
    if kind != "cpu":
        return f"it is supported on CPUs and CUDA devices, not on {kind}"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return "there is no C++ compiler; install g++, or name another one with the variable CXX"
    return None


def check_compiler(setting: str, device: torch.device | str) -> None:
    """Raise InputError if `trainer.compile` is `true` and nothing can be compiled on this device."""
    if setting == "true" and (problem := compiler_problem(device)):
        raise InputError(f"trainer.compile=true, but {problem}; or use trainer.compile=auto")


def should_compile(setting: str, device: torch.device | str, total_steps: int, recorded: bool) -> bool:
    """Whether a stage's steps are compiled.

    total_steps: of the whole stage, not those that are left, so that a resumed stage decides the same.
    recorded: whether the steps are recorded as CUDA graphs by default. What `trainer.cuda_graphs` says must not decide, because
    compiling changes results and recording does not.
    """
    if setting == "auto":
        return torch.device(device).type == "cuda" and total_steps >= PAYS_FROM_STEPS[recorded]
    return setting == "true"


def compile_layers(module: StudentModule) -> "CompiledLayers":
    """The encoder layers of a module's student and teacher, compiled; nothing runs yet.

    None are compiled where projections are recorded (`loss.unmatched_heads=relation`): the hooks of each layer differ.
    """
    models = [module.student]
    if isinstance(module, DistillationModule):
        models = [] if module.recorders else [*models, module.teacher]
    return CompiledLayers([layer for model in models for layer in encoder_layers(model)])


class CompiledLayers:
    """Layers with a compiled `forward` beside their own. Names of parameters do not change.

    `forward` and not the whole call: transformers collects hidden states by hooks of a layer, which cannot be compiled.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self._compiled = [(layer, torch.compile(layer.forward, dynamic=True, backend=BACKEND)) for layer in layers]

    def use(self, compiled: bool) -> None:
        """Run the layers compiled, or as they were."""
        for layer, forward in self._compiled:
            if compiled:
                layer.forward = forward
            else:
                layer.__dict__.pop("forward", None)


class Compilation(pl.Callback):
    """Compiles the layers of student and teacher for the training steps of a fit. Validation runs without: it has few
    batches, and layers in evaluation mode would be more graphs to compile.

    It compiles at the first batch. A callback that runs the module under a dispatch mode (TrainingFlops) comes before it.
    """

    seconds: float = 0.0
    """What the first batch took, nearly all of it compiling."""

    def __init__(self) -> None:
        self._layers: CompiledLayers | None = None
        self._began = 0.0

    def use(self, compiled: bool) -> None:
        """Run the layers compiled, or as they were."""
        if self._layers is not None:
            self._layers.use(compiled)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._layers is None:
            assert isinstance(pl_module, StudentModule)
            self._layers = compile_layers(pl_module)
            self._began = time.monotonic()
            self.use(True)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds = self.seconds or time.monotonic() - self._began

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.use(False)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.use(True)


@contextlib.contextmanager
def compilation(cache: Path | None) -> Iterator[Compilation]:
    """The callback of a fit whose steps are compiled. Afterwards the module is as if it had never been compiled.

    cache: folder of compiled graphs, unless the variable TORCHINDUCTOR_CACHE_DIR names another one; None keeps none. On a
    CPU keep none: a process that is killed while it compiles leaves half a library, which the next one would load.
    """
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config
    import torch.fx.experimental._config as symbols
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    callback, before = Compilation(), os.environ.get(_CACHE_VARIABLE)
    stack = contextlib.ExitStack()
    # PyTorch writes its own choice into the variable, so that it looks like the user's.
    if before in (None, default_cache_dir()):
        os.environ[_CACHE_VARIABLE] = str(cache or stack.enter_context(tempfile.TemporaryDirectory()))
    try:
        with (
            # DDP's own splitting of graphs is for a whole model: a layer's gradients are sent when its backward ends.
            # A float that is no symbol, such as a dropout rate, saves a second tracing. A Linear's output may be mixed with a
            # tensor that is its attribute (teacher intervention), whose sizes are those of the batch.
            torch._dynamo.config.patch(
                optimize_ddp=False, specialize_float=True, force_nn_module_property_static_shapes=False
            ),
            # A batch of 32 rows and 32 tokens must not make a graph for equal sizes only.
            symbols.patch(use_duck_shape=False),  # type: ignore[attr-defined]
            # Without these two, every process would compile again: quantized products are autograd functions that leave
            # autocast.
            torch._functorch.config.patch(autograd_cache_allow_custom_autograd_functions=True),
            torch._inductor.config.patch(unsafe_marked_cacheable_functions=dict.fromkeys(_PURE, torch.__version__)),
        ):
            yield callback
    finally:
        callback.use(False)
        torch._dynamo.reset()  # the next stage's layers have graphs of their own
        os.environ.pop(_CACHE_VARIABLE, None)
        if before is not None:
            os.environ[_CACHE_VARIABLE] = before
        stack.close()
