"""Reports of runs of every kind: regressions, several dev sets, hold-outs, augmented rows, given teachers, odd names."""

from dataclasses import replace

import numpy as np
import pytest

from bitkd.cli import main
from bitkd.compare.arms import make_arms
from bitkd.compare.comparison import Comparison, warnings_of
from bitkd.compare.load import chain_of, load_run
from bitkd.compare.record_file import from_json, to_json
from bitkd.compare.rows import rows_of
from bitkd.compare.runs import Predictions
from bitkd.compare.scores import score
from bitkd.data.tasks import HOLDOUT
from bitkd.errors import InputError
from bitkd.report.glossary import glossary, versions
from bitkd.report.html import render_page
from bitkd.report.plots import draw
from bitkd.report.tables import cost_table, headline, stages_table
from bitkd.report.write import markdown
from bitkd.stages.kinds import KINDS
from tests.compare.synthetic import NEWER, make_one, write_run


def written(runs):
    """The page and the text of a report, whose record gives the same runs again."""
    comparison = Comparison.of(runs)
    assert from_json(to_json(comparison.runs), "x") == comparison.runs
    return render_page(comparison, draw(comparison)), markdown(comparison)


def with_stages(run, change):
    return replace(run, stages=[change(stage) for stage in run.stages])


def regression(predicted_of, recorded=None):
    """A run of a regression whose stages predict predicted_of(labels)."""
    run = make_one("singlestage", 1, rows=60)
    labels = [float(value) for value in np.round(np.random.default_rng(5).uniform(0, 5, 60), 1)]

    def change(stage):
        said = [value + 0.1 for value in labels] if stage.kind == "finetune" else predicted_of(labels)
        found = score("pearson", None, np.array(labels), np.array(said))
        found = recorded if recorded is not None and stage is run.final else found
        dev = {"dev": {"loss": 0.1, "pearson": found, "spearman": found}}
        keeps = {"dev": Predictions(labels, said)} if stage.predictions else None
        return replace(stage, score=found, dev=dev, predictions=keeps)

    changes = {"task": "stsb", "metric": "pearson", "metrics": ["pearson", "spearman"], "labels": None}
    return replace(with_stages(run, change), **changes)


def test_a_regression():
    noise = np.random.default_rng(6).normal(size=60)
    page, text = written([regression(lambda labels: list(np.array(labels) + noise))])
    assert "pearson of the majority is 0.0000" in text
    assert "dev spearman" in page


def test_a_collapsed_regression_is_not_damaged_but_named():
    """The correlation of values that hardly vary is rounding noise in 32 bits."""
    noise = np.random.default_rng(6).normal(size=60)
    stuck = regression(lambda labels: list(2.5 + 1e-5 * noise), recorded=0.31)
    assert warnings_of(make_arms([stuck]))[0].startswith(
        "With seed 1 the final student of singlestage predicts the same for every dev row"
    )
    with pytest.raises(InputError, match=r"is recorded with pearson 0\.3100, but its predictions give"):
        make_arms([regression(lambda labels: list(2.5 + noise), recorded=0.31)])


def test_two_dev_sets_and_a_holdout_before_them():
    def change(stage):
        said = stage.predictions and {"m": stage.predictions["dev"], "mm": Predictions([0.0, 1.0], [1.0, 1.0])}
        values = {"loss": 0.4, "accuracy": stage.score}
        return replace(stage, dev={"holdout": values, "m": values, "mm": values | {"accuracy": 0.5}}, predictions=said)

    run = replace(with_stages(make_one("singlestage", 1), change), metrics=["accuracy"])
    assert run.dev_set == "m"
    page, text = written([run])
    assert "m accuracy | m loss | mm accuracy | mm loss" in text
    assert "holdout" not in text
    assert "hold-out; ends of stages: dev" in page
    assert "hold-out" in dict(glossary(Comparison.of([run])))


def test_augmented_rows_are_apart():
    run = make_one("singlestage", 1)
    rows = replace(run.stages[0], name="augment", title="Data augmentation", kind="augment", key="augment-1", upstream={},
                   in_chain=False, score=None, dev={}, precision="", parameters=0, steps=0, seconds=9.0, curve=[],
                   predictions=None)  # fmt: skip
    augmented = replace(run, stages=[run.stages[0], rows, *run.stages[1:]])
    arm = make_arms([augmented])[0]
    assert arm.chain == make_arms([run])[0].chain
    assert arm.shared.seconds == pytest.approx(run.stages[0].seconds + 9)
    page, text = written([augmented])
    assert "Data augmentation (augment), shared" in text
    assert ">Data augmentation<" in page


def test_a_given_teacher_costs_nothing():
    run = make_one("singlestage", 1)
    free = {"steps": 0, "examples": 0, "student_flops": 0, "seconds": 0.0, "curve": []}
    given = replace(run, stages=[replace(run.stages[0], **free), *run.stages[1:]])
    assert make_arms([given])[0].shared.flops == 0
    page, _ = written([given])
    assert "no training" in page


