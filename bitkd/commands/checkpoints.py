"""The checkpoint that evaluate and predict use, and what it records of its task. It imports no torch, so that wrong input
is answered at once."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bitkd.config.load import choices, load_config
from bitkd.config.schema import DEMO, Config
from bitkd.data.hub import resolve_pretrained
from bitkd.data.task_checks import check_metrics, check_task
from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError
from bitkd.models.answers import ENCODER, kind_answered
from bitkd.models.labels import label_order
from bitkd.models.onnx_files import check_onnx_files, is_onnx
from bitkd.pretrained.files import check_checkpoint_files, read_config_data
from bitkd.processes.machine import check_machine
from bitkd.store.artifacts import STAGE_FILE, Store, read_artifact
from bitkd.store.exports import check_export, is_export, read_export
from bitkd.store.records import ExportRecord, StageRecord, TaskRecord
from bitkd.store.run_folder import MANIFEST, RunFolder


@dataclass(frozen=True)
class Checkpoint:
    """A classifier on disk, and the settings that it is used with."""

    folder: Path
    config: Config
    """The settings in force: what the checkpoint records of its task, and above it what was given."""

    record: StageRecord | ExportRecord | None
    """Of an artifact or an exported folder; None for a plain Hugging Face checkpoint."""

    labels: list[str] | None
    """Names of its outputs, if its config.json has none."""

    fixed_length: bool
    """Whether data.max_length is recorded or given; if not, a shorter model shortens it."""

    rows_in_files: bool = False
    """Whether the recorded task was read from files, whose folder is not recorded."""

    onnx: bool = False
    """Whether it is an ONNX model, which onnxruntime runs."""

    @property
    def task(self) -> TaskSpec | None:
        """None for a plain checkpoint that is used without `task=`."""
        return self.config.task if self.config.task.text else None


def open_checkpoint(name: str, settings: list[str], labels: str | None, needs_task: bool) -> Checkpoint:
    """The checkpoint in a folder or of a hub id, with its settings.

    settings: key=value.  labels: names of its outputs, separated by commas, if its config.json has none.
    needs_task: whether the task's files or columns are read.
    Raises InputError if there is no such checkpoint, if it has no trained head or is damaged, if its task is not known
    and needed, or if its labels are not those of the task.
    """
    given = load_config(settings, require=())
    check_machine(replace(given.trainer, devices=1))  # whatever a run had, one process reads the rows here
    folder = _find_folder(name)
    onnx = is_onnx(folder)
    if onnx:
        settings = on_cpu(settings, given)
    record = _record_of(folder)
    trained_for = record.trained_for if record else None
    own_task = any(text.startswith("task=") for text in settings)
    if needs_task and not own_task:
        if record is None:
            raise InputError(f"{name} is a plain checkpoint, which does not record its task; {_TASK}")
        if trained_for is None:
            raise InputError(
                f"{name} was written by an earlier version of bitkd and does not record its task's definition; {_TASK}"
            )
    config = load_config(settings, require=())
    if trained_for is not None:
        recorded: dict[str, Any] = {"data": {"max_length": trained_for.max_length}}
        if not own_task:
            recorded = _task_settings(trained_for)
        config = load_config(settings, require=(), recorded=recorded)
    if config.task.text or trained_for is not None:  # an artifact may come from somebody else
        check_task(config.task)
        check_metrics(config.task)
    if not config.task.text:
        kind: Any = _kind_of(folder)
        config = replace(config, task=replace(config.task, kind=kind))
    names = [text.strip() for text in labels.split(",")] if labels else None
    own = read_config_data(folder).get("id2label")
    if own and config.task.text and config.task.of_kind.labels is not False:
        label_order(list(own.values()), config.task.labels, names)
    fixed = trained_for is not None or any(text.startswith("data.max_length=") for text in settings)
    in_files = not own_task and trained_for is not None and trained_for.source == "files"
    return Checkpoint(folder, config, record, names, fixed, in_files, onnx)


def _kind_of(folder: Path) -> str:
    """The kind of task that a checkpoint answers, by its class. A bare encoder answers one only if it was trained to, which
    bitkd records, or sentence-transformers."""
    content = read_config_data(folder)
    kind = kind_answered(str((content.get("architectures") or [""])[0])) or ENCODER
    spec = content.get("bitkd")
    trained = (folder / "modules.json").is_file() or (isinstance(spec, dict) and spec.get("trained_head") is True)
    return kind if kind != ENCODER or trained else TaskSpec().kind


_TASK = f"give task= one of {', '.join(choices('task'))}, or a path to a YAML file"


def on_cpu(settings: list[str], given: Config) -> list[str]:
    """The settings with the processor that ONNX models run on. Raises InputError if another one is asked for."""
    trainer = given.trainer
    if trainer.accelerator not in ("auto", "cpu") or trainer.precision != "32-true":
        asked = f"trainer.accelerator={trainer.accelerator} trainer.precision={trainer.precision}"
        raise InputError(
            f"{asked}: bitkd runs ONNX models on the CPU, in the precision that they have; leave these settings out, or use "
            "the artifact or its packed form"
        )
    return [*settings, "trainer.accelerator=cpu"]


def check_source(checkpoint: Checkpoint) -> None:
    """Raise InputError if the rows of the checkpoint's task are in files, and their folder is not given."""
    config = checkpoint.config
    if config.data.dir is None and (checkpoint.rows_in_files or not config.task.hub.path):
        name, hub = config.task.name, config.task.hub.path
        other = f" (task={name} reads them from the hub)" if hub and name in choices("task") else ""
        raise InputError(f"the rows of task {name} are in files; give their folder with data.dir={other}")


