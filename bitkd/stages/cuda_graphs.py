"""CUDA graphs of training steps. The kernels of a forward and a backward pass are recorded once for each shape of a batch, and
started together from then on.

A step of BERT-base has over 2,000 kernels. To start them one by one takes the processor several times as long as they run.
Results are exactly those of the same kernels started one by one.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bitkd.errors import InputError

Batch = dict[str, Tensor]
Losses = Callable[[Batch], tuple[list[str], Tensor]]
"""The names of a batch's loss terms, and the terms (terms,)."""

RECORDED_AT = 3
"""A shape is recorded when it comes for this time. Recording takes as long as some steps, and rare shapes do not come again."""

MOST = 100
"""Recorded shapes at most: each takes some memory of the device."""

KNOWN_CODE = {"bitkd", "torch", "transformers", "torchmetrics"}
"""Packages whose code reads no values on the host in a training step."""


def graphs_problem(device: torch.device | str, processes: int) -> str | None:
    """Why steps cannot be recorded here, with advice; None if they can."""
    kind = torch.device(device).type
    if kind != "cuda":
        return f"graphs are recorded on CUDA devices, not on {kind}"
    if processes > 1:
        return f"DDP sends gradients between the kernels of a backward pass, and there are {processes} processes"
    return None


def check_graphs(setting: str, device: torch.device | str, processes: int) -> None:
    """Raise InputError if `trainer.cuda_graphs` is `true` and steps cannot be recorded here."""
    if setting == "true" and (problem := graphs_problem(device, processes)):
        raise InputError(f"trainer.cuda_graphs=true, but {problem}; use trainer.cuda_graphs=auto")


def should_record(setting: str, device: torch.device | str, processes: int, code: Iterable[Any]) -> bool:
    """Whether a stage's steps are recorded. `auto` leaves out code that bitkd does not know: it may read values on the host,
    which no graph can.

    code: the modules and functions that a step runs.
    """
    if setting == "false" or graphs_problem(device, processes):
        return False
    return setting == "true" or {part.__module__.partition(".")[0] for part in code} <= KNOWN_CODE


class GraphedLosses:
    """Computes the loss terms of batches, and the gradients in their backward pass, from recorded graphs where it has one.

    module: whose parameters get the gradients. Their `grad` is always the same memory, for all shapes of batches.
    losses: what is recorded. It may read nothing on the host, and nothing but the batch may change from step to step, except
    parameters in place.
    """

    def __init__(self, module: nn.Module, losses: Losses) -> None:
        self._module, self._losses = module, losses
        self._seen: Counter[Any] = Counter()
        self._graphs: dict[Any, _Graph] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._pool: Any = None

    def __call__(self, batch: Batch) -> tuple[list[str], Tensor]:
        """The names and the terms (terms,), with a gradient."""
        shape = tuple((name, column.shape, column.dtype) for name, column in batch.items())
        if shape not in self._graphs:
            self._seen[shape] += 1
            if self._seen[shape] < RECORDED_AT or len(self._graphs) >= MOST:
                return self._losses(batch)
            self._graphs[shape] = self._record(batch)
        graph = self._graphs[shape]
        for name, column in batch.items():
            graph.batch[name].copy_(column, non_blocking=True)
        terms: Tensor = _Replay.apply(graph.anchor, graph, self._use_gradients)
        return graph.names, terms

    def _use_gradients(self) -> None:
        """Make the recorded memory the parameters' gradients, with what they hold so far."""
        cleared = []
        for parameter, gradient in self._gradients.items():
            if parameter.grad is None:
                cleared.append(gradient)
            elif parameter.grad is not gradient:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        if cleared:
            torch._foreach_zero_(cleared)

    def _record(self, batch: Batch) -> "_Graph":
        """Runs the losses twice, so that everything is compiled and allocated, and then records them. Random numbers, buffers and
        gradients are afterwards what they were."""
        device = next(iter(batch.values())).device
        batch = {name: column.clone() for name, column in batch.items()}
        state = torch.cuda.get_rng_state(device)
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        parameters = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        before = [parameter.grad for parameter in parameters]
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                used = self._run_twice(batch, parameters)
            torch.cuda.current_stream(device).wait_stream(stream)
            for parameter, is_used in zip(parameters, used, strict=True):
                if is_used and parameter not in self._gradients:
                    self._gradients[parameter] = torch.zeros_like(parameter)
                parameter.grad = self._gradients[parameter] if is_used else None
            return _Graph(self._losses, batch, self._pool)
        except RuntimeError as error:
            raise InputError(
                f"a training step cannot be recorded as a CUDA graph ({error}); use trainer.cuda_graphs=false"
            ) from error
        finally:
            torch.cuda.set_rng_state(state, device)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient

    def _run_twice(self, batch: Batch, parameters: list[nn.Parameter]) -> list[bool]:
        """Which parameters get a gradient."""
        for _ in range(2):
            with _uncached_autocast():
                _, terms = self._losses(batch)
            with torch.autocast("cuda", enabled=False):
                gradients = torch.autograd.grad(terms.sum(), parameters, allow_unused=True)
        return [gradient is not None for gradient in gradients]


class _Graph:
    """The recorded forward and backward pass of one batch's shape, in memory that its next replay writes again.

    anchor: a tensor with a gradient, for autograd.  terms: the results.  gradient: of the terms, read by the backward pass.
    """

    def __init__(self, losses: Losses, batch: Batch, pool: Any) -> None:
        self.batch = batch
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # The thread that prepares batches allocates pinned memory meanwhile, which the default mode forbids.
        settings = {"pool": pool, "capture_error_mode": "thread_local"}
        # Casts of weights that autocast keeps would be in memory that is gone when the graph is replayed.
        with _uncached_autocast(), torch.cuda.graph(self.forward, **settings):
            self.names, terms = losses(batch)
        self.gradient = torch.zeros_like(terms)
        with torch.autocast("cuda", enabled=False), torch.cuda.graph(self.backward, **settings):
            terms.backward(self.gradient)
        self.terms = terms.detach()
        self.anchor = torch.zeros((), device=terms.device, requires_grad=True)


class _Replay(torch.autograd.Function):
    """The terms of a graph whose batch was filled in; its backward adds to the parameters' gradients."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graph: _Graph, use_gradients: Callable[[], None]) -> Tensor:
        ctx.graph, ctx.use_gradients = graph, use_gradients
        graph.forward.replay()
        return graph.terms.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.use_gradients()
        ctx.graph.gradient.copy_(gradient)
        ctx.graph.backward.replay()
        return None, None, None


@contextlib.contextmanager
def _uncached_autocast() -> Iterator[None]:
    """Autocast as it is, but it keeps no casts."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
        yield
