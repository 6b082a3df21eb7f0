"""The command export: a quantized student as a folder to use and to share."""

import argparse
import datetime
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkd import __version__
from bitkd.commands.checkpoints import Checkpoint, check_folder, check_source, on_cpu, open_checkpoint
from bitkd.commands.output import print_json
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.export.card import CardFacts, check_base_model, check_license, write_card
from bitkd.export.history import History, quantized_stages, read_history
from bitkd.files import follow_umask, new_folder, writing
from bitkd.models.answers import ANSWERS, ENCODER, kind_answered
from bitkd.models.marks import packed_record
from bitkd.models.onnx_files import check_installed, is_onnx
from bitkd.models.spec import StudentSpec, check_spec_data
from bitkd.pipeline.checks import check_files
from bitkd.pretrained.files import check_checkpoint_files, read_config_data
from bitkd.processes.libraries import quieten
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable
from bitkd.store.artifacts import STAGE_FILE, WEIGHTS_FILE, Artifact, read_artifact
from bitkd.store.exports import EXPORT_FORMAT, is_export, write_export
from bitkd.store.records import MIB, ExportRecord, SizeRecord, parse_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitkd.commands.inference import DevSets, Measured

LIMIT = 0.001
"""Change of a score from which positions and pooler stay in fp16: 0.1 point (percent)."""

UNTRAINED = "No trained head is recorded: the labels that it predicts mean nothing until its head is trained."
"""What is told of a classifier whose head was not trained."""

TERNARY = {"2": "2 bits", "1.6": "5 in a byte"}
"""--ternary-bits -> name of the packing."""


@dataclass(frozen=True)
class Source:
    """The artifact that is exported."""

    folder: Path
    spec: StudentSpec
    kind: str
    """The kind of task that its class answers."""

    artifact: Artifact | None
    """None for a folder that no stage made."""

    history: History

    @property
    def quantized(self) -> bool:
        """Whether it has low-bit weights."""
        return min(self.spec.quant.weight_bits, self.spec.quant.resolved_embedding_bits) < 32

    @property
    def untrained_head(self) -> bool:
        """Whether it has a head that was not trained."""
        return self.kind != ENCODER and not self.spec.trained_head


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


def export_command(arguments: argparse.Namespace) -> int:
    """Write an exported folder, and print where its bytes go; returns the exit code."""
    source = _open(arguments.artifact, arguments.format)
    out = _check_out(arguments.out, source.folder)
    _check_options(arguments, source)
    checkpoint = _open_rows(arguments, source)
    from bitkd.commands.inference import DevSets
    from bitkd.data.hub import has_tokenizer, load_tokenizer
    from bitkd.engine.build import compile_ahead
    from bitkd.models.artifact import load_student

    quieten()
    model = load_student(source.folder)
    tokenizer = load_tokenizer(source.folder) if has_tokenizer(source.folder) else None
    sets = DevSets(checkpoint, model) if checkpoint else None
    if arguments.format == "packed":
        compile_ahead()  # so that whoever loads the folder on this machine need not wait
    with _written(out) as folder:
        done = FORMATS[arguments.format](model, tokenizer, folder, sets, arguments)
        if source.untrained_head:
            done.told.append(UNTRAINED)
            done.notes.append(UNTRAINED)
        record = _record(source, arguments.format, done, checkpoint, sets)
        parts = _parts(folder, done)
        size = sum(part.size for part in parts)
        facts = CardFacts(
            title=out.name,
            record=record,
            history=source.history,
            counted=done.size,
            file_size=size,
            parts=parts,
            kind=source.kind,
            trained_head=source.spec.trained_head,
            quantized=source.quantized,
            split=source.spec.split,
            notes=done.notes,
            base_model=arguments.base_model,
            license=arguments.license,
        )
        with writing(out):
            write_export(folder, record)
            write_card(folder, facts)
            for file in folder.iterdir():
                follow_umask(file)
    if tokenizer is None:
        done.told.append(
            f"{source.folder} has no tokenizer: save one into {arguments.out} with tokenizer.save_pretrained"
        )
    _show(arguments, parts, size, done)
    return 0


