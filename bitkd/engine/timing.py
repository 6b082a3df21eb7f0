"""How long calls take, side by side: they take turns, so that whatever else the machine does meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SLICE_SECONDS = 0.02
"""A round repeats a call until this much time has passed, so that the clock's own cost does not count."""

LONG_SECONDS = 1.0
"""On a CPU, a call of so long needs no second one to be ready."""

MIN_ROUNDS = 3


@dataclass(frozen=True)
class Latency:
    """How long a call took, in each round."""

    seconds: tuple[float, ...]
    """Seconds of one call, by round."""

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return statistics.median(self.seconds)

    def times_faster_than(self, other: "Latency") -> float:
        """The median of the rounds' ratios: 2.0 if this call takes half of the other's time.

        Both must come from one `measure_latency`: a round's two times were taken next to each other.
        """
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def measure_latency(
    calls: Mapping[str, Callable[[], object]],
    seconds: float = 3.0,
    *,
    device: torch.device | str = "cpu",
    cpu_time: bool = False,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, Latency]:
    """The latency of each call, in turns. Each is called up to three times before, which is not counted.

    calls: by name; each runs one model on one batch, such as `lambda: model(**batch)`. Gradients are off.
    seconds: time for all of them together; at least `min_rounds` rounds are run, whatever they take.
    device: where they compute; the clock waits for a GPU.
    cpu_time: count the processor time of this process instead of the time that passes. With one thread, it is what the
    call costs, also on a machine that others use. With several threads, it adds up the time of all of them.

    To time a student beside its teacher in a few seconds:

        torch.set_num_threads(1)
        found = measure_latency({"teacher": lambda: teacher(**batch), "student": lambda: student(**batch)}, cpu_time=True)
        found["student"].median                             # seconds of one batch
        found["student"].times_faster_than(found["teacher"])
    """
    clock = time.process_time if cpu_time else time.perf_counter
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        repeats = {name: _repeats(call, wait) for name, call in calls.items()}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or any(len(found) < min_rounds for found in times.values()):
            for name, call in calls.items():
                began = clock()
                for _ in range(repeats[name]):
                    call()
                wait()
                times[name].append((clock() - began) / repeats[name])
    return {name: Latency(tuple(found)) for name, found in times.items()}


def _repeats(call: Callable[[], object], wait: Callable[[], None]) -> int:
    """Calls that fill a round's slice. The first two do not tell: they may compile, allocate or capture a CUDA graph."""
    for _ in range(3):
        began = time.perf_counter()
        call()
        wait()
        took = time.perf_counter() - began
        if took > LONG_SECONDS and wait is _nothing:
            break
    return max(1, round(SLICE_SECONDS / max(took, 1e-9)))


def _nothing() -> None:
    """Nothing to wait for."""