def test_a_teacher_alone_is_a_report():
    run = make_one("singlestage", 1)
    alone = replace(run, stages=run.stages[:1])
    assert alone.teacher is alone.final
    written([alone])


def test_names_are_text_and_never_markup(tmp_path, capsys):
    name = "a<b>[red]c|d"
    runs = [replace(make_one("singlestage", 1), pipeline=name, title=name)]
    runs.append(replace(with_stages(runs[0], lambda stage: replace(stage, title=name)), seed=2, name=name))
    runs += [replace(make_one("multistage", 1), pipeline="plain")]
    page, text = written(runs)
    assert "a<b>" not in page
    assert "a&lt;b&gt;[red]c|d" in page
    assert r"| a&lt;b&gt;\[red\]c\|d |" in text
    assert "<b>" not in text
    (tmp_path / "comparison.json").write_text(to_json(runs))
    assert main(["compare", str(tmp_path)]) == 0
    assert "note: Means are over different seeds (a<b>[red]c|d: 1, 2; plain: 1)" in capsys.readouterr().out


def test_machines_are_named_with_processes_and_arithmetic():
    run = make_one("singlestage", 1)
    other = with_stages(make_one("multistage", 1), lambda s: replace(s, world_size=2, trainer_precision="bf16-mixed"))
    arms = make_arms([run, other])
    assert arms[1].devices == ["x86_64, 2 processes, bf16-mixed"]
    expected = "x86_64, 1 process, 32-true; x86_64, 2 processes, bf16-mixed"
    assert f"Trained on different devices ({expected}): seconds cannot be compared." in warnings_of(arms)
    assert versions(Comparison.of([run, other]))[-1] == f"trained on {expected}"
    assert cost_table(Comparison.of([other])).rows[0][-1] == "x86_64, 2 processes, bf16-mixed"


def test_a_share_that_not_every_seed_has_says_so():
    runs = [make_one("singlestage", seed) for seed in (1, 2, 3)]
    runs[0] = replace(
        runs[0], stages=[replace(s, score=0.0, predictions=None) if s.name == "teacher" else s for s in runs[0].stages]
    )
    table = headline(Comparison.of(runs))
    retained, ratio = (
        table.rows[0][table.header.index(name)] for name in ("teacher score retained", "student / teacher")
    )
    assert retained == "–"
    assert ratio.endswith(" (2 of 3 seeds)")


def test_a_teacher_that_seeds_share_has_no_deviation():
    runs = [make_one("singlestage", seed) for seed in (1, 2)]
    teacher = runs[0].stages[0]
    shared = [replace(run, stages=[teacher, *run.stages[1:]]) for run in runs]
    scores = [
        [row[table.header.index("dev accuracy")] for row in table.rows]
        for table in (stages_table(Comparison.of(given)) for given in (runs, shared))
    ]
    assert [[("±" in score) for score in column] for column in scores] == [[True] * 4, [False, True, True, True]]


def test_stages_of_arms_with_other_metrics_stand_under_one_header():
    one, other = make_one("singlestage", 1), make_one("multistage", 1)
    fewer = with_stages(one, lambda s: replace(s, dev={"dev": {k: v for k, v in s.dev["dev"].items() if k != "f1"}}))
    table = stages_table(Comparison.of([fewer, other]))
    column = table.header.index("dev f1")
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert table.rows[0][column] == "–"
    assert table.rows[-1][column] != "–"


def test_a_step_costs_what_its_stage_costs_by_its_steps():
    comparison = Comparison.of([make_one("singlestage", 1), make_one("halfternary", 1)])

    def per_step(table, name):
        columns = [table.header.index(column) for column in (name, "FLOP per step", "time per step")]
        return [[row[column] for column in columns] for row in table.rows]

    costs = per_step(cost_table(comparison), "of")
    assert costs[0] == ["whole chain", "800 G", "0.27 s"]  # 3 x 200 G of the student, 200 G of the teacher
    assert costs[1] == ["whole chain", "501 G", "0.27 s"]  # with importance
    assert costs[3] == ["shared, apart: Teacher", "600 G", "0.27 s"]
    stages = stages_table(comparison)
    assert [row[0] for row in stages.rows] == ["all arms"] + ["singlestage"] * 3 + ["halfternary"] * 4
    assert per_step(stages, "stage")[:3] == [
        ["Teacher (teacher), shared", "600 G", "0.27 s"],
        ["Initialization (init)", "–", "–"],
        ["Single-Stage KD (single)", "800 G", "0.27 s"],
    ]


