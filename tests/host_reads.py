"""Waiting for a device, found without one."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def forbid():
    """Inside, nothing may wait for a device; it works on a CPU."""
    with _NoLists(), _NoHostReads():
        yield


class _NoHostReads(TorchDispatchMode):
    """Fails where code asks for a tensor's value, or makes a tensor out of Python numbers: on a GPU, the program would
    wait there until all work before is done."""

    READS = ("_local_scalar_dense", "equal", "lift_fresh", "masked_select", "nonzero", "repeat_interleave")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        assert name not in self.READS, f"aten.{name} waits for the device"
        assert not by_mask, "indexing by truth values waits for the device"
        return function(*args, **(kwargs or {}))


class _NoLists(TorchFunctionMode):
    """The same for what reads the memory of a CPU's tensor without an operation."""

    READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in self.READS, f"{function.__name__} waits for the device"
        return function(*args, **(kwargs or {}))
