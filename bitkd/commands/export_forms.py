"""The forms of an export: what writes each, and what is told about it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkd.files import writing
from bitkd.store.records import SizeRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitkd.commands.inference import DevSets, Measured

LIMIT = 0.001
"""Change of a score from which positions and pooler stay in fp16: 0.1 point (percent)."""

TERNARY = {"2": "2 bits", "1.6": "5 in a byte"}
"""--ternary-bits -> name of the packing."""


@dataclass(frozen=True)
class Student:
    """What is exported, and how."""

    model: "PreTrainedModel"
    tokenizer: Any
    """None if the artifact has none."""

    sets: "DevSets | None"
    """What it is measured on; None if no rows are at hand."""

    out: Path
    """The folder that is named, for messages."""

    int8: bool | None = None
    """Whether positions and pooler are stored at 8 bits; None: if the metric allows it."""

    ternary_bits: str | None = None
    """A key of TERNARY; None for 2 bits."""


@dataclass
class Exported:
    """What was written, and what is told about it."""

    model: "PreTrainedModel | None"
    """The model as the weights hold it, by which their file is explained; None if that is no safetensors file."""

    size: SizeRecord
    """Counted, of the written form."""

    metrics: dict[str, dict[str, float | None]] | None = None
    """Measured with the written form; None if it was not."""

    int8: list[str] = field(default_factory=list)
    """Names of the modules at 8 bits beside the quantized ones."""

    told: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """For the model card."""

    distance: dict[str, Any] | None = None
    """How far its logits are from the student's, for --json."""


@dataclass
class _Packing:
    """A student as it is packed, in memory."""

    model: "PreTrainedModel"
    size: SizeRecord
    int8: list[str]
    measured: "Measured | None"
    told: list[str]


def _pack(student: Student) -> _Packing:
    """The packed student, with positions and pooler at 8 bits if that is asked for, or if the metric allows it."""
    from bitkd.models.packed import int8_parts, pack_student
    from bitkd.models.size import measure
    from bitkd.quant.packing import PACKINGS

    model, sets = student.model, student.sets
    ternary = PACKINGS[TERNARY[student.ternary_bits or "2"]]
    names, told = int8_parts(model), list[str]()
    int8 = names if student.int8 else []
    packed = pack_student(model, ternary=ternary, int8=int8)
    measured = sets.measure(packed) if sets else None
    if names and student.int8 is None:
        parts = _describe(names)
        if sets is None or measured is None:
            told.append(
                f"{parts} are in fp16. To have them at 8 bits where the task's metric allows it, give the rows to measure it on "
                "with data.dir=FOLDER, or task=NAME, which loads them from the hub; --int8 takes 8 bits without measuring"
            )
        else:
            other = pack_student(model, ternary=ternary, int8=names)
            after = sets.measure(other)
            changes = f"{parts} at 8 bits, not in fp16: {_changes(measured, after)}"
            if all(abs(after.scores[dev] - measured.scores[dev]) < LIMIT for dev in after.scores):
                packed, int8, measured = other, names, after
                told.append(f"{changes}; they are at 8 bits")
            else:
                told.append(f"{changes}; they stay in fp16, because the change is not below 0.1 point")
    return _Packing(packed, measure(model, ternary, int8), int8, measured, told)


def _packed(student: Student, folder: Path) -> Exported:
    from bitkd.models.packed import save_packed

    made = _pack(student)
    with _saving(student.out):
        save_packed(made.model, folder, student.tokenizer)
    done = Exported(made.model, made.size, int8=made.int8, told=made.told)
    if student.sets is not None and made.measured is not None:
        _compare(done, student.sets.measure(student.model), made.measured)
    return done


