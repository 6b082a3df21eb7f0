"""Students and teachers as loaded models: how large the exported file is, and how long a batch takes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from bitkd.compare.exported import Speed
from bitkd.engine.attach import kernels_of
from bitkd.engine.timing import measure_latency
from bitkd.models.artifact import load_student
from bitkd.models.encoder import read_spec
from bitkd.models.packed import load_packed, save_packed
from bitkd.quant.layout import input_limits
from bitkd.quant.table import FP32
from bitkd.store.artifacts import WEIGHTS_FILE
from bitkd.store.records import MIB

SHAPES = ((1, 32), (8, 128))
"""Texts of a batch, tokens of a text."""

SECONDS = 0.5
"""For the rounds of one model and one shape; large models take longer, see `measure_latency`."""


def export_and_load(artifact: Path) -> tuple[PreTrainedModel, float]:
    """The student of an artifact as users load its exported file, and that file's size in MiB.

    A student without low-bit weights is not packed: its file is the artifact's own. Raises InputError if it cannot be
    loaded.
    """
    model = load_student(artifact)
    quant = read_spec(model).quant
    if min(quant.weight_bits, quant.resolved_embedding_bits) == FP32:
        return _with_fast_attention(model), (artifact / WEIGHTS_FILE).stat().st_size / MIB
    with TemporaryDirectory() as folder:
        packed = Path(folder) / "packed"
        save_packed(model, packed)
        return load_packed(packed), (packed / WEIGHTS_FILE).stat().st_size / MIB


def load_teacher(artifact: Path) -> PreTrainedModel:
    """The teacher as transformers runs it. Raises InputError if it cannot be loaded."""
    return _with_fast_attention(load_student(artifact))


def runs_by(student: PreTrainedModel) -> str:
    """What computes the layers of a student, in words."""
    return "torch" if kernels_of(student) is None else "the engine"


def time_students(students: Mapping[str, PreTrainedModel], teacher: PreTrainedModel | None) -> dict[str, list[Speed]]:
    """The speed of each student, by name. All of them and the teacher take turns; each batch is random token ids.

    It is the processor's time with one thread, so other programs on the machine change little.
    """
    models = {f"student {name}": model for name, model in students.items()}
    if teacher is not None:
        models["teacher"] = teacher
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: dict[str, list[Speed]] = {name: [] for name in students}
        for batch, length in _shapes(list(models.values())):
            calls = {name: _call(model, batch, length) for name, model in models.items()}
            latencies = measure_latency(calls, SECONDS * len(calls), cpu_time=True)
            of_teacher = latencies.get("teacher")
            for name in students:
                own = latencies[f"student {name}"]
                speed = Speed(
                    batch=batch,
                    length=length,
                    student_ms=_rounded(own.median * 1000),
                    teacher_ms=_rounded(of_teacher.median * 1000) if of_teacher else None,
                    times_faster=_rounded(own.times_faster_than(of_teacher)) if of_teacher else None,
                )
                found[name].append(speed)
        return found
    finally:
        torch.set_num_threads(threads)


def _with_fast_attention(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the attention that transformers takes by default, where its family has it."""
    if read_spec(model).quant.activation_bits == FP32 and model._can_set_attn_implementation():
        model.set_attn_implementation("sdpa")
    return model


def _shapes(models: list[PreTrainedModel]) -> list[tuple[int, int]]:
    """SHAPES, with texts that are no longer than every model can read."""
    longest = min((found for model in models if (found := input_limits(model).positions)), default=SHAPES[-1][1])
    return list(dict.fromkeys((batch, min(length, longest)) for batch, length in SHAPES))


def _call(model: PreTrainedModel, batch: int, length: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    return lambda: model(input_ids=ids, attention_mask=mask)


def _rounded(value: float) -> float:
    """Four digits: a record keeps no more than was measured."""
    return float(f"{value:.4g}")
