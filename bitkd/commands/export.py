"""The command export: a quantized student as a folder to use and to share."""

import argparse
import datetime
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkd import __version__
from bitkd.commands.checkpoints import Checkpoint, check_folder, check_source, on_cpu, open_checkpoint
from bitkd.commands.export_forms import FORMATS, Exported, Student
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
from bitkd.quant.spec import QuantSpec
from bitkd.quant.table import LEVELS, TERNARY
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable
from bitkd.store.artifacts import STAGE_FILE, WEIGHTS_FILE, Artifact, read_artifact
from bitkd.store.exports import EXPORT_FORMAT, is_export, write_export
from bitkd.store.records import MIB, ExportRecord, parse_record

if TYPE_CHECKING:
    from bitkd.commands.inference import DevSets

UNTRAINED = "No trained head is recorded: the labels that it predicts mean nothing until its head is trained."
"""What is told of a classifier whose head was not trained."""


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
        student = Student(model, tokenizer, sets, Path(arguments.out), arguments.int8, arguments.ternary_bits)
        done = FORMATS[arguments.format](student, folder)
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
    if arguments.ternary_bits and not _is_ternary(source.spec.quant):
        raise InputError(
            f"--ternary-bits={arguments.ternary_bits}: {source.folder} has no ternary weights (2 bits, three values); leave the "
            "option out"
        )


def _is_ternary(quant: QuantSpec) -> bool:
    return TERNARY in (quant.weight_bits, quant.resolved_embedding_bits) and quant.levels == LEVELS[0]


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
