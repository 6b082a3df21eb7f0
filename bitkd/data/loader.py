"""A loader that prepares batches on a thread while the device computes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader

_END = object()


class Loader(DataLoader[Any]):
    """torch's DataLoader, which can prepare `ahead` batches on a thread of this process. torch itself prepares batches
    ahead only in loader processes; with those, or with ahead=0, this is its DataLoader.

    A thread helps where the device is a GPU: batches are pinned there, if `pin_memory` is set, and copied while the GPU
    computes. An exception of the thread is raised where the batch is taken, and the thread ends with the iteration.
    """

    def __init__(self, *arguments: Any, ahead: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ahead = ahead

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return _fetch_ahead(batches, self.ahead, self.pin_memory) if self.ahead and not self.num_workers else batches


def _fetch_ahead(batches: Iterator[Any], ahead: int, pin: bool) -> Iterator[Any]:
    """The same batches, `ahead` of them prepared on a thread. It begins with the first batch that is taken, so that an
    iteration which nobody begins does not move anything.
    """
    # A task of the pool never waits for its consumer, so the interpreter's end waits for `ahead` batches at most.
    pool = ThreadPoolExecutor(
        1, "bitkd-batches", *((torch.cuda.set_device, (torch.cuda.current_device(),)) if pin else ())
    )
    try:
        waiting: deque[Future[Any]] = deque(pool.submit(next, batches, _END) for _ in range(ahead))
        while (batch := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, batches, _END))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
