"""The kinds of stages: one row each. Everything else asks a kind's attributes, never its name.

A new kind is a module in bitkd/stages and a row here.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError, nearest
from bitkd.stages.spec import ATTENTION, HIDDEN, LOGITS, TERMS, LossSpec, resolve


@dataclass(frozen=True)
class Kind:
    """What a stage of this kind reads, makes and trains."""

    name: str
    """The value of a stage's `kind`; the names of artifacts' folders begin with it."""

    module: str
    """`package.module:Class` of its LightningModule (a subclass of bitkd.stages.base.StudentModule), imported when a
    stage is built; empty for a kind that makes rows."""

    reads: Literal["task", "corpus"] = "task"
    """The rows that it works on."""

    makes: Literal["student", "rows"] = "student"
    """What its artifact holds: a model, or the rows of TinyBERT's augmentation (bitkd.pipeline.augmentation)."""

    terms: tuple[str, ...] = ()
    """The loss terms that it distils with (names of bitkd.stages.spec.TERMS); empty: it has no teacher."""

    trains: bool = False
    """Whether it has optimizer steps."""

    reshapes: bool = False
    """Whether it makes its student out of layers, heads and neurons of another model, as `student.*` says: its module's
    `start` calls `Origin.reshape`."""

    splits: bool = False
    """Whether it turns ternary layers into pairs of binary ones: its module configures the WeightSplitting callback."""

    keeps_head: bool = True
    """Whether its student answers the task; False: the student is task-agnostic, and only its loss is validated."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise InputError(f"kind {self.name!r} names artifacts; use small letters, digits and _")
        if self.on_corpus and self.keeps_head:
            raise InputError(f"kind {self.name} reads a corpus, which has no labels; use keeps_head=False")

    @property
    def makes_rows(self) -> bool:
        return self.makes == "rows"

    @property
    def on_corpus(self) -> bool:
        return self.reads == "corpus"

    @property
    def distils(self) -> bool:
        """Whether it learns from a teacher."""
        return bool(self.terms)

    @property
    def fine_tunes(self) -> bool:
        """Whether it learns from the task's labels, so that its student can be a teacher."""
        return self.trains and self.keeps_head and not self.distils

    def active_terms(self, loss: LossSpec) -> tuple[str, ...]:
        """The terms that count under `loss`: the kind's own and those of `loss.extra`, each with a positive weight."""
        if not self.distils:
            return ()
        names = dict.fromkeys([*self.terms, *loss.extra])
        if unknown := [name for name in names if name not in TERMS]:
            raise InputError(f"kind {self.name}: {unknown[0]} is no loss term; {nearest(unknown[0], TERMS)}")
        return tuple(name for name in names if loss.weight_of(name) > 0)

    def trains_head(self, loss: LossSpec) -> bool:
        """Whether the stage trains the student's head."""
        return self.fine_tunes or any(TERMS[name].reads_head for name in self.active_terms(loss))

    def terms_of_teacher(self, loss: LossSpec, numbers: bool) -> tuple[str, ...]:
        """The active terms that read the teacher's outputs. The logits term may aim at the label, if labels are `numbers`."""
        from_label = numbers and loss.regression_target == "label"
        return tuple(name for name in self.active_terms(loss) if not (name == LOGITS and from_label))

    def reads_teacher(self, loss: LossSpec, numbers: bool) -> bool:
        """Whether training steps run the teacher, or read its kept logits."""
        return bool(self.terms_of_teacher(loss, numbers)) or (self.distils and loss.intervention is not None)

    def can_keep_logits(self, loss: LossSpec, task: TaskSpec) -> bool:
        """Whether the teacher's logits of all training rows can replace the teacher in the steps."""
        return task.of_kind.can_keep_logits and self.reads_only_logits(loss, task.has_numbers)

    def reads_only_logits(self, loss: LossSpec, numbers: bool) -> bool:
        """Whether its steps read the teacher, and of it nothing but the logits of the task's rows."""
        terms = self.terms_of_teacher(loss, numbers)
        alone = not self.on_corpus and loss.intervention is None
        return alone and bool(terms) and all(TERMS[name].needs_only_logits for name in terms)

    @cached_property
    def module_class(self) -> Any:
        """The LightningModule; torch and lightning are imported now. InputError if it is of another kind."""
        found = resolve(self.module, f"kind {self.name}")
        if self.distils and getattr(found, "kind", None) != self.name:
            raise InputError(f'{self.module} is not of the kind that names it; write kind = "{self.name}" in the class')
        return found


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("finetune", "bitkd.stages.finetune:FineTune", trains=True),
        Kind(
            "general",
            "bitkd.stages.general:GeneralDistillation",
            reads="corpus",
            terms=(HIDDEN, ATTENTION),
            trains=True,
            reshapes=True,
            keeps_head=False,
        ),
        Kind(
            "intermediate",
            "bitkd.stages.intermediate:IntermediateDistillation",
            terms=(HIDDEN, ATTENTION),
            trains=True,
        ),
        Kind("prediction", "bitkd.stages.prediction:PredictionDistillation", terms=(LOGITS,), trains=True),
        Kind(
            "single_stage",
            "bitkd.stages.single_stage:SingleStageDistillation",
            terms=(LOGITS, HIDDEN, ATTENTION),
            trains=True,
        ),
        Kind("init", "bitkd.stages.init:Initialization", reshapes=True),
        Kind("split", "bitkd.stages.split:Splitting", splits=True),
        Kind("augment", "", makes="rows"),
    )
}
"""Name -> kind."""

AUGMENT = "augment"
"""The kind of the node that `task.augmentation.enabled` adds."""


def kind_of(name: str, where: str = "kind=") -> Kind:
    """The kind of this name. Raises InputError if there is none.

    where: text before the name in the message, such as "stages.single.kind=".
    """
    if name not in KINDS:
        raise InputError(f"{where}{name} is unknown; {nearest(name, KINDS)}")
    return KINDS[name]