def check_texts(checkpoint: Checkpoint, pairs: bool) -> None:
    """Raise InputError if an artifact's task reads another number of texts. A plain checkpoint does not record it. A model for
    sentence similarity reads two, or one to give its embedding.
    """
    record = checkpoint.record
    if record is not None and record.texts == 2 and not pairs and not checkpoint.config.task.of_kind.cosines:
        raise InputError(f"the checkpoint's task {record.task} reads two texts; give --text-pair too")
    if record is not None and record.texts == 1 and pairs:
        raise InputError(f"the checkpoint's task {record.task} reads one text; leave --text-pair out")


def check_rows(checkpoint: Checkpoint) -> None:
    """Raise InputError if the rows of the checkpoint's task have another number of texts than the checkpoint reads."""
    record, task = checkpoint.record, checkpoint.config.task
    if record is not None and record.texts != len(task.text):
        raise InputError(f"the checkpoint reads {record.texts} texts of a row; task {task.name} has {len(task.text)}")


def is_setting(word: str) -> bool:
    """Whether a word is key=value; if not, it names a file."""
    return re.match(r"[\w.\[\]-]+=", word) is not None


def check_folder(name: str, folder: Path) -> None:
    """Raise InputError if a folder is a run, or a damaged artifact or export.  name: as it was given, for messages."""
    if (folder / MANIFEST).is_file():
        stages = RunFolder.read(folder).stages
        raise InputError(
            f"{name} is a run; name one of its stages: "
            + (", ".join(str(Path(name) / stage) for stage in stages) or "none is finished yet")
        )
    if (folder / STAGE_FILE).is_file() and (damage := Store(folder.parent).find_damage(folder.name)):
        raise InputError(f"{damage}; run its pipeline again: the stage is recomputed")
    if is_export(folder):
        check_export(folder)


def _record_of(folder: Path) -> StageRecord | ExportRecord | None:
    if (folder / STAGE_FILE).is_file():
        return read_artifact(folder).stage
    record = read_export(folder) if is_export(folder) else None
    return record if record is not None and record.task else None


def _find_folder(name: str) -> Path:
    folder = resolve_pretrained(name, setting="CHECKPOINT ")
    check_folder(name, folder)
    if is_onnx(folder):
        check_onnx_files(folder)
    else:
        check_checkpoint_files(folder)
    spec = read_config_data(folder).get("bitkd")
    if isinstance(spec, dict) and spec.get("trained_head") is False:
        raise InputError(
            f"{folder} has no trained head (a task-agnostic or headless student); name a stage that has one"
        )
    return folder


def _task_settings(record: TaskRecord) -> dict[str, Any]:
    """The recorded settings, nested as in a file."""
    # Merged over the defaults alone: what the record lacks has its default, what is unknown is refused.
    task = load_config(require=(), recorded={"task": record.definition}).task
    data = {"max_length": record.max_length} | ({"dir": DEMO} if record.source == "demo" else {})
    return {"task": asdict(task), "data": data}


def text_columns(task: TaskSpec) -> list[list[str]]:
    """Names that the columns of the task's texts have in its files and on the hub, the task's own first."""
    names = [task.text, task.files.text, task.files.test_text, task.hub.text]
    return [list(columns) for columns in dict.fromkeys(tuple(columns) for columns in names if columns)]
