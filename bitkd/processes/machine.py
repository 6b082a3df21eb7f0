"""Whether this machine has the processors that the trainer's settings ask for."""

import logging
import os
import platform
import warnings
from dataclasses import dataclass

from bitkd.config.schema import Config, TrainerSpec
from bitkd.data.tasks import CandidatePrecision
from bitkd.engine.cpu import read_cpu_fields, read_cpu_flags
from bitkd.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """What torch can compute on here."""

    gpus: int
    """CUDA (or ROCm) devices."""

    apple_gpu: bool = False
    tpu: bool = False
    reason: str = ""
    """Why there is no CUDA device."""

    def __str__(self) -> str:
        found = [f"a CPU with {os.cpu_count()} cores"]
        found += [f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}"] if self.gpus else []
        found += ["an Apple GPU"] if self.apple_gpu else []
        return " and ".join(found)

    def processor(self, accelerator: str) -> str:
        """The kind of processor that Lightning takes for `trainer.accelerator`: cpu, cuda, mps or tpu."""
        if accelerator == "auto":
            return "tpu" if self.tpu else "mps" if self.apple_gpu else "cuda" if self.gpus else "cpu"
        if accelerator == "gpu":
            return "mps" if self.apple_gpu else "cuda"
        return accelerator


def check_machine(spec: TrainerSpec) -> None:
    """Raise InputError if this machine lacks what the settings ask for. The default settings need no torch."""
    if not _asks_for_more(spec):
        return
    machine = find_machine()
    processor = machine.processor(spec.accelerator)
    has = f"this machine has {machine}"
    counts = {"cuda": machine.gpus, "mps": int(machine.apple_gpu), "tpu": int(machine.tpu)}
    if counts.get(processor) == 0:
        reason = f" ({machine.reason})" if processor == "cuda" and machine.reason else ""
        raise InputError(
            f"trainer.accelerator={spec.accelerator}: there is none that PyTorch can use{reason}; {has}; "
            "use trainer.accelerator=auto or cpu"
        )
    if processor in ("cuda", "mps") and spec.devices > counts[processor]:
        raise InputError(
            f"trainer.devices={spec.devices} is more than there are: {has}; use at most {counts[processor]}, or "
            "trainer.accelerator=cpu"
        )
    if spec.cuda_graphs == "true" or spec.compile == "true":
        from bitkd.stages.compiling import check_compiler
        from bitkd.stages.cuda_graphs import check_graphs

        check_graphs(spec.cuda_graphs, processor, spec.devices * spec.num_nodes)
        check_compiler(spec.compile, processor)
    if spec.precision == "16-mixed" and processor == "cpu":
        raise InputError(
            f"trainer.precision=16-mixed needs a GPU; {has}, which cannot train in float16; use trainer.precision=32-true"
        )


def note_emulation(config: Config) -> None:
    """Print a note if the settings ask for a precision that the processor only emulates."""
    augmentation = config.task.augmentation
    asked: dict[str, str] = {"trainer.precision": config.trainer.precision}
    if augmentation.enabled and augmentation.path is None:
        asked["task.augmentation.precision"] = augmentation.precision
    settings = " and ".join(f"{key}=bf16-mixed" for key, precision in asked.items() if precision == "bf16-mixed")
    if not settings:
        return
    accelerator = config.trainer.accelerator
    processor = "cpu" if accelerator == "cpu" else find_machine().processor(accelerator)
    if processor == "cpu" and not _cpu_has_bf16():
        log.warning("%s: this CPU has no bf16 instructions and emulates them, many times slower than 32-true", settings)
    elif processor == "cuda" and not _gpu_has_bf16():
        log.warning("%s: this GPU has no bf16 arithmetic and emulates it; 16-mixed and 32-true are faster", settings)


def find_machine() -> Machine:
    """Ask torch what there is, without starting CUDA."""
    import torch

    with warnings.catch_warnings(record=True) as caught:  # such as a driver that is too old
        warnings.simplefilter("always")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reason = ""
    if not gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if torch.version.cuda is None and torch.version.hip is None:
            reason = f"torch {torch.__version__} is built without CUDA"
        elif caught:
            reason = str(caught[0].message).splitlines()[0]
        elif visible is not None:
            reason = f"CUDA_VISIBLE_DEVICES={visible}"
    return Machine(gpus, torch.backends.mps.is_available(), _has_tpu(), reason)


def _asks_for_more(spec: TrainerSpec) -> bool:
    if spec.precision == "16-mixed" or "true" in (spec.compile, spec.cuda_graphs):
        return True
    return spec.accelerator not in ("auto", "cpu") or (spec.devices > 1 and spec.accelerator != "cpu")


def _has_tpu() -> bool:
    from importlib.util import find_spec

    return find_spec("torch_xla") is not None


def describe_cpu() -> str:
    """The processor's name and the instructions that low-bit products can use, such as "AMD EPYC 9R14 (avx2, avx512)"."""
    fields = read_cpu_fields()
    if not fields:
        return platform.processor() or platform.machine()
    words = read_cpu_flags()
    found = [shown for flag, shown in _INSTRUCTIONS.items() if flag in words]
    name = fields.get("model name") or platform.machine()
    return f"{name} ({', '.join(found) or 'no vector instructions that matter here'})"


_INSTRUCTIONS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx512vbmi": "vbmi",
    "avx512_bf16": "bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimddp": "dotprod",
}
"""Names in /proc/cpuinfo, and how they are shown."""


def augmentation_precision(config: Config) -> CandidatePrecision:
    """The precision that task.augmentation.precision is on this machine. `auto` is bf16-mixed only where bf16 instructions
    are known to be there; it needs torch if trainer.accelerator is not cpu.
    """
    asked = config.task.augmentation.precision
    if asked != "auto":
        return asked
    accelerator = config.trainer.accelerator
    processor = "cpu" if accelerator == "cpu" else find_machine().processor(accelerator)
    known = processor == "cuda" or (processor == "cpu" and bool(read_cpu_fields()))
    return "bf16-mixed" if known and has_bf16(processor) else "32-true"


def has_bf16(device: str) -> bool:
    """Whether a processor has instructions for bf16; True where it cannot be found out.  device: cpu or cuda."""
    return _gpu_has_bf16() if device == "cuda" else _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bf16; True where it cannot be found out."""
    if not read_cpu_fields():
        return platform.system() != "Windows"
    return bool(read_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def _gpu_has_bf16() -> bool:
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)
