import pytest
import torch

from bitkd.errors import InputError
from bitkd.models.inputs import model_inputs
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.stages.flops import row_flops
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import TERMS, LossSpec, Term
from tests.stages.test_stages import batch, classifier

ONLY_LOGITS = LossSpec(hidden=0, attention=0)


def make(kind=PredictionDistillation, labels=3, loss=None):
    teacher = classifier(labels)
    return kind(build_student(teacher, ShapeSpec(layers=[0, 3], dropout=0.0)), teacher, loss)


def logits_of(module, rows):
    with torch.no_grad():
        return module.teacher(**model_inputs(rows, module.teacher)).logits


def without_teacher(module):
    """The module with a teacher that cannot run."""
    module._teacher[0].forward = None
    return module


@pytest.mark.parametrize("kind", [PredictionDistillation, SingleStageDistillation])
@pytest.mark.parametrize("labels", [3, 1])
def test_kept_logits_give_exactly_the_loss_of_the_same_batch(kind, labels):
    module, rows = make(kind, labels, ONLY_LOGITS), batch()
    expected = module.loss_terms(rows)
    kept = torch.full((6, labels), torch.nan)
    rows["index"] = torch.tensor([5, 0, 3, 1])
    kept[rows["index"]] = logits_of(module, rows)
    module.keep_logits(kept)
    assert without_teacher(module).loss_terms(rows) == expected


def test_validation_rows_are_not_taken_for_training_rows():
    module, rows = make(), batch()
    module.keep_logits(torch.zeros(4, 3))
    kept = module.loss_terms(rows)["logits"]
    assert module.eval().loss_terms(rows)["logits"] != kept
    assert module.eval().loss_terms(rows) == make().eval().loss_terms(rows)


def test_kept_logits_are_in_no_checkpoint():
    module = make()
    names = set(module.state_dict())
    module.keep_logits(torch.zeros(4, 3))
    assert set(module.state_dict()) == names


def test_a_regression_on_labels_never_runs_its_teacher():
    module, rows = make(labels=1, loss=LossSpec(regression_target="label")), batch()
    without_teacher(module).loss_terms(rows)
    assert row_flops(module, rows)[1] == (0, 0, 0)
    with pytest.raises(InputError, match="does not train on the teacher's logits alone; let it run the teacher"):
        module.keep_logits(torch.zeros(4, 1))


def read_all(module, student, teacher, batch):
    return teacher.hidden_states[-1].mean()


def test_terms_that_may_read_more_keep_the_teacher(monkeypatch):
    assert not make(SingleStageDistillation).can_keep_logits
    for only_logits in (True, False):
        monkeypatch.setitem(TERMS, "own", Term(f"{__name__}:read_all", needs_only_logits=only_logits))
        assert make(loss=LossSpec(extra={"own": 0.5})).can_keep_logits is only_logits
