"""The question that a run names before it begins: what is refused, and how long the record keeps it."""

import shutil
from dataclasses import replace

import pytest

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.pipeline.plan import check_settings, make_plan
from bitkd.pipeline.study import study_notes
from bitkd.store.artifacts import Store
from bitkd.store.records import StudyRecord
from bitkd.store.run_folder import RunFolder

SETTINGS = {"primary": "[multistage,singlestage]", "tasks": "[demo]", "seeds": "[42,1,2]"}


def configured(**changes):
    given = [f"study.{key}={value}" for key, value in (SETTINGS | changes).items() if value]
    return load_config(["pipeline=singlestage", "task=demo", *given])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primary": "[multistage]"}, r"study\.primary=\[multistage\] is no difference"),
        ({"primary": "[multistage,multistage]"}, r"is no difference"),
        ({"primary": None}, r"without study\.primary"),
        ({"primary": None, "tasks": None, "seeds": None, "margin": "2"}, r"without study\.primary"),
        ({"tasks": "[demo,demo]"}, r"study\.tasks=\[demo,demo\] has one of them twice"),
        ({"seeds": "[42,0,0]"}, r"study\.seeds=\[42,0,0\] has one of them twice"),
        ({"tasks": "[rte]"}, r"study\.tasks=\[rte\] does not name this run's task demo"),
        ({"seeds": "[42,1]"}, r"fewer than 3 seeds"),
        ({"seeds": "[1,2,3]"}, r"seed=42 is none of study\.seeds=\[1,2,3\]"),
        ({"margin": "0"}, r"study\.margin=0 is no margin"),
        ({"alpha": "0.5"}, r"study\.alpha=0\.5 is no chance"),
    ],
)
def test_a_question_that_cannot_be_decided_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        check_settings(configured(**changes))


QUESTION = ["study.primary=[multistage,singlestage]", "study.tasks=[rte]", "study.seeds=[42,1,2]"]
OLD = "2020-01-01T00:00:00+00:00"


@pytest.fixture
def named(runs):
    """Finished runs whose records named the question before."""
    for pipeline in ("multistage", "singlestage"):
        folder = RunFolder.read(runs / "rte" / pipeline)
        study = StudyRecord(["multistage", "singlestage"], ["rte"], [1, 2, 42], 1.0, 0.05, OLD)
        folder.begin(replace(folder.manifest, study=study), (folder.folder / "config.yaml").read_text())
    return runs


def study_of(settings, runs, *more):
    return make_plan(load_config(settings(runs, "singlestage", *more))).study


def test_a_study_is_no_part_of_what_is_computed(settings, tmp_path):
    plain, other = (make_plan(load_config(settings(tmp_path, "singlestage", *more))) for more in ([], QUESTION))
    assert [stage.key for stage in plain.stages] == [stage.key for stage in other.stages]
    assert plain.study is None
    assert other.study.seeds == [42, 1, 2]


@pytest.mark.parametrize("again", [[], QUESTION])
def test_a_question_stays_with_its_time_however_the_run_is_started_again(settings, named, again):
    assert study_of(settings, named, *again).named == OLD
    assert main(["run", *settings(named, "singlestage", *again)]) == 0
    assert RunFolder.read(named / "rte" / "singlestage").manifest.study.named == OLD


def test_a_run_has_one_question(settings, named):
    with pytest.raises(
        InputError, match=r"named another question at 2020.*margin of 1 point.*margin of 2 points.*Leave study"
    ):
        study_of(settings, named, *QUESTION, "study.margin=2")
    assert study_of(settings, named, *QUESTION, "study.margin=2", "train.lr=2e-3").margin == 2.0  # another run


def test_a_question_comes_before_the_last_stage(settings, runs, tmp_path):
    with pytest.raises(InputError, match=r"last stage of this run \(single_binary\) has begun.*exploratory"):
        study_of(settings, runs, *QUESTION)
    key = make_plan(load_config(settings(runs, "singlestage"))).stages[-1].key
    shutil.rmtree(runs / "store" / key)
    assert study_of(settings, runs, *QUESTION).named > OLD
    work = Store(runs / "store").work(key)
    work.mkdir(parents=True)
    (work / "step-000000002.ckpt").touch()
    with pytest.raises(InputError, match="has begun"):
        study_of(settings, runs, *QUESTION)


def test_names_that_may_be_wrong_are_told(capsys, settings, tmp_path):
    odd = ["study.primary=[multistage,singlestge]", "study.tasks=[rte,mrcp]", "study.seeds=[42,1,2]"]
    assert main(["plan", *settings(tmp_path, "halfternary", *odd)]) == 0
    found = " ".join(capsys.readouterr().out.split())
    assert (
        "study: multistage − singlestge on rte and mrcp, seeds 42, 1 and 2, a margin of 1 point, alpha 0.05; to be named"
        in found
    )
    assert "this run of halfternary is exploratory" in found
    assert (
        "study.primary names singlestge, which is no pipeline of conf/; right if it is your own, else did you mean single"
        in found
    )
    assert (
        "study.tasks names mrcp, which is no task of conf/; right if it is your own, else did you mean mrpc?" in found
    )
    assert study_notes(load_config(settings(tmp_path, "singlestage", *QUESTION))) == []
