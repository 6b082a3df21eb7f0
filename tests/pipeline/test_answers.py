"""A question answering task through a pipeline and the commands that read its students."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import bitkd
from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.stages.base import StudentModule
from bitkd.stages.single_stage import SingleStageDistillation
from tests.conftest import make_settings

ANIMALS = ("dog", "cat", "bird")
VERBS = ("runs", "sleeps", "sees", "likes")


def paragraph(number):
    """A context of several windows, and two questions: who does something, and one without an answer."""
    animal, verb = ANIMALS[number % 3], VERBS[number % 4]
    context = "the old and the new . " * (number % 3) + f"a big {animal} {verb} . " + "not in the red . " * 2
    answers = [{"text": f"big {animal}", "answer_start": context.index(f"big {animal}")}]
    asked = [{"question": f"a {verb}", "answers": answers}, {"question": "fast and blue", "answers": []}]
    return {"context": context, "qas": [{"id": f"{number}-{i}", **question} for i, question in enumerate(asked)]}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qa")
    for name, numbers in (("train", range(24)), ("dev", range(24, 30))):
        data = [{"title": name, "paragraphs": [paragraph(number) for number in numbers]}]
        (folder / f"{name}.json").write_text(json.dumps({"version": "v2.0", "data": data}))
    definition = {
        "name": "qa",
        "kind": "question_answering",
        "text": ["question", "context"],
        "metric": "answer_f1",
        "metrics": ["answer_f1", "exact_match"],
        "files": {"train": "train.json", "dev": {"dev": "dev.json"}, "test": {"test": "dev.json"}},
        "windows": {"overlap": 4},
        "answers": {"unanswerable": True},
    }
    (folder / "qa.yaml").write_text(yaml.safe_dump({"task": definition}))
    quant = {"weight_bits": 1, "activation_bits": 8}
    stages = {
        "teacher": {"kind": "finetune"},
        "student": {"kind": "single_stage", "student": "teacher", "teacher": "teacher", "quant": quant},
    }
    (folder / "short.yaml").write_text(yaml.safe_dump({"pipeline": {"name": "short"}, "stages": stages}))
    return folder


@pytest.fixture(scope="module")
def overrides(tiny_bert, tiny_task, task):
    def made(runs):
        more = [f"task={task / 'qa.yaml'}", f"data.dir={task}", "data.max_length=16"]
        more += ["train.max_steps=2", "checkpoint.every_steps=1"]
        return make_settings(tiny_bert, tiny_task, runs, task / "short.yaml", *more)

    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory, overrides):
    class Silent:
        def print(self, text):
            pass

    runs = tmp_path_factory.mktemp("runs")
    run(load_config(overrides(runs)), Silent())
    return runs / "qa" / "short"


def test_a_cut_stage_resumes_to_the_same_bytes(finished, overrides, console, tmp_path, monkeypatch):
    original = StudentModule.training_step

    def cut(self, batch, batch_idx):
        if isinstance(self, SingleStageDistillation) and batch_idx == 1:
            raise RuntimeError("cut")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", cut)
    with pytest.raises(StageFailedError, match="stage student failed"):
        run(load_config(overrides(tmp_path)), console)
    monkeypatch.undo()
    run(load_config(overrides(tmp_path)), console)
    assert any(line.endswith("student goes on at step 1 of 2") for line in console.lines)
    for name in ("model.safetensors", "predictions.safetensors"):
        resumed = tmp_path / "qa" / "short" / "student" / name
        assert resumed.read_bytes() == (finished / "student" / name).read_bytes()


def test_the_kept_scores_are_those_of_the_metric(finished, capsys):
    kept = load_file(finished / "student" / "predictions.safetensors")
    assert kept["dev.labels"].tolist() == [1, 0] * 6
    assert json.loads((finished / "manifest.json").read_text())["labels"] is None
    metrics = json.loads((finished / "student" / "metrics.json").read_text())
    assert kept["dev.logits"].shape == (12, 1)
    assert kept["dev.logits"].mean() == pytest.approx(metrics["dev"]["answer_f1"])


def test_students_are_evaluated_and_predict_in_every_form(finished, task, tmp_path, capsys):
    student, packed, cpu = str(finished / "student"), str(tmp_path / "packed"), "trainer.accelerator=cpu"
    source = f"data.dir={task}"

    def answer(*arguments):
        assert main([*map(str, arguments)]) == 0
        return capsys.readouterr().out

    answer("export", student, packed)
    expected = json.loads((finished / "student" / "metrics.json").read_text())["dev"]["answer_f1"]
    found = json.loads(answer("evaluate", packed, source, "--json", cpu))["metrics"]
    assert found["answer_f1"] == pytest.approx(expected, abs=1e-6)
    given = json.loads(answer("evaluate", student, task / "dev.json", "--json", cpu))["metrics"]
    assert given["answer_f1"] == pytest.approx(expected, abs=1e-6)

    answer("predict", student, "split=test", source, "--out", tmp_path / "sub.json", cpu)
    submission = json.loads((tmp_path / "sub.json").read_text())
    assert list(submission) == [f"{number}-{i}" for number in range(24, 30) for i in range(2)]

    rows = [(found["question"], p["context"]) for p in map(paragraph, range(24, 30)) for found in p["qas"]]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": q, "context": c}) + "\n" for q, c in rows))
    answer("predict", student, file, "--out", tmp_path / "out.jsonl", cpu)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in found] == list(submission.values())
    for row, (_, context) in zip(found, rows):
        assert row["answer"] == ("" if row["start"] is None else context[row["start"] : row["end"]])
    [header, *lines] = answer("predict", student, file, cpu).splitlines()
    assert header == "index\tanswer\tstart\tend\tscore"
    assert [line.split("\t")[1] for line in lines] == list(submission.values())
    with pytest.raises(InputError, match="rows of two texts, a question and a context; a row has one"):
        next(bitkd.load_predictor(student, cpu).predict(["who"]))
    [empty, full] = bitkd.load_predictor(student, cpu).predict([("who", "\x00\u200b"), rows[0]])
    assert empty == {"answer": "", "start": None, "end": None, "score": None}
    assert full["answer"] == found[0]["answer"]
    assert answer("predict", student, "--text", "who", "--text-pair", "\x00\u200b", cpu) == "\tno answer\n"
    question, context = rows[0]
    shown = answer("predict", student, "--text", question, "--text-pair", context, cpu)
    assert shown.startswith(f"{found[0]['answer']}\t")


def test_held_out_questions_are_scored_by_their_own_windows(task, tiny_tokenizer):
    config = load_config([f"task={task / 'qa.yaml'}"], require=("task",))
    rows = config.task.of_kind.rows_class(config.task, tiny_tokenizer, task, max_length=16, selection="holdout")
    held_out = rows.dev["holdout"]
    contexts = rows.raw_rows("holdout")["text_b"]
    sides = [{contexts[row] for row in side["row"][:]} for side in (held_out, rows.train)]
    assert [len(side) for side in sides] == [1, 11]  # a tenth of the 12 contexts
    assert not sides[0] & sides[1]
    assert len(set(held_out["row"][:])) == 4  # the two questions of both paragraphs with this context
    metric = rows.metrics()["holdout"]
    for window in held_out:  # logits that point at the label
        logits = torch.zeros(1, 16, 2)
        logits[0, window["label"][0], 0] = logits[0, window["label"][1], 1] = 9.0
        context = torch.tensor([[window["context_from"], window["context_to"]]])
        metric.update(logits, {"index": torch.tensor([window["index"]]), "context": context})
    assert metric.compute()["exact_match"] >= 0.5  # a window without the answer may win where its row has one
    assert len(metric.row_scores()[0]) == 4