# What is refused


def _open(name: str, form: str) -> Source:
    """The artifact of a name. Raises InputError if it cannot be exported in this form."""
    named = Path(name).expanduser()
    if not named.is_dir():
        raise InputError(f"{name}: there is no such folder; name the artifact of a finished stage")
    folder = named.resolve()
    check_folder(name, folder)
    if is_export(folder) or is_onnx(folder) or packed_record(content := read_config_data(folder)) is not None:
        raise InputError(f"{name} is an export already; name the artifact that it was made of")
    if content.get("bitkd") is None:
        raise InputError(
            f"{name} is a plain Hugging Face checkpoint, not an artifact of bitkd; make a quantized student of it with "
            "`bitkd run`"
        )
    check_checkpoint_files(folder)
    where = f"{folder}: the bitkd section of its config.json"
    check_spec_data(content["bitkd"], where)
    spec = parse_record(StudentSpec, json.dumps(content["bitkd"]), where, "run its pipeline again")
    kind = kind_answered(str((content.get("architectures") or [""])[0])) or ENCODER
    artifact = read_artifact(folder) if (folder / STAGE_FILE).is_file() else None
    source = Source(folder, spec, kind, artifact, read_history(named))
    if form != "unpacked" and not source.quantized:
        others = [str(named.parent / stage) for stage in quantized_stages(named)]
        found = f"name a quantized stage: {', '.join(others)}" if others else "name a stage of 1 or 2 bits"
        raise InputError(
            f"{name} is an FP32 student, which has nothing to pack; {found} (--format unpacked takes any student)"
        )
    return source


def _check_out(name: str, artifact: Path) -> Path:
    """Its absolute path. Raises InputError if it is the current directory, lies in the artifact, or exists and is not empty."""
    out = Path(name).expanduser()
    if out.resolve() == Path.cwd():
        raise InputError(f"{name} is the current directory, which export cannot replace; name a new folder in it")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise InputError(f"{name} exists already and is not overwritten; name a new folder, or delete it")
    out = out.resolve()
    if out.is_relative_to(artifact):
        raise InputError(f"{name} lies in the artifact, which is not changed; name a folder elsewhere")
    return out


def _check_options(arguments: argparse.Namespace, source: Source) -> None:
    if arguments.format == "onnx":
        if source.kind not in ("text_classification", ENCODER):
            raise InputError(
                f"--format onnx writes classifiers; {source.folder} is a {ANSWERS[source.kind].noun}: use packed or unpacked"
            )
        check_installed("onnx")
    check_license(arguments.license)
    check_base_model(arguments.base_model)
    if arguments.format == "unpacked" and (arguments.int8 is not None or arguments.ternary_bits):
        raise InputError(
            "--int8, --no-int8 and --ternary-bits are for --format packed and onnx; an unpacked folder has FP32 values"
        )
    if arguments.ternary_bits and 2 not in (source.spec.quant.weight_bits, source.spec.quant.resolved_embedding_bits):
        raise InputError(f"--ternary-bits={arguments.ternary_bits}: {source.folder} has no ternary (2-bit) weights")


def _open_rows(arguments: argparse.Namespace, source: Source) -> Checkpoint | None:
    """The artifact with its task, if rows to measure on are at hand. Raises InputError if they are named and not there."""
    settings = arguments.settings
    trained_for = source.artifact.stage.trained_for if source.artifact else None
    named = any(word.startswith(("task=", "data.dir=")) for word in settings)
    if not named and (trained_for is None or trained_for.source != "demo" or not source.spec.trained_head):
        load_config(settings, require=())
        return None
    if arguments.format == "onnx":
        settings = on_cpu(settings, load_config(settings, require=()))  # where onnxruntime's results are
    checkpoint = open_checkpoint(str(source.folder), settings, None, needs_task=True)
    check_source(checkpoint)
    files = checkpoint.config.task.files
    check_files(checkpoint.config, [files.train, *files.dev.values()])
    return checkpoint


