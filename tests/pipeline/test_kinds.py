from bitkd.pipeline.build import MODULES
from bitkd.stages.kinds import DISTILLATION


def test_kinds_tell_the_terms_of_their_modules():
    assert {kind: module.terms for kind, module in MODULES.items()} == DISTILLATION
