import pytest

from bitkd.errors import InputError
from bitkd.stages.base import StudentModule
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.kinds import KINDS, Kind, kind_of
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import TERMS, LossSpec, Term


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if not kind.makes_rows], ids=lambda kind: kind.name)
def test_a_kinds_row_and_its_module_agree(kind):
    assert issubclass(kind.module_class, StudentModule)
    assert issubclass(kind.module_class, DistillationModule) == kind.distils
    if kind.distils:
        assert kind.module_class.kind == kind.name
        assert kind.trains
    assert set(kind.terms) <= set(TERMS)


def test_a_head_is_trained_by_labels_or_by_a_term_that_reads_it():
    loss, silent = LossSpec(), LossSpec(logits=0.0)
    assert [name for name in KINDS if KINDS[name].trains_head(loss)] == ["finetune", "prediction", "single_stage"]
    assert [name for name in KINDS if KINDS[name].trains_head(silent)] == ["finetune"]


def test_terms_without_a_weight_do_not_count():
    assert kind_of("single_stage").active_terms(LossSpec(hidden=0.0)) == ("logits", "attention")
    assert kind_of("finetune").active_terms(LossSpec()) == ()


def test_an_unknown_kind_or_term_names_the_nearest():
    with pytest.raises(InputError, match=r"stages.x.kind=singlestage is unknown; did you mean single_stage\?"):
        kind_of("singlestage", "stages.x.kind=")
    with pytest.raises(InputError, match=r"loss.extra.hiden is no loss term; did you mean hidden\?"):
        LossSpec(extra={"hiden": 1.0})
    with pytest.raises(InputError, match=r"loss.extra.hidden=1.0 already has a setting; use loss.hidden"):
        LossSpec(extra={"hidden": 1.0})
    with pytest.raises(InputError, match=r"loss.unmatched_heads=relations is unknown; did you mean relation\?"):
        LossSpec(unmatched_heads="relations")


class Forgetful(SingleStageDistillation):
    """Says nothing of its kind, and inherits another's."""


def test_a_row_and_a_class_that_differ_are_refused():
    row = Kind("forgetful", f"{__name__}:Forgetful", terms=("logits",), trains=True)
    with pytest.raises(InputError, match=r'write kind = "forgetful" in the class'):
        _ = row.module_class
    with pytest.raises(InputError, match="names artifacts; use small letters, digits and _"):
        Kind("Two-Words", "module:Class")
    with pytest.raises(InputError, match="reads a corpus, which has no labels"):
        Kind("corpus", "module:Class", reads="corpus")


def test_a_term_without_a_setting_has_weight_one_in_a_kind_that_names_it(monkeypatch):
    monkeypatch.setitem(TERMS, "cosine", Term("module:function"))
    row = Kind("kd2", "module:Class", terms=("logits", "cosine"), trains=True)
    assert row.active_terms(LossSpec()) == ("logits", "cosine")
    assert row.active_terms(LossSpec(extra={"cosine": 0.0})) == ("logits",)
    assert kind_of("prediction").active_terms(LossSpec()) == ("logits",)


def test_what_a_row_names_wrongly_is_said_before_a_run(monkeypatch):
    with pytest.raises(InputError, match=r"kind kd: logitz is no loss term; did you mean logits\?"):
        Kind("kd", "module:Class", terms=("logitz",), trains=True).active_terms(LossSpec())
    with pytest.raises(InputError, match=r"kind kd names nowhere:Class, which cannot be imported"):
        _ = Kind("kd", "nowhere:Class").module_class