# What is written


@dataclass
class _Packing:
    """A student as it is packed, in memory."""

    model: "PreTrainedModel"
    size: SizeRecord
    int8: list[str]
    measured: "Measured | None"
    told: list[str]


def _pack(model: "PreTrainedModel", sets: "DevSets | None", arguments: argparse.Namespace) -> _Packing:
    """The packed student, with positions and pooler at 8 bits if that is asked for, or if the metric allows it."""
    from bitkd.models.packed import int8_parts, pack_student
    from bitkd.models.size import measure
    from bitkd.quant.packing import PACKINGS

    ternary = PACKINGS[TERNARY[arguments.ternary_bits or "2"]]
    names, told = int8_parts(model), list[str]()
    int8 = names if arguments.int8 else []
    packed = pack_student(model, ternary=ternary, int8=int8)
    measured = sets.measure(packed) if sets else None
    if names and arguments.int8 is None:
        parts = _describe(names)
        if sets is None or measured is None:
            told.append(
                f"{parts} are in fp16. To have them at 8 bits where the task's metric allows it, give the rows to measure it on "
                "with data.dir=FOLDER, or task=NAME, which loads them from the hub; --int8 takes 8 bits without measuring"
            )
        else:
            other = pack_student(model, ternary=ternary, int8=names)
            after = sets.measure(other)
            changes = _changes(measured, after)
            if all(abs(after.scores[dev] - measured.scores[dev]) < LIMIT for dev in after.scores):
                packed, int8, measured = other, names, after
                told.append(f"{changes}: {parts} at 8 bits")
            else:
                told.append(f"{changes}: {parts} stay in fp16, because the change is not below 0.1 point")
    return _Packing(packed, measure(model, ternary, int8), int8, measured, told)


def _packed(
    model: "PreTrainedModel", tokenizer: Any, folder: Path, sets: "DevSets | None", arguments: argparse.Namespace
) -> Exported:
    from bitkd.models.packed import save_packed

    made = _pack(model, sets, arguments)
    with _saving(arguments):
        save_packed(made.model, folder, tokenizer)
    metrics = made.measured.values if made.measured else None
    return Exported(made.model, made.size, metrics, made.int8, made.told)


def _unpacked(
    model: "PreTrainedModel", tokenizer: Any, folder: Path, sets: "DevSets | None", arguments: argparse.Namespace
) -> Exported:
    from bitkd.export.unpacked import make_stock
    from bitkd.models.size import measure
    from bitkd.pretrained.tokenizer import save_tokenizer

    stock = make_stock(model)
    with _saving(arguments):
        stock.save_pretrained(folder)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
    size = replace(measure(model), file_mib=measure(stock).file_mib)
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
    if sets is not None:
        before, after = sets.measure(model), sets.measure(stock)
        done.metrics = after.values
        if after.logits:
            done.distance = _distance(before, after)
            text += f": {_distance_text(done.distance)}"
        done.told.append(f"student → this form: {_changes(before, after)}")
    done.told.append(f"{text}.")
    done.notes.append(f"{text}.")
    return done


def _onnx(
    model: "PreTrainedModel", tokenizer: Any, folder: Path, sets: "DevSets | None", arguments: argparse.Namespace
) -> Exported:
    from bitkd.export.onnx import export_onnx
    from bitkd.models.onnx import load_onnx

    made = _pack(model, sets, arguments)
    with _saving(arguments):
        export_onnx(made.model, tokenizer, folder)
    done = Exported(None, made.size, int8=made.int8, told=made.told)
    if sets is not None and find_spec("onnxruntime"):
        written: Any = load_onnx(folder)
        before, after = sets.measure(model), sets.measure(written)
        done.metrics, done.distance = after.values, _distance(before, after)
        text = f"its logits differ {_distance_text(done.distance)}"
        done.told.append(f"student → this form: {_changes(before, after)}; {text}")
    elif sets is not None:
        done.told.append(
            "onnxruntime is not installed, so the ONNX model was not measured, and the model card has the metrics that the "
            "artifact records, if it records any; pip install 'bitkd[onnx]', and export again"
        )
    return done


