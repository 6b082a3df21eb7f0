"""What was measured of the student that a run ends in, as `bitkd export` writes it: its file and its speed."""

import platform
from dataclasses import dataclass

from bitkd.engine.cpu import read_cpu_fields


@dataclass(frozen=True)
class Speed:
    """How long student and teacher take for one batch, in turns."""

    batch: int
    """Texts."""

    length: int
    """Tokens of each text; none is padding."""

    student_ms: float
    teacher_ms: float | None
    """None for a run without a teacher."""

    times_faster: float | None
    """The teacher's time divided by the student's: the median over the rounds."""


@dataclass(frozen=True)
class Exported:
    """The final student as a file, and at work."""

    file_mib: float | None
    """Size of its model.safetensors; None if it was not measured."""

    speeds: list[Speed]
    machine: str
    """The processor of `speeds`, and how many threads; empty without speeds."""

    runs_by: str = ""
    """What computed the student's layers: the engine, or torch; empty without speeds."""

    missing: str = ""
    """Why there is no file or no speed, in words."""

    def speed(self, shape: tuple[int, int]) -> Speed | None:
        """The speed with batches of this many texts and tokens; None if it was not measured."""
        return next((speed for speed in self.speeds if (speed.batch, speed.length) == shape), None)


def processor_name() -> str:
    """Name of this machine's processor, such as AMD EPYC 7B13 64-Core Processor."""
    return read_cpu_fields().get("model name") or platform.processor() or platform.machine() or "unknown processor"