def test_what_older_records_lack_is_a_dash_and_no_column_is_dashes_alone():
    whole = make_one("halfternary", 1)
    older = with_stages(whole, lambda stage: replace(stage, **dict.fromkeys(["importance_flops", *NEWER])))
    assert not any(f'"{name}"' in to_json([older]) for name in ["importance_flops", *NEWER])
    assert all(f'"{name}"' in to_json([whole]) for name in ["importance_flops", *NEWER])
    lacking = ["tokens", "with padding", "importance FLOP", "training alone", "time per step", "s per TFLOP"]
    known = ["training time", "FLOP of products"]

    both = cost_table(Comparison.of([replace(older, pipeline="older"), whole]))

    def cells(row, columns):
        return [both.rows[row][both.header.index(name)] for name in columns]

    assert cells(0, lacking) == ["–"] * 6
    assert cells(0, known) == ["7.8 min", "750 T"]
    assert cells(2, lacking) == ["1.92 M", "2.3 M", "1 T", "6.8 min", "0.27 s", "0.539"]
    assert cells(2, known) == ["7.8 min", "751 T"]
    alone = cost_table(Comparison.of([older]))
    assert alone.header == [name for name in both.header if name not in lacking]
    assert all(len(row) == len(alone.header) for row in alone.rows)


def test_stages_name_the_step_that_was_chosen_and_by_how_many_looks():
    comparison = Comparison.of([make_one("multistage", 1), make_one("multistage", 2)])
    table = stages_table(comparison)
    chosen = {row[1]: [row[table.header.index(name)] for name in ("chosen step", "looks")] for row in table.rows}
    assert chosen["General KD (general)"] == ["600; 600", "last"]
    assert chosen["Stage-II KD (stage2)"] == ["300; 300", "best of 4 on 408 rows"]
    assert chosen["Weight-Splitting (split)"] == ["–", "–"]


def test_unequal_looks_at_the_final_checkpoint_are_warned_of():
    def warning(*runs):
        return next((text for text in warnings_of(make_arms(list(runs))) if text.startswith("Unequal looks")), None)

    one, other = make_one("singlestage", 1), make_one("multistage", 1)
    fewer = replace(other, stages=[*other.stages[:-1], replace(other.final, curve=other.final.curve[:2])])
    assert warning(one, other) is None
    assert "(singlestage: 4; multistage: 2)" in warning(one, fewer)
    assert "stages.NODE.select=last" in warning(one, fewer)
    assert "a higher score by chance alone" in warning(one, fewer)
    apart = [with_stages(run, lambda s: replace(s, dev=s.dev | {HOLDOUT: {}})) for run in (one, fewer)]
    assert "its dev score is not" in warning(*apart)  # hold-out rows chose
    last = [replace(run, stages=[*run.stages[:-1], replace(run.final, selected="last")]) for run in (one, fewer)]
    assert warning(*last) is None
    assert "(singlestage: no choice; multistage: 2)" in warning(last[0], fewer)
    # Older records say it by their settings.
    older = [
        replace(
            run,
            stages=[*run.stages[:-1], replace(run.final, selected=None)],
            settings={f"stages.{run.final.name}.select": how},
        )
        for run, how in ((one, "auto"), (fewer, "last"))
    ]
    assert "(singlestage: 4; multistage: no choice)" in warning(*older)


@pytest.mark.parametrize(
    ("stages", "chain"),
    [
        ({"teacher": ("finetune", "pretrained", None)}, []),
        ({"teacher": ("finetune", "pretrained", None), "init": ("init", "teacher", None),
          "single": ("single_stage", "init", "teacher")}, ["init", "single"]),
        ({"teacher": ("finetune", "pretrained", None), "split": ("split", "teacher", None)}, ["split"]),
        ({"init": ("init", "pretrained", None), "tuned": ("finetune", "init", None)}, ["init", "tuned"]),
        ({"augment": ("augment", "pretrained", None), "teacher": ("finetune", "pretrained", None),
          "init": ("init", "teacher", None), "tuned": ("finetune", "init", None),
          "single": ("single_stage", "tuned", "teacher")}, ["init", "tuned", "single"]),
        ({"first": ("finetune", "pretrained", None), "teacher": ("finetune", "first", None),
          "single": ("single_stage", "pretrained", "teacher")}, ["single"]),
        ({"init": ("init", "pretrained", None), "tuned": ("finetune", "init", None),
          "single": ("single_stage", "tuned", "tuned")}, ["init", "tuned", "single"]),
    ],
)  # fmt: skip
def test_fine_tuned_students_are_part_of_the_chain(stages, chain):
    kinds = {name: KINDS[kind] for name, (kind, _, _) in stages.items()}
    upstream = {
        name: {"student": student} | ({"teacher": teacher} if teacher else {})
        for name, (_, student, teacher) in stages.items()
    }
    assert chain_of(kinds, upstream) == chain


def test_a_run_that_ends_in_general_kd_is_read_but_not_compared(tmp_path):
    run = make_one("multistage", 1)
    folder = write_run(replace(run, stages=run.stages[:2]), tmp_path / "runs" / "general")
    found = load_run(folder)
    assert found.final.kind == "general"
    assert found.final.predictions is None
    assert [row.stage for row in rows_of(found)] == ["teacher", "general"]
    with pytest.raises(InputError, match="ends in no student of the task"):
        load_run(folder, to_compare=True)
