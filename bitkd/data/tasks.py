"""What a task is: its texts, its labels, its metrics, and where its rows come from. All of it is data (conf/task)."""

from dataclasses import dataclass, field

from bitkd.errors import InputError

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman", "pearson_spearman")
"""Metric names; pearson_spearman is the mean of both, as GLUE ranks STS-B by."""


@dataclass
class FilesSpec:
    """A task's files on disk, tab-separated, UTF-8, not quoted (as GLUE's are)."""

    folder: str = ""
    """Folder under data.dir; the files may also stand in data.dir itself."""

    train: str = "train.tsv"
    """File of the training rows."""

    dev: dict[str, str] = field(default_factory=dict)
    """Name of each dev set -> its file; the first one selects checkpoints."""

    header: list[str] | None = None
    """Column names of files without a header line; null reads the first line."""

    text: list[str] | None = None
    """Columns of the texts where they differ from the task's `text`."""

    label: str = "label"
    """Column of the label."""

    labels_as: str = "names"
    """How labels are written: `names`, `index` (a number that counts the task's `labels` from 0), or `number`
    (regression)."""


@dataclass
class HubSpec:
    """A task's rows on the Hugging Face hub."""

    path: str = ""
    """Dataset id; empty: the task is not on the hub."""

    name: str | None = None
    """Configuration of the dataset."""

    train: str = "train"
    """Split of the training rows."""

    dev: dict[str, str] = field(default_factory=dict)
    """Name of each dev set -> its split."""

    text: list[str] | None = None
    """Columns of the texts where they differ from the task's `text`."""

    label: str = "label"
    """Column of the label; class names are mapped by name where the dataset has them."""


@dataclass
class TaskSpec:
    """A classification or regression task over one or two texts."""

    name: str = ""
    """Name of the task; runs stand under it."""

    text: list[str] = field(default_factory=list)
    """One or two columns of text."""

    labels: list[str] | None = None
    """Label names in the order of the model's outputs; null is a regression."""

    metric: str = "accuracy"
    """The primary metric, by which checkpoints are selected."""

    metrics: list[str] = field(default_factory=lambda: ["accuracy"])
    """Every metric that is reported. f1 is that of the second label, as GLUE counts it."""

    files: FilesSpec = field(default_factory=FilesSpec)
    """Rows on disk, read where data.dir is given."""

    hub: HubSpec = field(default_factory=HubSpec)
    """Rows on the hub, read where data.dir is not given."""

    @property
    def num_outputs(self) -> int:
        """Outputs of a model for this task."""
        return len(self.labels) if self.labels else 1


def check_task(task: TaskSpec) -> None:
    """InputError where a task's definition contradicts itself."""
    where = f"task {task.name}"
    if not 1 <= len(task.text) <= 2:
        raise InputError(f"{where}: text={task.text} names {len(task.text)} columns; name one or two")
    for place, columns in (("files.text", task.files.text), ("hub.text", task.hub.text)):
        if columns is not None and len(columns) != len(task.text):
            raise InputError(f"{where}: {place}={columns} must name as many columns as text={task.text}")
    for metric in {task.metric, *task.metrics}:
        if metric not in METRICS:
            raise InputError(f"{where}: metric {metric} is unknown; use one of {', '.join(METRICS)}")
    if task.metric not in task.metrics and task.metric != "pearson_spearman":
        raise InputError(f"{where}: its metric {task.metric} is not among its metrics {task.metrics}; add it")
    if task.labels is not None and len(set(task.labels)) != len(task.labels):
        raise InputError(f"{where}: labels {task.labels} repeat a name")
    if task.labels is not None and len(task.labels) < 2:
        raise InputError(f"{where}: labels {task.labels} leave nothing to decide; name two or more, or null")
    if not task.files.dev and not task.hub.dev:
        raise InputError(f"{where} has no dev set; name one, such as files.dev: {{dev: dev.tsv}}")
    if task.files.labels_as not in ("names", "index", "number"):
        raise InputError(f"{where}: files.labels_as={task.files.labels_as} is unknown; use names, index or number")
    if (task.labels is None) != (task.files.labels_as == "number"):
        raise InputError(f"{where}: labels_as={task.files.labels_as} does not fit labels={task.labels}")
    regression = {"pearson", "spearman", "pearson_spearman"}
    if any((metric in regression) != (task.labels is None) for metric in {task.metric, *task.metrics}):
        raise InputError(
            f"{where}: metrics {task.metrics} do not fit {'a regression' if task.labels is None else 'labels'}"
        )
    if "f1" in task.metrics and len(task.labels or []) != 2:
        raise InputError(f"{where}: f1 is for two labels; it has {task.labels}")
