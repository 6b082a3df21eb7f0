"""CUDA graphs of training steps. The kernels of a forward and a backward pass are recorded once for each shape of a batch, and
started together from then on.

A step of BERT-base has over 2,000 kernels. To start them one by one takes the processor several times as long as they run.
A recording runs the same kernels on the same random numbers. Where a kernel adds numbers in any order, as that of the gradient
of token types does, two runs differ by rounding, recorded or not. Each recording is compared with its kernels one by one, and
is used only if it differs by no more.
"""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitkd.errors import InputError

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Losses = Callable[[Batch], tuple[list[str], Tensor]]
"""The names of a batch's loss terms, and the terms (terms,)."""

RECORDED_AT = 2
"""A shape is recorded when it comes for this time. Recording takes as long as some steps, and rare shapes do not come again."""

MOST = 100
"""Recorded shapes at most: each takes some memory of the device."""

OFF_AT_MOST = 0.1
"""How far a recording may be off, as a share of a tensor's norm. On an H200, one gradient of BERT-base is off, by 3e-7: that of
the token types' table. Other random numbers move many by 0.2 to 2, and so do missing kernels."""

ZERO_BELOW = 1e-3
"""How far it may be off as a share of the largest norm. The gradient of a key's bias is zero in exact arithmetic where no loss
reads scores, and consists of rounding."""

RUNS_APART = 4
"""How far it may be off as a multiple of how far two runs one by one are apart: of few numbers, that can be little by chance."""

KNOWN_CODE = ("bitkd.", "torch.", "torchmetrics.", "transformers.activations.", "transformers.models.bert.")
"""Modules whose code reads no values on the host in a training step. Others of transformers may: DeBERTa's positions do."""


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
    return setting == "true" or all(f"{part.__module__}.".startswith(KNOWN_CODE) for part in code)


@contextlib.contextmanager
def own_stream(device: torch.device | str) -> Iterator[None]:
    """Inside, a GPU works on a stream that can be recorded, which the default one cannot. Autograd adds up gradients on the
    stream of the step that came first, recorded or not, so all steps need one stream. Does nothing for other devices."""
    if torch.device(device).type != "cuda":
        yield
        return
    outside, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outside.wait_stream(stream)


@contextlib.contextmanager
def uncached_autocast(device: torch.device | str) -> Iterator[None]:
    """Autocast as it is, but on a GPU it keeps no casts of weights: they would be in memory that is gone when a graph is
    replayed. Steps that are not recorded need it too: the gradients of a weight that is used twice are added up elsewhere."""
    if torch.device(device).type != "cuda":
        yield
        return
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
        yield


