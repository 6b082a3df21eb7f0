"""Whether the shapes of students and teachers fit what their losses do with attention, before a run starts."""

from dataclasses import dataclass

from bitkd.config.schema import PRETRAINED
from bitkd.data.hub import resolve_pretrained
from bitkd.errors import InputError
from bitkd.models.spec import ShapeSpec
from bitkd.sources.sources import Sources
from bitkd.stages.fit import check_fit
from bitkd.stages.kinds import kind_of


@dataclass(frozen=True)
class _Attention:
    """What is known of a model's attention before it is made."""

    heads: int
    head_size: int
    width: int

    copied: bool = True
    """Whether its heads are those of another model, so that they may have a source whatever their number."""

    def reshaped(self, shape: ShapeSpec) -> "_Attention":
        width = self.width if shape.hidden_size is None else shape.hidden_size
        heads = shape.heads or round(shape.width * (width // self.head_size if shape.hidden_size else self.heads))
        size = width // heads if shape.init == "random" and shape.heads else self.head_size
        return _Attention(heads, size, width, shape.init == "copy")


def check_attention(sources: Sources) -> None:
    """Check the losses of all stages; InputError names the stage.

    A copy whose heads were chosen by their importance may still turn out to have none of its teacher's: that is refused when
    its stage begins.
    """
    config = sources.config

    def attention_of(name: str) -> _Attention:
        stage = config.stages.get(name)
        if stage is None or stage.checkpoint:
            given = stage.checkpoint if stage else None
            folder = resolve_pretrained(given, f"stages.{name}.checkpoint=") if given else sources.model
            found = sources.shape_of(folder)
            return _Attention(found.spec.heads, found.spec.head_size, found.hidden_size)
        student = attention_of(stage.student)
        return student.reshaped(config.student) if kind_of(stage.kind).reshapes else student

    for name, stage in config.stages.items():
        kind = kind_of(stage.kind)
        terms = kind.active_terms(stage.loss)
        if stage.loss.intervention and not kind.distils:
            raise InputError(
                f"stages.{name}.loss.intervention={stage.loss.intervention}: a {kind.name} stage has no teacher; remove it"
            )
        if not terms or (stage.loss.intervention is None and not stage.loss.extra):
            continue
        student, teacher = attention_of(name), attention_of(stage.teacher or PRETRAINED)
        matched = student.copied or student.heads == teacher.heads
        try:
            check_fit(stage.loss, terms, matched, student.width, teacher.width)
        except InputError as error:
            raise InputError(f"stages.{name}: {error}") from error
