"""What several seeds of an arm share is said before any number."""

from dataclasses import replace

from bitkd.compare.arms import make_arms
from bitkd.compare.shared import shared_stages
from tests.compare.synthetic import make_all, make_one


def sharing(name, runs, key="one", **settings):
    """The runs, with one artifact for this stage."""
    return [
        replace(
            run,
            stages=[replace(s, key=f"{s.kind}-{key}") if s.name == name else s for s in run.stages],
            settings=run.settings | settings,
        )
        for run in runs
    ]


def said(runs):
    return shared_stages(make_arms(runs))


def test_a_shared_stage_is_named_with_its_share_of_the_cost():
    runs = make_all(("multistage", "halfternary", "singlestage"), (1, 2, 3))
    assert said(runs) == []
    (found,) = said(sharing("general", runs))
    chain = [stage for stage in runs[0].stages if stage.in_chain]
    flops = {stage.name: stage.student_flops + stage.teacher_flops for stage in chain}
    share = 100 * flops["general"] / sum(flops.values())
    assert found.startswith(
        f"One artifact of General KD (general) is shared by the seeds 1, 2, 3 of multistage ({share:.0f} % of its FLOP), "
        "halfternary ("
    )
    assert "its variance is in no ± and in no interval" in found
    assert "singlestage" not in found
    assert found.endswith("share_across_seeds=false trains one for each seed.")


def test_a_shared_teacher_has_no_share_and_one_that_was_given_no_other_seed():
    runs = sharing("teacher", make_all(("multistage", "singlestage"), (1, 2)))
    (found,) = said(runs)
    assert found.startswith("One artifact of Teacher is shared by the seeds 1, 2 of all arms: its variance")
    (found,) = said(sharing("teacher", runs, **{"stages.teacher.given": True}))
    assert found.endswith("It was given as a checkpoint: the results are those with this one.")


def test_only_the_seeds_that_share_are_named():
    one, two, three = (make_one("multistage", seed) for seed in (1, 2, 3))
    (found,) = said([one, *sharing("general", [two, three])])
    assert "shared by the seeds 2, 3 of multistage (" in found
    assert said(sharing("general", [one])) == []  # one seed shares nothing
    assert said(sharing("split", [one, two])) == []  # not trained