FORMATS: dict[str, Callable[..., Exported]] = {"packed": _packed, "unpacked": _unpacked, "onnx": _onnx}
"""--format -> what writes it."""


def _describe(names: list[str]) -> str:
    """Parts that can go to 8 bits, in words."""
    kinds = {"positions": "position_embeddings", "pooler": "pooler"}
    found = [kind for kind, mark in kinds.items() if any(mark in name for name in names)]
    rest = [name for name in names if not any(mark in name for mark in kinds.values())]
    return " and ".join([*found, *(["head"] if rest else [])])


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


def _record(
    source: Source, form: str, done: Exported, checkpoint: Checkpoint | None, sets: "DevSets | None"
) -> ExportRecord:
    stage = source.artifact.stage if source.artifact else None
    recorded = source.artifact.metrics.sets if source.artifact else {}
    trained_for = stage.trained_for if stage else None
    task = None
    if checkpoint and sets:
        from bitkd.pipeline.stage_record import task_record

        task = replace(task_record(checkpoint.config), max_length=sets.max_length)
        if trained_for is None and (stage is None or stage.task == checkpoint.config.task.name):
            trained_for = task  # nothing else is recorded
    return ExportRecord(
        format=EXPORT_FORMAT,
        form=form,
        task=str(trained_for.definition["name"]) if trained_for else "",
        texts=len(trained_for.definition["text"]) if trained_for else 0,
        stage=stage.name if stage else "",
        fingerprint=stage.fingerprint if stage else "",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={"bitkd": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        metrics=recorded if done.metrics is None else done.metrics,
        measured_on=task if done.metrics is not None else None,
        trained_for=trained_for,
    )


@contextmanager
def _saving(arguments: argparse.Namespace) -> Iterator[None]:
    """Around what writes weights: safetensors has an error of its own for a full disk."""
    from safetensors import SafetensorError

    with writing(Path(arguments.out)):
        try:
            yield
        except SafetensorError as error:
            raise OSError(str(error)) from error


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` at the end. Whatever interrupts the work, nothing of it is left."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(75)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if main else None
    try:
        with new_folder(out) as folder:
            yield folder
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


# What is printed


def _parts(folder: Path, done: Exported) -> list[Any]:
    """The parts of the written weights."""
    from bitkd.export.sizes import FilePart, file_parts

    if done.model is not None:
        return file_parts(folder / WEIGHTS_FILE, done.model)
    return [FilePart(file.name, file.stat().st_size, "") for file in sorted(folder.glob("*.onnx*"))]


def _show(arguments: argparse.Namespace, parts: list[Any], size: int, done: Exported) -> None:
    counted = round(done.size.file_mib * MIB)
    if arguments.json:
        print_json(
            {
                "folder": arguments.out,
                "format": arguments.format,
                "bytes": size,
                "parts": [{"part": part.name, "bytes": part.size, "types": part.types} for part in parts],
                "counted_bytes": counted,
                "size": asdict(done.size),
                "int8": done.int8,
                "metrics": done.metrics,
                **({"logits": done.distance} if done.distance else {}),
                "notes": done.told,
            }
        )
        return
    console = Console()
    rows = [
        [part.name, f"{part.size:,}", f"{part.size / MIB:.3f}", f"{part.size / size:.1%}", part.types] for part in parts
    ]
    rows.append(["the whole file", f"{size:,}", f"{size / MIB:.3f}", "100.0%", ""])
    header = ["part", "bytes", "MiB", "share", "types"]
    console.print(FittedTable(header, rows, optional=("types", "share"), sections=[len(parts)]))
    if arguments.format != "onnx":
        console.print(
            f"counted: {counted:,} bytes ({size / counted - 1:+.1%} in the file, mostly its header); "
            f"{done.size.paper_mib:.3f} MiB by the convention of papers ({done.size.precision})"
        )
    for line in done.told:
        console.print(line)
    console.print(f"{arguments.format}: {arguments.out}")