class GraphedLosses:
    """Computes the loss terms of batches, and the gradients in their backward pass, from recorded graphs where it has one.

    Use it on a stream other than the default one (`own_stream`). All graphs share their memory: run a batch's backward pass
    before the next batch.

    module: whose parameters get the gradients. Their `grad` is always the same memory, for all shapes of batches.
    losses: what is recorded. It may read nothing on the host, autocast may keep no casts in it (`uncached_autocast`), and
    nothing but the batch may change from step to step, except parameters in place.
    """

    def __init__(self, module: nn.Module, losses: Losses) -> None:
        self._module, self._losses = module, losses
        self._seen: Counter[Any] = Counter()
        self._graphs: dict[Any, _Graph] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._pool: Any = None
        self._gives_up = False

    def __call__(self, batch: Batch) -> tuple[list[str], Tensor]:
        """The names and the terms (terms,), with a gradient."""
        shape = tuple((name, column.shape, column.dtype) for name, column in batch.items())
        if shape not in self._graphs:
            self._seen[shape] += 1
            if not self._gives_up and self._seen[shape] >= RECORDED_AT and len(self._graphs) < MOST:
                self._try_to_record(shape, batch)
        graph = self._graphs.get(shape)
        if graph is None:
            return self._losses(batch)
        for name, column in batch.items():
            graph.batch[name].copy_(column, non_blocking=True)
        terms: Tensor = _Replay.apply(graph.anchor, graph, self._use_gradients)
        return graph.names, terms

    def _try_to_record(self, shape: Any, batch: Batch) -> None:
        graph, error = self._record(batch)
        if error is None:
            self._graphs[shape] = graph
            return
        self._gives_up = True
        log.warning(
            "the kernels of a step recorded as a CUDA graph gave other numbers than one by one: %s; the stage goes on without "
            "recording others. trainer.cuda_graphs=false records none",
            error,
        )

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

    def _record(self, batch: Batch) -> "tuple[_Graph, str | None]":
        """The graph of a batch's shape, and what is wrong with the numbers that it gives, if anything. Random numbers, buffers
        and gradients are afterwards what they were."""
        device = next(iter(batch.values())).device
        batch = {name: column.clone() for name, column in batch.items()}
        state = torch.cuda.get_rng_state(device)
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        before = {parameter: parameter.grad for parameter in self._module.parameters() if parameter.requires_grad}

        def rewind() -> None:
            torch.cuda.set_rng_state(state, device)
            for buffer, value in buffers:
                buffer.copy_(value)

        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            terms, expected = self._run_one_by_one(batch, list(before))  # compiles and allocates, too
            for parameter in before:
                if parameter in expected and parameter not in self._gradients:
                    self._gradients[parameter] = torch.zeros_like(parameter)
                parameter.grad = self._gradients[parameter] if parameter in expected else None
            graph = _Graph(self._losses, batch, self._pool)
            kept = [(g, g.clone()) for p, g in self._gradients.items() if before[p] is g]
            wrong = self._compare(graph, terms, expected, rewind)
            for gradient, held in kept:
                gradient.copy_(held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"a training step cannot be recorded as a CUDA graph ({error}); use trainer.cuda_graphs=false"
            ) from error
        rewind()
        for parameter, value in before.items():
            parameter.grad = value
        return graph, wrong

    def _run_one_by_one(
        self, batch: Batch, parameters: list[nn.Parameter]
    ) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
        """The terms, and the gradients of their sum."""
        _, terms = self._losses(batch)
        with torch.autocast("cuda", enabled=False):
            gradients = torch.autograd.grad(terms.sum(), parameters, allow_unused=True)
        return terms.detach(), {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}

    def _compare(
        self, graph: "_Graph", terms: Tensor, expected: dict[nn.Parameter, Tensor], rewind: Callable[[], None]
    ) -> str | None:
        """What is wrong with the terms that the graph gives, or with the gradients of their sum; writes over all gradients.

        terms, expected: of its kernels one by one.  rewind: brings back random numbers and buffers.
        """
        rewind()
        torch._foreach_zero_(list(self._gradients.values()))
        graph.forward.replay()
        graph.gradient.fill_(1.0)
        graph.backward.replay()
        found = {parameter: self._gradients[parameter] for parameter in expected}
        if torch.equal(graph.terms, terms) and all(torch.equal(found[p], g) for p, g in expected.items()):
            return None
        rewind()
        terms_again, again = self._run_one_by_one(graph.batch, list(expected))
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        return find_error(
            *(dict(zip(graph.names, each, strict=True)) for each in (terms, terms_again, graph.terms))
        ) or find_error(*({names[p]: g for p, g in each.items()} for each in (expected, again, found)))


def find_error(expected: Mapping[str, Tensor], again: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """What in `found` is off by more than rounding, in words, with the tensor that is off the most; None if nothing is.

    Tensors by name, with the same names in all three.  expected, again: of two runs that are right and differ by rounding.
    A tensor may be off by RUNS_APART times what the two differ by and by OFF_AT_MOST of its norm; a small one by ZERO_BELOW of
    the largest norm. Tensors with other numbers than finite ones are right only if they are equal. Waits for the device.
    """
    norms = {name: _norm(tensor) for name, tensor in expected.items()}
    zero = ZERO_BELOW * max(filter(math.isfinite, norms.values()), default=0.0)
    wrong = []
    for name, tensor in expected.items():
        if torch.equal(found[name], tensor):
            continue
        off, apart = _norm(found[name] - tensor), _norm(again[name] - tensor)
        if not (math.isfinite(off) and off <= max(RUNS_APART * apart, OFF_AT_MOST * norms[name], zero)):
            wrong.append((off / norms[name] if norms[name] else math.inf, name, off, apart))
    if not wrong:
        return None
    _, name, off, apart = max(wrong, key=lambda each: math.inf if math.isnan(each[0]) else each[0])
    return (
        f"{name} (norm {norms[name]:.3g}) is off by {off:.3g}, while two runs one by one are {apart:.3g} apart; "
        f"{len(wrong)} of {len(expected)} such tensors are off"
    )


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))


class _Graph:
    """The recorded forward and backward pass of one batch's shape, in memory that its next replay writes again.

    anchor: a tensor with a gradient, for autograd.  terms: the results.  gradient: of the terms, read by the backward pass.
    """

    def __init__(self, losses: Losses, batch: Batch, pool: Any) -> None:
        self.batch = batch
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # The thread that prepares batches allocates pinned memory meanwhile, which the default mode forbids.
        settings: dict[str, Any] = {"pool": pool, "capture_error_mode": "thread_local"}
        settings["stream"] = torch.cuda.current_stream(next(iter(batch.values())).device)
        with torch.cuda.graph(self.forward, **settings):
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