def _unpacked(student: Student, folder: Path) -> Exported:
    from bitkd.export.unpacked import make_stock
    from bitkd.models.size import measure
    from bitkd.pretrained.tokenizer import save_tokenizer

    stock = make_stock(student.model)
    with _saving(student.out):
        stock.save_pretrained(folder)
        if student.tokenizer is not None:
            save_tokenizer(student.tokenizer, folder)
    size = replace(measure(student.model), file_mib=measure(stock).file_mib)
    done = Exported(stock, size)
    if getattr(stock.base_model, "pooler", done) is None and stock.base_model is stock:
        text = (
            "The encoder has no pooler, and transformers makes a random one: read last_hidden_state, not pooler_output."
        )
        done.told.append(text)
        done.notes.append(text)
    if size.precision.endswith("A32"):
        return done
    text = (
        "Activations are not quantized in this form, so its logits differ a little from those of the quantized student"
    )
    if student.sets is not None:
        before, after = student.sets.measure(student.model), student.sets.measure(stock)
        done.metrics = after.values
        if after.logits:
            done.distance = _distance(before, after)
            text += f": {_distance_text(done.distance)}"
        done.told.append(f"student → this form: {_changes(before, after)}")
    done.told.append(f"{text}.")
    done.notes.append(f"{text}.")
    return done


def _onnx(student: Student, folder: Path) -> Exported:
    from bitkd.export.onnx import export_onnx
    from bitkd.models.onnx import load_onnx

    made = _pack(student)
    with _saving(student.out):
        export_onnx(made.model, student.tokenizer, folder)
    done = Exported(None, made.size, int8=made.int8, told=made.told)
    if student.sets is not None and find_spec("onnxruntime"):
        written: Any = load_onnx(folder)
        _compare(done, student.sets.measure(student.model), student.sets.measure(written))
    elif student.sets is not None:
        done.told.append(
            "onnxruntime is not installed, so the ONNX model was not measured, and the model card has the metrics that the "
            "artifact records, if it records any; pip install 'bitkd[onnx]', and export again"
        )
    return done


FORMATS: dict[str, Callable[[Student, Path], Exported]] = {"packed": _packed, "unpacked": _unpacked, "onnx": _onnx}
"""--format -> what writes a student's files into a folder."""


def _describe(names: list[str]) -> str:
    """Parts that can go to 8 bits, in words."""
    kinds = {"positions": "position_embeddings", "pooler": "pooler"}
    found = [kind for kind, mark in kinds.items() if any(mark in name for name in names)]
    rest = [name for name in names if not any(mark in name for mark in kinds.values())]
    return " and ".join([*found, *(["head"] if rest else [])])


def _compare(done: Exported, before: "Measured", after: "Measured") -> None:
    """Tell how far the written form is from the student."""
    done.metrics = after.values
    text = f"student → this form: {_changes(before, after)}"
    if after.logits:
        done.distance = _distance(before, after)
        text += f"; its logits differ {_distance_text(done.distance)}"
    done.told.append(text)


def _changes(before: "Measured", after: "Measured") -> str:
    """The metrics of two models, on every dev set."""
    many = len(before.values) > 1
    return ", ".join(
        f"{f'{dev} ' if many else ''}{name} {_value(value)} → {_value(after.values[dev][name])}"
        for dev, values in before.values.items()
        for name, value in values.items()
        if name != "loss"
    )


def _value(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _distance(before: "Measured", after: "Measured") -> dict[str, Any]:
    """How far the logits of two models are apart, over all dev rows."""
    import torch

    one, other = (torch.cat(list(found.logits.values())) for found in (before, after))
    apart = (one - other).abs().amax(dim=1)
    changed = int((one.argmax(1) != other.argmax(1)).sum())
    return {"rows": len(one), "median": float(apart.median()), "largest": float(apart.max()), "labels": changed}


def _distance_text(found: dict[str, Any]) -> str:
    apart = f"by {found['median']:.2g} (median) to {found['largest']:.2g}"
    return f"on {found['rows']:,} dev rows {apart}, and {found['labels']} of the labels are others"


@contextmanager
def _saving(out: Path) -> Iterator[None]:
    """Around what writes weights: safetensors has an error of its own for a full disk."""
    from safetensors import SafetensorError

    with writing(out):
        try:
            yield
        except SafetensorError as error:
            raise OSError(str(error)) from error
